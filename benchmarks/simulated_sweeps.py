"""Simulated runs of sweeps with known truth, and their analysis by ``analyze``, as for every sweep.

A log loss is the sum of a part shared by all runs of a replicate, the cost of a setting, and noise with standard
deviation 1. *luck* is the share of the noise variance that the validation and test losses of a run have in common.
Log losses are in units of ``UNIT``, so losses are positive and near 1. At equal settings, paired differences have
standard deviation ``PAIRED``.
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
"""A function that reads numbers from an analysis; 1 or 0 where their mean is a rate."""
UNIT, PAIRED = 0.1, 2**0.5
GRID = [f"{0.001 * 2**k:g}" for k in range(8)]
BEST, COST = 2, 0.4
"""Index of the best learning rate in ``GRID``, and the cost in sd of each step away from it in steep sweeps."""
BASELINE, PANEL, DATA_SEED = "arm0", "data.batch_size", "data.seed"
KEYS = ("model", "optimizer.lr", PANEL, DATA_SEED)
CHOICE, LOSS = Metric("val/loss", "min"), Metric("test/loss", "min", GENERALIZATION)
ACCURACY = Metric("test/acc", "max", GENERALIZATION)
NO_CURVES = pd.DataFrame({"run": [], "step": [], "seconds": [], "value": []})
TRAIN, TEST = 106, 36
"""Training and test rows of a split of 178, as in the wine data; 36 more are validation rows."""


def noise(kind: str, generator: np.random.Generator, size: tuple[int, ...]) -> Numbers:
    """Return noise with mean 0 and sd 1: normal, skewed (log-normal) or heavy-tailed (t, 3 df)."""
    if kind == "heavy-tailed":
        return generator.standard_t(3, size=size) / 3**0.5
    z = generator.normal(size=size)
    return z if kind == "normal" else (np.exp(z) - np.exp(0.5)) / np.sqrt(np.e * (np.e - 1))


@dataclass(frozen=True)
class Sweep:
    """The design of a simulated sweep of identical arms.

    Attributes:
        rates: number of learning rates of each arm, the baseline first; a single one is the best rate.
        seeds: number of seeds of each arm, or one number for all.
        scope: the population that the replicates sample.
        panels: number of batch sizes.
        splits: number of data seeds, which are pooled.
        kind: distribution of the noise, see :func:`noise`.
        steep: whether the loss depends on the learning rate.
        luck: share of the noise variance that the validation and test losses of a run have in common.
        diverging, untrained: shares of runs that diverge or do not train.
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
        """The compared metrics."""
        return [LOSS, ACCURACY] if self.coarse else [LOSS]

    def frame(self) -> pd.DataFrame:
        """Return one row per run, without metrics."""
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
        """Draw metrics and statuses for the runs of a frame.

        Args:
            frame: the result of :meth:`frame`.
            generator: the source of randomness.
            shift: effect of all arms but the baseline, in standard deviations of the paired differences.
        """
        seed = frame["seed"].to_numpy(dtype=int)
        index = frame["optimizer.lr"].map({rate: index for index, rate in enumerate(GRID)}).to_numpy()
        cost = COST * np.abs(index - BEST) * self.steep + shift * (frame["model"] != BASELINE).to_numpy()
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
    """Return the runs of two arms for given paired differences of log losses.

    Args:
        differences: arm minus baseline for n replicates, in ``UNIT``, ``(n,)`` or ``(panels, n)``.
        shared: log losses of the baseline, of the same shape.
        scope: the population that the replicates sample.
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
    """Analyze runs like the report of a sweep, without bootstrap resamples."""
    keys = [key for key in KEYS if runs[key].nunique() > 1]
    design = design_of(runs, keys, metrics or [LOSS], CHOICE, baseline=BASELINE, margin=margin)
    return analyze(runs, NO_CURVES, design, generator, resamples=0, history=history)


def declared(analysis: Analysis) -> dict[str, float]:
    """Return 1 under ``declared`` if any difference is declared, else 0."""
    return {"declared": bool(analysis.comparisons["declared"].any())}


def rates(sweeps: Iterable[pd.DataFrame], judge: Judge, generator: np.random.Generator) -> dict[str, float]:
    """Analyze sweeps, and return the mean of each number that ``judge`` reads from the analyses."""
    judged = pd.DataFrame([judge(analyse(runs, generator)) for runs in sweeps])
    return {str(name): float(mean) for name, mean in judged.astype(float).mean().items()}


def declared_rate(
    sweep: Sweep,
    size: int,
    generator: np.random.Generator,
    shift: float = 0.0,
    history: Callable[[], History | None] = lambda: None,
) -> float:
    """Return the share of simulated sweeps in which any difference is declared.

    Args:
        sweep: the design.
        size: number of sweeps.
        generator: the source of randomness.
        shift: as in ``Sweep.fill``.
        history: creates the history of looks of each sweep's folder; None disables the correction for looks.
    """
    frame = sweep.frame()
    sweeps = (sweep.fill(frame, generator, shift) for _ in range(size))
    analyses = [analyse(runs, generator, sweep.metrics, history()) for runs in sweeps]
    return float(np.mean([declared(analysis)["declared"] for analysis in analyses]))
