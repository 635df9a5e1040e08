import json

import pytest

from normlab.results.events import flatten_hparams, hparam_group

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


def test_hparams_are_choices_and_dotted_leaves():
    assert flatten_hparams(CONFIG, CHOICES) == {
        "data": "fitness",
        "model": "bn",
        "optimizer": "adam",
        "seed": "0",
        "optimized_metric": "val/loss",
        "data.seed": "42",
        "data.standardize": False,
        "net.hidden": "[64, 32]",
        "model.norm.eps": 1e-5,
        "optimizer.lr": 0.01,
        "optimizer.betas": "[0.9, 0.999]",
    }


def test_choices_come_first():
    assert list(flatten_hparams(CONFIG, CHOICES))[:3] == ["data", "model", "optimizer"]


def test_hparams_have_types_of_tensorboard():
    assert {type(value) for value in flatten_hparams(CONFIG, CHOICES).values()} <= {bool, float, str}


def test_seeds_share_a_group():
    assert len({hparam_group(changed(seed=seed), CHOICES) for seed in range(5)}) == 1


def test_report_keys_do_not_change_the_group():
    assert hparam_group(
        changed(baseline="ln", margin=0.05, pairs=True, max_replicates=40), CHOICES
    ) == hparam_group(CONFIG, CHOICES)


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
def test_other_values_change_the_group(other):
    assert hparam_group(other, CHOICES) != hparam_group(CONFIG, CHOICES)


def test_choices_change_the_group():
    assert hparam_group(CONFIG, CHOICES | {"model": "bn_torch"}).startswith("bn_torch-")
    assert hparam_group(CONFIG, CHOICES).startswith("bn-")
    assert hparam_group(CONFIG, CHOICES | {"data": "random"}) != hparam_group(CONFIG, CHOICES)


def test_group_ignores_key_order():
    assert hparam_group(dict(reversed(CONFIG.items())), dict(reversed(CHOICES.items()))) == hparam_group(
        CONFIG, CHOICES
    )
