import json

import pytest

from normlab.results.events import flat, group

CONFIG = {
    "seed": 0,
    "optimized_metric": "val/loss",
    "direction": None,
    "data": {"_target_": "normlab.data.Fitness", "seed": 42, "standardize": False},
    "net": {"_target_": "normlab.models.MLP", "_partial_": True, "hidden": [64, 32]},
    "model": {"norm": {"_target_": "normlab.norms.BatchNorm1d", "eps": 1e-5}, "norm2d": None, "weight": None},
    "optimizer": {"lr": 0.01, "betas": [0.9, 0.999]},
    "scheduler": {},
    "callbacks": {"extra": {}},
}
CHOICES = {"model": "bn", "data": "fitness", "trainer": "default", "experiment": "overfit", "optimizer": "adam"}


def changed(**changes) -> dict:
    """Return a copy of the configuration with dotted keys (``data__seed``) changed."""
    config = json.loads(json.dumps(CONFIG))
    for key, value in changes.items():
        *path, leaf = key.split("__")
        node = config
        for part in path:
            node = node[part]
        node[leaf] = value
    return config


def test_hyperparameters_are_the_choices_and_every_value_by_its_dotted_key():
    assert flat(CONFIG, CHOICES) == {
        "data": "fitness",
        "model": "bn",
        "optimizer": "adam",
        "seed": 0,
        "optimized_metric": "val/loss",
        "data.seed": 42,
        "data.standardize": False,
        "net.hidden": "[64, 32]",
        "model.norm.eps": 1e-5,
        "optimizer.lr": 0.01,
        "optimizer.betas": "[0.9, 0.999]",
    }


def test_the_choices_come_first():
    assert list(flat(CONFIG, CHOICES))[:3] == ["data", "model", "optimizer"]


def test_every_hyperparameter_is_of_a_kind_that_tensorboard_takes():
    assert {type(value) for value in flat(CONFIG, CHOICES).values()} <= {bool, int, float, str}


def test_seeds_of_one_configuration_share_a_group():
    assert len({group(changed(seed=seed), CHOICES) for seed in range(5)}) == 1


def test_what_the_report_alone_reads_makes_no_other_group():
    assert group(changed(baseline="ln", margin=0.05, pairs=True, max_replicates=40), CHOICES) == group(
        CONFIG, CHOICES
    )


@pytest.mark.parametrize(
    "other",
    [
        changed(optimizer__lr=0.02),
        changed(data__seed=43),
        changed(model__norm__eps=1e-3),
        changed(direction="min"),
        changed(net__hidden=[64, 33]),
    ],
)
def test_any_other_difference_makes_another_group(other):
    assert group(other, CHOICES) != group(CONFIG, CHOICES)


def test_another_option_makes_another_group_named_after_its_model():
    assert group(CONFIG, CHOICES | {"model": "bn_torch"}).startswith("bn_torch-")
    assert group(CONFIG, CHOICES).startswith("bn-")
    assert group(CONFIG, CHOICES | {"data": "random"}) != group(CONFIG, CHOICES)


def test_the_order_of_keys_does_not_matter():
    assert group(dict(reversed(CONFIG.items())), dict(reversed(CHOICES.items()))) == group(CONFIG, CHOICES)
