"""Probes in a training: their schedule, snapshots, files and lack of side effects."""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from normlab.config.validation import validate
from normlab.probes.snapshot import Measurement, Probe, TrainingSnapshot
from normlab.results.result import Result
from normlab.training.dry_run import dry_run_once
from normlab.training.run import train
from normlab.training.run_folders import Run

CONF = Path(__file__).parents[2] / "conf"
SNAPSHOTS: list[TrainingSnapshot] = []


@dataclass(frozen=True, kw_only=True)
class Spy(Probe):
    """Records its snapshots."""

    modes: list[str] = field(default_factory=lambda: ["frozen"])

    def __call__(self, snapshot: TrainingSnapshot) -> Iterator[Measurement]:
        SNAPSHOTS.append(snapshot)
        landscape = snapshot.landscape("frozen")
        losses = landscape.losses(landscape.theta)
        draws = torch.stack([torch.rand((), generator=generator) for generator in snapshot.generators])
        yield Measurement(
            "frozen",
            {"loss": losses, "draw": draws},
            {"row": torch.stack([losses, draws], dim=1)},
            headline=("loss",),
            histograms={"values": landscape.theta},
        )


def run(folder: Path, *overrides: str) -> Run:
    with initialize_config_dir(str(CONF), version_base=None):
        config = validate(compose("train", overrides=["trainer.max_epochs=4", *overrides]))
    return Run(config, folder, folder.name, {"model": "bn"}, list(overrides))


@pytest.fixture
def snapshots_of(monkeypatch, tmp_path):
    """Return a function that trains runs of these seeds, and returns the snapshots of a probe."""
    module = ModuleType("user_module")
    module.Spy = Spy
    monkeypatch.setitem(sys.modules, "user_module", module)

    def trained(
        schedule: dict, *overrides: str, seeds: tuple[int, ...] = (0,), name: str = "run"
    ) -> list[TrainingSnapshot]:
        spy = [
            "+probes.spy._target_=user_module.Spy",
            *(f"+probes.spy.{key}={value}" for key, value in schedule.items()),
        ]
        runs = [run(tmp_path / f"{name}{seed}", f"seed={seed}", *spy, *overrides) for seed in seeds]
        dry_run_once(runs[0].config)
        SNAPSHOTS.clear()
        train(runs)
        return list(SNAPSHOTS)

    return trained


# 600 samples in batches of 128: 5 steps an epoch, 20 in all.
@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"at_start": "true"}, [(0, 0)]),
        ({"at_end": "true"}, [(4, 20)]),
        ({"every_n_epochs": 2}, [(2, 9), (4, 19)]),
        ({"every_n_steps": 8}, [(1, 0), (2, 8), (4, 16)]),
        ({"at_start": "true", "every_n_steps": 15, "every_n_epochs": 4}, [(0, 0), (1, 0), (4, 15), (4, 19)]),
    ],
)
def test_probe_runs_at_its_schedule(snapshots_of, schedule, expected):
    assert [(snapshot.epoch, snapshot.step) for snapshot in snapshots_of(schedule)] == expected


def test_probe_runs_at_start_without_training(snapshots_of):
    (snapshot,) = snapshots_of({"at_start": "true"}, "trainer.max_epochs=0")
    assert (snapshot.epoch, snapshot.step) == (0, 0)
    assert snapshot.after is snapshot.before


def test_fast_dev_run_probes_once_per_epoch(snapshots_of):
    assert [snapshot.step for snapshot in snapshots_of({"every_n_epochs": 1}, "trainer.fast_dev_run=true")] == [0]


def test_bug_long_fast_dev_run_was_not_probed(snapshots_of):
    assert [snapshot.step for snapshot in snapshots_of({"every_n_epochs": 1}, "trainer.fast_dev_run=50")] == [4]


@pytest.mark.parametrize(
    ("seeds", "replicate", "datasets"),
    [((0,), "data", 1), ((0, 1, 2), "seed", 1), ((0, 1, 2), "data", 3)],
)
def test_snapshot_is_the_step_taken(snapshots_of, seeds, replicate, datasets):
    """The step of gradient descent is the gradient of the loss on the snapshot's minibatch."""
    overrides = [
        f"replicate={replicate}",
        "optimizer=sgd",
        "optimizer.momentum=0",
        "optimizer.lr=1e-4",
        "trainer.precision=64-true",
    ]
    for snapshot in snapshots_of({"every_n_steps": 7}, *overrides, seeds=seeds):
        landscape = snapshot.landscape("batch")
        after = torch.cat([snapshot.after[name].reshape(len(seeds), -1) for name in snapshot.trained], dim=1)
        torch.testing.assert_close(after, landscape.theta - 1e-4 * landscape.gradients(landscape.theta))
        torch.testing.assert_close(snapshot.lr, torch.full((len(seeds),), 1e-4, dtype=torch.float64))
        assert snapshot.train[0].shape == (datasets, 600, 3)
        assert snapshot.minibatch[0].shape == (len(seeds), 88 if snapshot.step == 14 else 128, 3)


def test_start_is_the_initial_state(snapshots_of):
    first, *_, last = snapshots_of({"at_start": "true", "at_end": "true"})
    for name, tensor in first.before.items():
        assert torch.equal(last.start[name], tensor)
    assert not torch.equal(last.before["output.weight"], first.before["output.weight"])


@pytest.mark.parametrize(
    "overrides", [[], ["model=noisy", "net.dropout=0.2"], ["optimizer=sgd", "optimizer.lr=0.001"]]
)
def test_probed_run_equals_plain_run(snapshots_of, tmp_path, overrides):
    every = {"at_start": "true", "every_n_steps": 1, "at_end": "true"}
    snapshots_of(every, *overrides, name="probed")
    train([run(tmp_path / "plain", "seed=0", *overrides)])
    curves = [(tmp_path / name / "curves.csv").read_text() for name in ("probed0", "plain")]
    assert curves[0] == curves[1]
    states = [torch.load(tmp_path / name / "checkpoints" / "last.pt") for name in ("probed0", "plain")]
    assert all(
        torch.equal(tensor, states[1]["state_dict"][key]) for key, tensor in states[0]["state_dict"].items()
    )


def test_training_seconds_exclude_probes(snapshots_of, tmp_path, monkeypatch):
    monkeypatch.setattr(Spy, "check", lambda self, net: None)
    undelayed = Spy.__call__

    def delayed(self, snapshot):
        time.sleep(0.3)
        yield from undelayed(self, snapshot)

    monkeypatch.setattr(Spy, "__call__", delayed)
    snapshots_of({"every_n_epochs": 1})
    assert Result.read(tmp_path / "run0").seconds < 0.3


def test_stacked_measurements_equal_single_run(snapshots_of, tmp_path):
    schedule = {"at_start": "true", "every_n_epochs": 2}
    snapshots_of(schedule, "trainer.precision=64-true", seeds=(0, 1, 2), name="together")
    for seed in range(3):
        snapshots_of(schedule, "trainer.precision=64-true", seeds=(seed,), name="alone")
        ours, theirs = (pd.read_csv(tmp_path / f"{name}{seed}" / "probes.csv") for name in ("together", "alone"))
        pd.testing.assert_frame_equal(ours, theirs)


def test_measurements_reach_all_files(snapshots_of, tmp_path):
    snapshots = snapshots_of({"every_n_epochs": 2}, seeds=(0, 1))
    for k in range(2):
        folder = tmp_path / f"run{k}"
        rows = pd.read_csv(folder / "probes.csv")
        assert rows[["epoch", "step", "probe", "mode"]].drop_duplicates().to_numpy().tolist() == [
            [2, 9, "spy", "frozen"],
            [4, 19, "spy", "frozen"],
        ]
        losses = rows.loc[rows["quantity"] == "loss", "value"].tolist()
        expected = [
            snapshot.landscape("frozen").losses(snapshot.landscape("frozen").theta)[k].item()
            for snapshot in snapshots
        ]
        assert losses == pytest.approx(expected, rel=1e-6)
        with np.load(folder / "probes.npz") as arrays:
            assert arrays["spy/frozen/row"][:, 0].tolist() == pytest.approx(losses)
            assert arrays["spy/frozen/step"].tolist() == [9, 19]
        assert Result.read(folder).probes == {"probe/spy/frozen/loss": pytest.approx(losses[-1])}
        (events,) = folder.glob("events*")
        tensorboard = EventAccumulator(str(events)).Reload()
        events_of_loss = tensorboard.Scalars("~probe/spy/frozen/loss")
        assert [event.step for event in events_of_loss] == [9, 19]
        assert [event.value for event in events_of_loss] == pytest.approx(losses)
        assert "probe/spy/frozen/values" in str(tensorboard.Tags())


def test_diverged_member_is_not_probed_further(snapshots_of, tmp_path):
    sgd = ["optimizer=sgd", "optimizer.momentum=0", "model=nobn", "data.standardize=true"]
    spy = ["+probes.spy._target_=user_module.Spy", "+probes.spy.every_n_steps=2"]
    snapshots_of({"every_n_steps": 2}, *sgd, "optimizer.lr=0.01", name="fine")
    runs = [
        run(tmp_path / name, "seed=0", *sgd, f"optimizer.lr={lr}", *spy)
        for name, lr in (("good", 0.01), ("bad", 1e6))
    ]
    train(runs)
    good, bad = (pd.read_csv(tmp_path / name / "probes.csv") for name in ("good", "bad"))
    pd.testing.assert_frame_equal(good, pd.read_csv(tmp_path / "fine0" / "probes.csv"), rtol=1e-4)
    assert bad["value"].isna().any()
    assert bad["epoch"].max() == 1
    assert good["epoch"].max() == 4


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_preconditioner_is_that_before_the_step(snapshots_of, seeds):
    overrides = ["optimizer=adam", "optimizer.lr=0.01", "trainer.precision=64-true", "trainer.max_epochs=1"]
    first, second, third = snapshots_of({"every_n_steps": 2}, *overrides, seeds=seeds)
    assert first.preconditioning.diagonal.isnan().all()
    assert [snapshot.stability for snapshot in (first, second, third)] == [None, None, None]

    square = torch.zeros_like(first.preconditioning.diagonal)
    # The second measurement follows steps 0 and 1, of which this probe has only the first snapshot.
    snapshots = snapshots_of({"every_n_steps": 1}, *overrides, seeds=seeds, name="every")
    for updates, snapshot in enumerate(snapshots[:2], start=1):
        landscape = snapshot.landscape("batch")
        square = 0.999 * square + 0.001 * landscape.gradients(landscape.theta).square()
        diagonal = ((square / (1 - 0.999**updates)).sqrt() + 1e-8) * (1 - 0.9**updates)
        torch.testing.assert_close(snapshots[updates].preconditioning.diagonal, diagonal)
    torch.testing.assert_close(second.preconditioning.diagonal, diagonal)


def test_final_preconditioner_follows_the_last_step(snapshots_of):
    *_, last = snapshots_of(
        {"at_end": "true", "every_n_steps": 19}, "optimizer=adamw", "optimizer.weight_decay=0.5"
    )
    _, before, after = snapshots_of({"at_end": "true", "every_n_steps": 19}, "optimizer=adamw", name="again")
    assert last.preconditioning.decay.tolist() == [0.0]
    assert last.preconditioning.limit.tolist() == pytest.approx([(2 - 0.01 * 0.5) * 19])
    assert (after.preconditioning.diagonal != before.preconditioning.diagonal).any()


@pytest.mark.parametrize("model", ["bn", "brn", "noisy", "actnorm"])
def test_warm_up_changes_only_running_statistics(tmp_path, model):
    for epochs in (0, 3):
        overrides = [
            f"model={model}",
            f"stats_warmup_epochs={epochs}",
            "trainer.max_epochs=0",
            "data.batch_size=100",
        ]
        train([run(tmp_path / f"{epochs}", "seed=0", *overrides)])
    cold, warm = (torch.load(tmp_path / name / "checkpoints" / "last.pt")["state_dict"] for name in ("0", "3"))
    moved = {name.rpartition(".")[2] for name, tensor in cold.items() if not torch.equal(tensor, warm[name])}
    assert moved == ({"running_mean", "running_var", "num_batches_tracked"} if model != "actnorm" else set())
    if model == "bn":
        assert warm["hidden1.norm.num_batches_tracked"] == 18


@pytest.mark.sampled(1)
@pytest.mark.parametrize("probe", ["angular_update", "saturation", "residual_branches"])
def test_members_have_the_measurements_of_runs_alone(run_train, probe):
    words = ("net=resmlp", "net.width=8", "net.blocks=2", "net.branch_scale=skipinit", f"probes={probe}")
    short = ("data.train=60", "data.val=20", "data.test=20", "data.batch_size=30", "trainer.max_epochs=2")
    common = (*words, *short, "logger=csv", "trainer.precision=64-true", "model=bn,dyt", "seed=0,1")
    for module in ("population", "lightning"):
        outcome = run_train("-m", *common, f"module={module}", f"hydra.sweep.dir={module}")
        assert outcome.code == 0, outcome.err
    measured = 0
    for path in sorted(Path("population").glob("*/probes.csv")):
        frames = [
            pd.read_csv(folder / path.parent.name / "probes.csv")
            for folder in map(Path, ("population", "lightning"))
        ]
        together, alone = (frame.set_index(["step", "probe", "mode", "quantity"])["value"] for frame in frames)
        assert set(together.index) == set(alone.index)
        pd.testing.assert_series_equal(together, alone.loc[together.index], rtol=1e-7, atol=1e-12)
        measured += 1
    assert measured == (2 if probe == "saturation" else 4)
