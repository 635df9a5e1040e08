"""Probes in a training: when they look, what they are shown, what is left of it, and what they leave alone."""

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

from normlab.probes.snapshot import Measurement, Probe, TrainingSnapshot
from normlab.results.result import Result
from normlab.training.dry_run import dry_run_once
from normlab.training.run import train
from normlab.training.run_folders import Run

CONF = Path(__file__).parents[2] / "conf"
SEEN: list[TrainingSnapshot] = []


@dataclass(frozen=True, kw_only=True)
class Spy(Probe):
    """Keeps what it is shown."""

    modes: list[str] = field(default_factory=lambda: ["frozen"])

    def __call__(self, snapshot: TrainingSnapshot) -> Iterator[Measurement]:
        SEEN.append(snapshot)
        landscape = snapshot.landscape("frozen")
        losses = landscape.losses(landscape.theta)
        draws = torch.stack([torch.rand((), generator=generator) for generator in snapshot.generators])
        yield Measurement(
            self.name,
            "frozen",
            {"loss": losses, "draw": draws},
            {"row": torch.stack([losses, draws], dim=1)},
            headline=("loss",),
            histograms={"values": landscape.theta},
        )


def run(folder: Path, *overrides: str) -> Run:
    with initialize_config_dir(str(CONF), version_base=None):
        config = compose("train", overrides=["trainer.max_epochs=4", *overrides])
    return Run(config, folder, folder.name, {"model": "bn"}, list(overrides))


@pytest.fixture
def look(monkeypatch, tmp_path):
    """Return what trains runs of these seeds with a spy, and returns the scenes that it was shown."""
    module = ModuleType("somebody")
    module.Spy = Spy
    monkeypatch.setitem(sys.modules, "somebody", module)

    def trained(
        when: dict, *overrides: str, seeds: tuple[int, ...] = (0,), name: str = "run"
    ) -> list[TrainingSnapshot]:
        spy = ["+probes.spy._target_=somebody.Spy", *(f"+probes.spy.{key}={value}" for key, value in when.items())]
        runs = [run(tmp_path / f"{name}{seed}", f"seed={seed}", *spy, *overrides) for seed in seeds]
        dry_run_once(runs[0].config)
        SEEN.clear()
        train(runs)
        return list(SEEN)

    return trained


# 600 samples in batches of 128: 5 steps an epoch, 20 in all.
@pytest.mark.parametrize(
    ("when", "moments"),
    [
        ({"at_start": "true"}, [(0, 0)]),
        ({"at_end": "true"}, [(4, 20)]),
        ({"every_n_epochs": 2}, [(2, 9), (4, 19)]),
        ({"every_n_steps": 8}, [(1, 0), (2, 8), (4, 16)]),
        ({"at_start": "true", "every_n_steps": 15, "every_n_epochs": 4}, [(0, 0), (1, 0), (4, 15), (4, 19)]),
    ],
)
def test_a_probe_looks_when_it_is_to(look, when, moments):
    assert [(snapshot.epoch, snapshot.step) for snapshot in look(when)] == moments


def test_without_training_a_probe_can_look_at_the_start(look):
    (snapshot,) = look({"at_start": "true"}, "trainer.max_epochs=0")
    assert (snapshot.epoch, snapshot.step) == (0, 0)
    assert snapshot.after is snapshot.before


def test_a_fast_run_looks_once_an_epoch(look):
    assert [snapshot.step for snapshot in look({"every_n_epochs": 1}, "trainer.fast_dev_run=true")] == [0]


def test_bug_a_fast_run_of_more_steps_than_an_epoch_has_was_not_looked_at(look):
    assert [snapshot.step for snapshot in look({"every_n_epochs": 1}, "trainer.fast_dev_run=50")] == [4]


@pytest.mark.parametrize(
    ("seeds", "replicate", "datasets"),
    [((0,), "data", 1), ((0, 1, 2), "seed", 1), ((0, 1, 2), "data", 3)],
)
def test_what_is_shown_is_the_step_that_is_taken(look, seeds, replicate, datasets):
    """Plain gradient descent: what the step did is the gradient of the loss on what it is said to be on."""
    overrides = [
        f"replicate={replicate}",
        "optimizer=sgd",
        "optimizer.momentum=0",
        "optimizer.lr=1e-4",
        "trainer.precision=64-true",
    ]
    for snapshot in look({"every_n_steps": 7}, *overrides, seeds=seeds):
        landscape = snapshot.landscape("batch")
        after = torch.cat([snapshot.after[name].reshape(len(seeds), -1) for name in snapshot.trained], dim=1)
        torch.testing.assert_close(after, landscape.theta - 1e-4 * landscape.gradients(landscape.theta))
        torch.testing.assert_close(snapshot.lr, torch.full((len(seeds),), 1e-4, dtype=torch.float64))
        assert snapshot.train[0].shape == (datasets, 600, 3)
        assert snapshot.minibatch[0].shape == (len(seeds), 88 if snapshot.step == 14 else 128, 3)


def test_the_start_is_what_training_began_with(look):
    first, *_, last = look({"at_start": "true", "at_end": "true"})
    for name, tensor in first.before.items():
        assert torch.equal(last.start[name], tensor)
    assert not torch.equal(last.before["output.weight"], first.before["output.weight"])


@pytest.mark.parametrize(
    "overrides", [[], ["model=noisy", "net.dropout=0.2"], ["optimizer=sgd", "optimizer.lr=0.001"]]
)
def test_a_run_that_is_probed_trains_as_one_that_is_not(look, tmp_path, overrides):
    every = {"at_start": "true", "every_n_steps": 1, "at_end": "true"}
    look(every, *overrides, name="probed")
    train([run(tmp_path / "plain", "seed=0", *overrides)])
    curves = [(tmp_path / name / "curves.csv").read_text() for name in ("probed0", "plain")]
    assert curves[0] == curves[1]
    states = [torch.load(tmp_path / name / "checkpoints" / "last.pt") for name in ("probed0", "plain")]
    assert all(
        torch.equal(tensor, states[1]["state_dict"][key]) for key, tensor in states[0]["state_dict"].items()
    )


def test_the_time_of_probes_is_no_part_of_the_training_s(look, tmp_path, monkeypatch):
    monkeypatch.setattr(Spy, "check", lambda self, net: None)
    slow = Spy.__call__

    def sleepy(self, snapshot):
        time.sleep(0.3)
        yield from slow(self, snapshot)

    monkeypatch.setattr(Spy, "__call__", sleepy)
    look({"every_n_epochs": 1})
    assert Result.read(tmp_path / "run0").seconds < 0.3


def test_a_member_finds_what_it_finds_alone(look, tmp_path):
    when = {"at_start": "true", "every_n_epochs": 2}
    look(when, "trainer.precision=64-true", seeds=(0, 1, 2), name="together")
    for seed in range(3):
        look(when, "trainer.precision=64-true", seeds=(seed,), name="alone")
        ours, theirs = (pd.read_csv(tmp_path / f"{name}{seed}" / "probes.csv") for name in ("together", "alone"))
        pd.testing.assert_frame_equal(ours, theirs)


def test_what_is_found_is_left_in_every_form(look, tmp_path):
    scenes = look({"every_n_epochs": 2}, seeds=(0, 1))
    for k in range(2):
        folder = tmp_path / f"run{k}"
        rows = pd.read_csv(folder / "probes.csv")
        assert rows[["epoch", "step", "probe", "mode"]].drop_duplicates().to_numpy().tolist() == [
            [2, 9, "spy", "frozen"],
            [4, 19, "spy", "frozen"],
        ]
        losses = rows.loc[rows["quantity"] == "loss", "value"].tolist()
        expected = [
            snapshot.landscape("frozen").losses(snapshot.landscape("frozen").theta)[k].item() for snapshot in scenes
        ]
        assert losses == pytest.approx(expected, rel=1e-6)
        with np.load(folder / "probes.npz") as arrays:
            assert arrays["spy/frozen/row"][:, 0].tolist() == pytest.approx(losses)
            assert arrays["spy/frozen/step"].tolist() == [9, 19]
        assert Result.read(folder).probes == {"probe/spy/frozen/loss": pytest.approx(losses[-1])}
        (events,) = folder.glob("events*")
        tensorboard = EventAccumulator(str(events)).Reload()
        found = tensorboard.Scalars("probe/spy/frozen/loss")
        assert [event.step for event in found] == [9, 19]
        assert [event.value for event in found] == pytest.approx(losses)
        assert "probe/spy/frozen/values" in str(tensorboard.Tags())


def test_a_member_that_diverged_leaves_a_gap_and_then_nothing(look, tmp_path):
    sgd = ["optimizer=sgd", "optimizer.momentum=0", "model=nobn", "data.standardize=true"]
    spy = ["+probes.spy._target_=somebody.Spy", "+probes.spy.every_n_steps=2"]
    look({"every_n_steps": 2}, *sgd, "optimizer.lr=0.01", name="fine")
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
def test_a_probe_sees_the_preconditioner_as_it_was_before_the_step(look, seeds):
    overrides = ["optimizer=adam", "optimizer.lr=0.01", "trainer.precision=64-true", "trainer.max_epochs=1"]
    first, second, third = look({"every_n_steps": 2}, *overrides, seeds=seeds)
    assert first.preconditioning.diagonal.isnan().all()
    assert [snapshot.stability for snapshot in (first, second, third)] == [None, None, None]

    square = torch.zeros_like(first.preconditioning.diagonal)
    # Steps 0 and 1 were taken before the second look; the spy sees the first of them alone.
    scenes = look({"every_n_steps": 1}, *overrides, seeds=seeds, name="every")
    for updates, snapshot in enumerate(scenes[:2], start=1):
        landscape = snapshot.landscape("batch")
        square = 0.999 * square + 0.001 * landscape.gradients(landscape.theta).square()
        diagonal = ((square / (1 - 0.999**updates)).sqrt() + 1e-8) * (1 - 0.9**updates)
        torch.testing.assert_close(scenes[updates].preconditioning.diagonal, diagonal)
    torch.testing.assert_close(second.preconditioning.diagonal, diagonal)


def test_the_preconditioner_at_the_end_is_that_after_the_last_step(look):
    *_, last = look({"at_end": "true", "every_n_steps": 19}, "optimizer=adamw", "optimizer.weight_decay=0.5")
    _, before, after = look({"at_end": "true", "every_n_steps": 19}, "optimizer=adamw", name="again")
    assert last.preconditioning.decay.tolist() == [0.0]
    assert last.preconditioning.limit.tolist() == pytest.approx([(2 - 0.01 * 0.5) * 19])
    assert (after.preconditioning.diagonal != before.preconditioning.diagonal).any()


@pytest.mark.parametrize("model", ["bn", "brn", "noisy", "actnorm"])
def test_a_warm_up_moves_running_statistics_and_nothing_else(tmp_path, model):
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
