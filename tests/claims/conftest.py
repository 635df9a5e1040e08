"""Sweeps with given values, and records of runs that were not trained."""

import math

import pytest
from tests.claims.planted import FakeSweep

from normlab.results.result import EpochMetrics, Objective, Result, Status
from normlab.results.series import Point, ProbeRecord, append_curves, append_probes

DRAWN = {"seed": 42, "generated": True, "train": 600, "val": 200, "test": 200}
"""Data summary of a run whose samples are generated."""


@pytest.fixture
def fake():
    """Return the class of sweeps with given values."""
    return FakeSweep


@pytest.fixture
def make_run(tmp_path):
    """Return a function that writes the record and the validation curve of a run into ``tmp_path / "sweep"``."""

    def make(
        overrides,
        losses=(4.0, 2.0, 3.0),
        *,
        status=Status.FINISHED,
        data=DRAWN,
        probes=None,
        train_eval=None,
        chance=None,
    ):
        settings = dict(override.split("=", 1) for override in overrides.split())
        folder = tmp_path / "sweep" / overrides.replace(" ", ",")
        (folder / ".hydra").mkdir(parents=True)
        config = {
            "seed": int(settings["seed"]),
            "replicate": "data",
            "data": {"seed": 42, "batch_size": int(settings.get("data.batch_size", 128))},
            "optimizer": {"lr": float(settings.get("optimizer.lr", 0.01))},
            "trainer": {"max_epochs": len(losses)},
        }
        points = [Point(epoch, 5 * epoch, 0.0, {"val/loss": loss}) for epoch, loss in enumerate(losses, 1)]
        append_curves(folder, points)
        for name, values in (probes or {}).items():
            probe, mode, number = name.split("/", 2)
            append_probes(
                folder, (ProbeRecord(k, 5 * k, 0.0, probe, mode, {number: v}) for k, v in enumerate(values))
            )
        final = {"val/loss": losses[-1], "test/loss": 2 * losses[-1]}
        final |= {} if train_eval is None else {"train_eval/loss": train_eval}
        last, finished = (
            EpochMetrics(len(losses), 5 * len(losses), {"val/loss": losses[-1]}),
            status == Status.FINISHED,
        )
        Result(
            name=folder.name,
            status=status,
            config=config,
            choices={"data": "fitness", "net": "mlp", "model": settings["model"], "optimizer": "adam"},
            overrides=overrides.split(),
            objective=Objective("val/loss", "min", losses[-1] if finished else math.inf),
            best=last,
            last=last,
            final=final if finished else {},
            data=data,
            epochs=len(losses),
            steps=5 * len(losses),
            chance=chance,
        ).write(folder)

    return make
