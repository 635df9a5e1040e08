import math

import pytest

from normlab.results.events import BatchWriter, flatten_hparams, hparam_group, run_end, run_start, scalars
from normlab.results.result import EpochMetrics, Objective, Result, Status
from normlab.results.series import Point, append_curves, append_probes, headlines, write_arrays

DRAWN = {"seed": 42, "generated": True, "train": 600, "val": 200, "test": 200}
"""Data summary of a run whose samples are generated."""


@pytest.fixture
def make_run(tmp_path):
    """Return a function that writes the folder of a trained run into ``tmp_path / "sweep"``."""

    def make(
        overrides,
        losses=(4.0, 2.0, 3.0),
        *,
        status=Status.FINISHED,
        metric="val/loss",
        direction="min",
        recorded="val/loss",
        seconds=1.0,
        events=False,
        probes=None,
        chance=None,
        final=None,
        data=DRAWN,
        replicate="data",
        max_epochs=3,
        started="",
        **config,
    ):
        """Write a run and return its folder.

        Args:
            overrides: the overrides, separated by spaces.
            losses: the validation loss of each epoch.
            final: means over the last tenth of the epochs. By default the last loss, twice this loss on the test
                split and half of it on the training split; empty in records of earlier versions.
            data: the value of ``Result.data``; empty in records of earlier versions.
            replicate: the key ``replicate``; None in records of earlier versions.
            max_epochs: the budget.
            config: further keys of the configuration, such as ``margin``.
        """
        settings = dict(override.split("=", 1) for override in overrides.split())
        name = overrides.replace(" ", ",")
        folder = tmp_path / "sweep" / name
        (folder / ".hydra").mkdir(parents=True)
        if final is None:
            kind, end = recorded.partition("/")[2], losses[-1] if losses else math.nan
            final = {recorded: end, f"test/{kind}": 2 * end, f"train_eval/{kind}": end / 2}
        config |= {} if replicate is None else {"replicate": replicate}
        config |= {
            "seed": int(settings.get("seed", 0)),
            "data": {"seed": 42, "batch_size": int(settings.get("data.batch_size", 128))},
            "optimizer": {"lr": float(settings.get("optimizer.lr", 0.01))},
            "trainer": {"max_epochs": max_epochs},
            "target": float(settings["target"]) if "target" in settings else None,
        }
        choices = {"data": "fitness", "net": "mlp", "model": settings.get("model", "bn"), "optimizer": "adam"}
        points = [
            Point(epoch, 5 * epoch, 0.0, {"train/loss": loss / 2, "train/lr": 0.01, recorded: loss})
            for epoch, loss in enumerate(losses, 1)
        ]
        append_curves(folder, points)
        moments = [EpochMetrics(point.epoch, point.step, point.metrics) for point in points]
        known = [moment for moment in moments if math.isfinite(moment.metrics.get(metric, math.nan))]
        better = min if direction == "min" else max
        best = better(known, key=lambda moment: moment.metrics[metric]) if known else None
        worst = math.inf if direction == "min" else -math.inf
        value = best.metrics[metric] if best and status == Status.FINISHED else worst
        test = {"test/loss": 2 * losses[-1]} if status == Status.FINISHED else {}
        result = Result(
            name=name,
            status=status,
            config=config,
            choices=choices,
            overrides=overrides.split(),
            objective=Objective(metric, direction, value),
            best=best,
            last=moments[-1] if moments else None,
            test=test,
            final=final if status == Status.FINISHED else {},
            data=data,
            started=started,
            epochs=len(losses),
            steps=5 * len(losses),
            seconds=seconds,
            probes=probes or {},
            chance=chance,
        )
        result.write(folder)
        if events:
            writer = BatchWriter(folder)
            start = run_start(flatten_hparams(config, choices), hparam_group(config, choices))
            for event in (start, *map(scalars, points), run_end(status == Status.FINISHED)):
                writer.add_event(event)
            writer.close()
        return folder

    return make


@pytest.fixture
def probed(make_run):
    """Return a function that writes a run with its probe measurements."""

    def make(overrides, measurements, **how):
        folder = make_run(overrides, **how)
        append_probes(folder, measurements)
        write_arrays(folder, measurements)
        result = Result.read(folder)
        result.probes = headlines(measurements)
        result.write(folder)
        return folder

    return make
