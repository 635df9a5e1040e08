"""Frames of runs whose truth is known, and their analysis by ``find``, the way of every sweep of trained nets.

The log of a loss is what all runs of a replicate share, what a setting costs, and noise with standard deviation 1:
*luck* is the share of its variance that a run keeps from validation to test. Log losses count in ``UNIT``, so that
all are positive and near 1. Paired differences then have the standard deviation ``PAIRED`` at equal settings.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from normlab.stats.analysis import Analysis, analyze
from normlab.stats.design import GENERALIZATION, Metric, Scope, design_of
from normlab.stats.looks import History

Numbers = NDArray[np.float64]
Judge = Callable[[Analysis], dict[str, float]]
"""Numbers read from an analysis, 1 or 0 for rates."""
UNIT, PAIRED = 0.1, 2**0.5
GRID = [f"{0.001 * 2**k:g}" for k in range(8)]
BEST, COST = 2, 0.4
"""The place of the best learning rate, and what each step away from it costs where rates matter, in sd."""
BASELINE, PANEL, DATA_SEED = "arm0", "data.batch_size", "data.seed"
KEYS = ("model", "optimizer.lr", PANEL, DATA_SEED)
CHOICE, LOSS = Metric("val/loss", "min"), Metric("test/loss", "min", GENERALIZATION)
ACCURACY = Metric("test/acc", "max", GENERALIZATION)
NO_CURVES = pd.DataFrame({"run": [], "step": [], "seconds": [], "value": []})
TRAIN, TEST = 106, 36
"""Training and test rows of a split of 178, as of the wine data; 36 more are for validation."""


def noise(kind: str, generator: np.random.Generator, size: tuple[int, ...]) -> Numbers:
    """Return noise with mean 0 and standard deviation 1: normal, skewed (log-normal) or heavy-tailed (t, 3 df)."""
    if kind == "heavy-tailed":
        return generator.standard_t(3, size=size) / 3**0.5
    z = generator.normal(size=size)
    return z if kind == "normal" else (np.exp(z) - np.exp(0.5)) / np.sqrt(np.e * (np.e - 1))


@dataclass(frozen=True)
class Sweep:
    """A simulated sweep of arms that are the same.

    Attributes:
        rates: the number of learning rates of each arm, the baseline first; a single one is the best.
        seeds: of each arm; one number for all.
        scope: what the replicates are.
        panels: batch sizes.
        splits: data seeds, which are pooled.
        kind: of noise.
        steep: whether learning rates matter.
        luck: the share of a run's variance that validation and test have in common.
        diverging, untrained: shares of runs.
        coarse: whether losses are rounded to one standard deviation, and accuracy is compared as well.
    """

    rates: tuple[int, ...] = (1, 1)
    seeds: int | tuple[int, ...] = 12
    scope: Scope = Scope.DRAW
    panels: int = 1
    splits: int = 1
    kind: str = "normal"
    steep: bool = False
    luck: float = 0.5
    diverging: float = 0.0
    untrained: float = 0.0
    coarse: bool = False

    @property
    def metrics(self) -> list[Metric]:
        """The metrics that are compared."""
        return [LOSS, ACCURACY] if self.coarse else [LOSS]

    def frame(self) -> pd.DataFrame:
        """Return the runs without values."""
        seeds = self.seeds if isinstance(self.seeds, tuple) else (self.seeds,) * len(self.rates)
        rows = [
            (f"arm{arm}", rate, str(8 * 2**panel), str(split), seed)
            for arm, count in enumerate(self.rates)
            for rate in (GRID[BEST : BEST + 1] if count == 1 else GRID[:count])
            for panel in range(self.panels)
            for split in range(self.splits)
            for seed in range(seeds[arm])
        ]
        frame = pd.DataFrame(rows, columns=[*KEYS, "seed"]).astype({"seed": "Int64"})
        return frame.assign(status="finished", scope=self.scope, train_rows=TRAIN, test_rows=TEST)

    def fill(self, frame: pd.DataFrame, generator: np.random.Generator, shift: float = 0.0) -> pd.DataFrame:
        """Return runs with values drawn.

        Args:
            frame: from ``frame``.
            generator: what is drawn from.
            shift: of all arms but the baseline, in standard deviations of the paired differences.
        """
        seed = frame["seed"].to_numpy(dtype=int)
        place = frame["optimizer.lr"].map({rate: place for place, rate in enumerate(GRID)}).to_numpy()
        cost = COST * np.abs(place - BEST) * self.steep + shift * (frame["model"] != BASELINE).to_numpy()
        run, validation, test = noise(self.kind, generator, (3, len(frame)))
        common = generator.normal(size=seed.max() + 1)[seed] + PAIRED * cost + self.luck**0.5 * run
        logs = common + (1 - self.luck) ** 0.5 * np.stack([validation, test])
        if self.coarse:
            logs = np.round(logs)
        lost, flat = (generator.random(len(frame)) < share for share in (self.diverging, self.untrained))
        losses = np.where(lost, np.inf, np.where(flat, 1.5, np.exp(UNIT * logs)))
        return frame.assign(
            validation=losses[0],
            untrained=flat & ~lost,
            status=np.where(lost, "diverged", "finished"),
            **{LOSS.name: losses[1], ACCURACY.name: np.where(lost, -np.inf, np.round(0.8 - UNIT * logs[1], 1))},
        )


def pair(differences: Numbers, shared: Numbers, scope: Scope = Scope.DRAW) -> pd.DataFrame:
    """Return the runs of two arms with given differences of log losses, ``(..., n)``, of n replicates.

    Args:
        differences: of the arm minus the baseline, in ``UNIT``; a first axis of two or more are panels.
        shared: log losses of the baseline, of the same shape.
        scope: what the replicates are.
    """
    logs = np.stack([shared, shared + differences]).reshape(2, -1, differences.shape[-1])
    arm, panel, seed = (index.ravel() for index in np.indices(logs.shape))
    losses = np.exp(UNIT * logs).ravel()
    return pd.DataFrame(
        {
            "model": np.array([BASELINE, "arm1"])[arm],
            "optimizer.lr": "0.1",
            PANEL: np.array([str(8 * 2**k) for k in range(logs.shape[1])])[panel],
            DATA_SEED: "0",
            "seed": pd.array(seed, dtype="Int64"),
            "status": "finished",
            "scope": scope,
            "train_rows": TRAIN,
            "test_rows": TEST,
            "validation": losses,
            LOSS.name: losses,
        }
    )


def analyse(
    runs: pd.DataFrame,
    generator: np.random.Generator,
    metrics: list[Metric] | None = None,
    history: History | None = None,
    margin: float | None = None,
) -> Analysis:
    """Analyse runs as the report of a sweep does."""
    keys = [key for key in KEYS if runs[key].nunique() > 1]
    design = design_of(runs, keys, metrics or [LOSS], CHOICE, baseline=BASELINE, margin=margin)
    return analyze(runs, NO_CURVES, design, generator, resamples=0, history=history)


def declared(found: Analysis) -> dict[str, float]:
    """Return whether any difference is declared."""
    return {"declared": bool(found.comparisons["declared"].any())}


def rates(sweeps: Iterable[pd.DataFrame], judge: Judge, generator: np.random.Generator) -> dict[str, float]:
    """Analyse sweeps, and return the mean of each number that is read of the analyses."""
    judged = pd.DataFrame([judge(analyse(runs, generator)) for runs in sweeps])
    return {str(name): float(mean) for name, mean in judged.astype(float).mean().items()}


def declared_rate(
    sweep: Sweep,
    size: int,
    generator: np.random.Generator,
    shift: float = 0.0,
    history: Callable[[], History | None] = lambda: None,
) -> float:
    """Return how often any difference is declared.

    Args:
        sweep: its design.
        size: the number of sweeps.
        generator: what is drawn from.
        shift: as in ``Sweep.fill``.
        history: makes the history of each sweep's folder; without one, looks do not count.
    """
    frame = sweep.frame()
    sweeps = (sweep.fill(frame, generator, shift) for _ in range(size))
    found = [analyse(runs, generator, sweep.metrics, history()) for runs in sweeps]
    return float(np.mean([declared(each)["declared"] for each in found]))
