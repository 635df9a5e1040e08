"""Metrics of checkpoints: equal to those of the training, and to formulas; unusable files."""

from pathlib import Path

import pytest
import torch
from torch import nn

from normlab.config.frozen import FrozenConfig
from normlab.data import Fitness
from normlab.evaluation.checkpoint import shared_samples
from normlab.models import MLP
from normlab.norms import BatchNorm1d
from normlab.results.result import Result

RUN = "model=bn,seed=0"
BEST = Path(RUN) / "checkpoints/best.pt"


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "words",
    [
        [],
        ["statistics=batch"],
        ["statistics=reestimated", "data.batch_size=64"],
        ["data=wine", "trainer.precision=64-true", "loss=squared_error"],
        ["model=brn", "net.dropout=0.5"],
        ["model=noisy"],
        ["trainable=random:norm"],
        ["model=actnorm"],
        ["data=digits", "net=cnn", "net.channels=[2]"],
    ],
)
def test_metrics_equal_those_of_training(train, metrics_of, words):
    result = train(*words)
    best, last = metrics_of("run=run"), metrics_of("run=run", "checkpoint=last")
    assert {name: best[name] for name in result.test} == result.test
    of_val = {name: value for name, value in result.best.metrics.items() if name.startswith("val/")}
    assert {name: best[name] for name in of_val} == of_val
    measured = {n: v for n, v in result.last.metrics.items() if n.startswith(("val/", "train_eval/"))}
    assert "train_eval/loss" in measured
    assert {name: last[name] for name in measured} == measured


def test_members_of_population_agree_up_to_rounding(run_train, evaluated):
    words = ["data=wine", "trainer.max_epochs=3", "logger=csv", "hydra.sweep.dir=sweep"]
    assert run_train("-m", "seed=0,1,2", *words).code == 0
    runs = evaluated("run=sweep/*")[0]["runs"]
    assert [run["name"] for run in runs] == ["seed=0", "seed=1", "seed=2"]
    for run in runs:
        expected = Result.read(Path(run["folder"])).test
        assert {name: run["metrics"][name] for name in expected} == pytest.approx(expected, rel=1e-5)


def test_run_of_lightning_module_agrees_up_to_rounding(train, metrics_of):
    result = train("module=lightning", "data=wine")
    got = metrics_of("run=run")
    assert {name: got[name] for name in result.test} == pytest.approx(result.test, rel=1e-5)
    assert got["val/loss"] == pytest.approx(result.best.metrics["val/loss"], rel=1e-5)


def test_batch_statistics_are_those_of_the_split(trained, metrics_of):
    trained(RUN)
    got, result = metrics_of(f"run={RUN}", "statistics=batch"), Result.read(Path(RUN))
    net = MLP((3,), 1, hidden=result.config["net"]["hidden"], norm=BatchNorm1d).double()
    net.load_state_dict(torch.load(BEST, weights_only=True)["state_dict"])
    for layer in (layer for layer in net.modules() if isinstance(layer, BatchNorm1d)):
        plain = nn.BatchNorm1d(layer.num_features, track_running_stats=False).double()
        plain.load_state_dict({"weight": layer.weight, "bias": layer.bias})
        layer.forward = plain.forward
    data = Fitness(seed=result.data["seed"], train=600, val=200, test=200, batch_size=128)
    for split, part in zip(("val", "test"), data.parts[1:], strict=True):
        loss = nn.functional.mse_loss(net(part.x.double()), part.y.double()).item()
        assert got[f"{split}/loss"] == pytest.approx(loss, rel=1e-4)
    assert got["test/loss"] != metrics_of(f"run={RUN}")["test/loss"]


def test_chosen_data_replace_those_of_the_run(train, evaluated):
    train("data=random", "data.in_features=3", "data.batch_size=50", "replicate=seed")
    (run,) = evaluated("run=run", "data=fitness", "data.test=100")[0]["runs"]
    assert run["config"]["data"]["_target_"] == "normlab.data.Fitness"
    assert (run["config"]["data"]["batch_size"], run["data"]["test"]) == (128, 100)
    net = MLP((3,), 1, hidden=run["config"]["net"]["hidden"], norm=BatchNorm1d).eval()
    net.load_state_dict(torch.load("run/checkpoints/best.pt", weights_only=True)["state_dict"])
    part = Fitness(seed=42, train=600, val=200, test=100, batch_size=128).parts[2]
    assert run["metrics"]["test/loss"] == pytest.approx(nn.functional.mse_loss(net(part.x), part.y).item())


def config(seed=0, generated=False, **sizes):
    """Return the part of a configuration that determines the data."""
    data = {"_target_": "table", "seed": 42, "train": 6, "val": 2, "test": 2, "batch_size": 3, **sizes}
    return FrozenConfig.of({"seed": seed, "replicate": "data", "data": data})


class Data:
    """Ten samples."""

    def __init__(self, generated):
        self.generated = generated

    def whole_table(self):
        return range(10)


@pytest.mark.parametrize(
    ("changed", "generated", "expected"),
    [
        (config(), False, 0),
        (config(batch_size=2), False, 0),
        (config(train=3), False, 3),
        (config(train=3), True, 3),
        (config(train=3, corrupt="noise", severity=0.5), False, 3),
        (config(val=0, test=0), False, 0),
        (config(_target_="other", train=3), False, 0),
        (config(seed=1), True, 0),
    ],
)
def test_shared_samples_are_counted(changed, generated, expected):
    assert shared_samples(config(), changed, Data(generated)) == expected


def test_shared_samples_of_another_split():
    from normlab.data.sampling import split_rows
    from normlab.training.build import data_seed

    train = set(split_rows(10, (6, 2, 2), data_seed(config()))[0].tolist())
    held_out = torch.cat(split_rows(10, (6, 2, 2), data_seed(config(seed=1)))[1:]).tolist()
    assert shared_samples(config(), config(seed=1), Data(False)) == len(train & set(held_out)) > 0


def test_corruption_in_an_evaluation_is_that_of_a_training(trained, evaluated, run_train):
    words = ["data.corrupt=noise", "data.severity=0.5"]
    trained(RUN)
    assert run_train("trainer.max_epochs=3", "logger=csv", *words, "hydra.run.dir=corrupted").code == 0
    clean, corrupted = Result.read(Path(RUN)), Result.read(Path("corrupted"))
    content, out = evaluated(f"run={RUN}", *words)
    metrics = content["runs"][0]["metrics"]

    assert corrupted.test["test/loss"] == metrics["test/loss"] != clean.test["test/loss"]
    assert clean.last == corrupted.last
    assert content["runs"][0]["held_out_training_samples"] == 0
    assert "data.corrupt=noise: the test split is corrupted with severity 0.5" in out


def damage(kind):
    """Replace a checkpoint by a damaged or foreign file."""
    content = torch.load(BEST, weights_only=True)
    state = content["state_dict"]
    if kind == "missing":
        BEST.unlink()
    elif kind == "truncated":
        BEST.write_bytes(BEST.read_bytes()[:1000])
    elif kind == "empty":
        BEST.write_bytes(b"")
    else:
        foreign = {
            "of another program": {"model": state},
            "with code": {**content, "state_dict": nn.Linear(2, 2)},
            "of another layout": {**content, "state_dict": {f"net.{name}": state[name] for name in state}},
        }
        torch.save(foreign[kind], BEST)


@pytest.mark.parametrize(
    ("kind", "answer"),
    {
        "missing": "best.pt is missing: the run failed early or still trains; choose another run",
        "truncated": "best.pt is damaged or no checkpoint of normlab (",
        "empty": "best.pt is damaged or no checkpoint of normlab (",
        "of another program": "best.pt is damaged or no checkpoint of normlab (KeyError)",
        "with code": "best.pt is damaged or no checkpoint of normlab (UnpicklingError)",
        "of another layout": "in the net of this configuration; only a net of net= can be evaluated",
    }.items(),
)
def test_unusable_checkpoint_gives_one_line(trained, run_eval, kind, answer):
    trained(RUN)
    damage(kind)
    outcome = run_eval(f"run={RUN}")
    (line,) = outcome.err.strip().splitlines()
    assert (outcome.code, line.startswith("error: "), answer in line) == (1, True, True), line
    assert not list(Path().rglob("eval*"))
