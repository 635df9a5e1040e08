"""Members of a population equal runs trained alone, in float64, over fifty or a hundred steps."""

import sys
from types import ModuleType

import pytest
import torch
from omegaconf import OmegaConf
from tests.training.equality import (
    CASES,
    CONF,
    EPS,
    GENTLE,
    IMAGES_ONLY,
    MEMBERS,
    MODELS,
    check_equal,
    compare,
    composed,
    runs_of,
)

from normlab.config.schema import Config
from normlab.config.validation import validate
from normlab.data import Random, Table
from normlab.execution.grouping import group_runs
from normlab.results.result import Result
from normlab.training.build import make_data
from normlab.training.run import train

OPTIMIZERS = {
    "adam": ["optimizer=adam"],
    "adamw": ["optimizer=adamw"],
    "sgd": ["optimizer=sgd"],
    "nesterov": ["optimizer=sgd", "optimizer.nesterov=true"],
    "clipped": ["optimizer=sgd", "trainer.gradient_clip_val=0.5"],
    "clipped by value": [
        *("optimizer=sgd", "trainer.gradient_clip_val=0.01", "+trainer.gradient_clip_algorithm=value"),
    ],
    "step": ["scheduler=step", "scheduler.step_size=5"],
    "cosine": ["scheduler=cosine"],
    "plateau": ["scheduler=plateau", "scheduler.patience=1", "scheduler.factor=0.5"],
    "stopping": ["callbacks=early_stopping", "callbacks.early_stopping.patience=3"],
    "dropout": ["net.dropout=0.3"],
    "deep": ["net.hidden=[20,30,20]", "net.activation=tanh", "net.norm_position=after"],
}

FAMILIES = [
    ["bn", "ghost", "l1bn", "noisy"],
    ["ln", "gn", "rms", "in"],
    ["wn", "ws", "ws_gn", "wn"],
    ["nobn", "dyt", "actnorm", "derf"],
]
STEP_RULES = ["adam", "adamw", "nesterov", "clipped"]
SCHEDULES = [[], *(OPTIMIZERS[name] for name in ("step", "cosine", "plateau"))]
PRODUCT = [0, 2, 3, 1]
"""Multiplication by 2 in the field of four elements, whose addition is the exclusive or."""

PAIRWISE = [
    (FAMILIES[family][net], case, STEP_RULES[family ^ net], SCHEDULES[family ^ PRODUCT[net]])
    for family in range(4)
    for net, case in enumerate(CASES)
]
"""Cases in which each pair of family, net, step rule and schedule occurs: two orthogonal Latin squares."""


@pytest.mark.sampled(5)
@pytest.mark.parametrize(("model", "case", "rule", "schedule"), PAIRWISE)
def test_pairs_of_choices(tmp_path, model, case, rule, schedule):
    short = [*CASES[case], *OPTIMIZERS[rule], *schedule, "trainer.max_epochs=3"]
    eps = [] if rule in ("adam", "adamw") else [EPS]
    compare(tmp_path, [f"model={model}", *(word for word in short if word not in eps)], GENTLE[1:])


def test_skipinit(tmp_path):
    words = [*CASES["resmlp"], "net.branch_scale=skipinit", "trainer.max_epochs=3"]
    compare(tmp_path, ["model=nobn", *words], GENTLE)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("model", MODELS)
def test_models_nets_and_datasets(tmp_path, model, case):
    if model in IMAGES_ONLY and case != "cnn":
        pytest.skip("raises, see tests/training/test_build.py")
    # The d of batch renormalization amplifies the changes of such a bias.
    eps = ["optimizer.eps=1e-5"] if model == "brn" and EPS in CASES[case] else []
    # The only rule that changes with the step, that of batch renormalization, depends on the share of all steps.
    words = [f"model={model}", *CASES[case], *eps, "trainer.max_epochs=10"]
    compare(tmp_path, words, GENTLE[1:] if case in ("resmlp", "cnn") else MEMBERS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "case"),
    [("bn", "random"), ("bn", "cnn"), ("bn_torch", "random"), ("ghost", "cnn"), ("l1bn", "random")],
)
@pytest.mark.parametrize("statistics", ["reestimated", "batch"])
def test_statistics_for_evaluation(tmp_path, statistics, model, case):
    compare(tmp_path, [f"model={model}", f"statistics={statistics}", *CASES[case]], GENTLE[:2])


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_and_scheduler(tmp_path, optimizer):
    compare(tmp_path, ["model=bn", *CASES["random"], *OPTIMIZERS[optimizer]], MEMBERS)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["bn", "nobn"])
@pytest.mark.parametrize(
    "data",
    [
        CASES["random"],
        ["data=wine", "data.standardize=true", "net.hidden=[10]"],
        ["data=fitness", "data.standardize=true", "data.standardize_target=true", "net.hidden=[10]"],
        [
            "data=digits",
            "data.standardize=true",
            "data.train=150",
            "data.val=40",
            "data.test=40",
            "net.hidden=[10]",
        ],
    ],
    ids=["random", "wine", "fitness", "digits"],
)
def test_members_with_different_samples(tmp_path, model, data):
    members = [[*own, f"data.seed={number // 2}"] for number, own in enumerate(GENTLE)]
    compare(tmp_path, [f"model={model}", "replicate=data", *data], members)


@pytest.mark.slow
def test_splits_with_different_categories_group_by_input_shape(tmp_path):
    words = ["red"] * 60 + ["blue"] * 2 + ["green"]
    rows = (f"{word},{k % 7},{k / 3 + len(word)}\n" for k, word in enumerate(words))
    (tmp_path / "words.csv").write_text("word,a,y\n" + "".join(rows))
    common = [
        *("data=csv", f"data.path={tmp_path / 'words.csv'}", "data.target_column=y", "data.task=regression"),
        *(
            "data.train=30",
            "data.val=20",
            "data.test=10",
            "data.batch_size=10",
            "net.hidden=[10]",
            "model=bn",
            EPS,
        ),
    ]
    members = [[f"seed={seed}", "optimizer.lr=0.001"] for seed in range(10)]
    together = runs_of(tmp_path / "together", common, members)
    groups = group_runs(together, None)
    sizes = sorted(len(group.indices) for group in groups)
    assert sum(sizes) == 10
    assert len(sizes) > 1, "there are splits with inputs of several shapes"
    assert sizes[-1] > 1, "and several splits with inputs of one shape"
    for group in groups:
        train([together[place] for place in group.indices])
        place = group.indices[-1]
        (alone,) = runs_of(tmp_path / f"alone{place}", common, [members[place]])
        train([alone])
        check_equal(together[place], alone)


@pytest.mark.slow
def test_data_drawn_from_the_global_generator(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "user_module", ModuleType("user_module"))
    sys.modules["user_module"].GloballyDrawn = GloballyDrawn
    common = [*CASES["random"], "data._target_=user_module.GloballyDrawn", "replicate=data", "model=bn"]
    compare(tmp_path, common, MEMBERS)
    results = [Result.read(tmp_path / "together" / str(k)) for k in range(3)]
    assert [result.data["generated"] for result in results] == [True] * 3


class GloballyDrawn(Random):
    """Samples drawn from torch's global generator instead of ``self.seed``."""

    def table(self) -> Table:
        return Table(torch.randn(1000, self.in_features), torch.randn(1000, 1))


def test_replicate_option_decides_whether_samples_differ():
    def sums(replicate: str) -> set[float]:
        common = ["data=wine", "data.standardize=false", f"replicate={replicate}"]
        return {
            float(make_data(validate(OmegaConf.merge(composed(*common), {"seed": k}))).parts[0].x.sum())
            for k in range(3)
        }

    assert OmegaConf.load(CONF / "train.yaml").replicate == Config.replicate == "data"
    assert len(sums("seed")) == 1
    assert len(sums("data")) == 3


def test_optimizer_and_scheduler_hyperparameters_per_member(tmp_path):
    members = [
        ["seed=0", "optimizer.betas=[0.9,0.999]", "scheduler.gamma=0.5", "scheduler.step_size=3"],
        ["seed=0", "optimizer.betas=[0.8,0.99]", "scheduler.gamma=0.1", "scheduler.step_size=3"],
        ["seed=5", "optimizer.eps=1e-4", "scheduler.gamma=0.5", "scheduler.step_size=7"],
    ]
    compare(tmp_path, ["model=bn", *CASES["random"], "scheduler=step"], members)


@pytest.mark.slow
def test_foreign_normalizer_is_stacked(tmp_path):
    foreign = ["model=bn_torch", "model.norm._target_=torch.nn.LayerNorm", "~model.norm.momentum"]
    compare(tmp_path, [*foreign, *CASES["random"]], MEMBERS)
