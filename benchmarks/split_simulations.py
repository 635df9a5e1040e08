"""Simulations of replicates that are splits of one table of 178 rows, analyzed by ``analyze``.

Each simulation takes the number of repetitions and a generator, and returns tables of rates by title.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
from simulated_sweeps import LOSS, TEST, TRAIN, UNIT, Numbers, Sweep, analyse, pair, rates
from simulation_tables import Tables

from normlab.stats.analysis import Analysis
from normlab.stats.comparison import ALPHA, BETTER, WORSE
from normlab.stats.design import Scope
from normlab.stats.paired_tests import corrected_t_detectable

ROWS, INPUTS, PENALTY = 178, 10, 1.0


def learners(size: int, generator: np.random.Generator, splits: int) -> Numbers:
    """Return test log losses of two learners with equal expected loss, ``(size, 2, splits)``.

    Each of ``size`` tables has ``splits`` random splits. The target is the sum of all inputs and noise, all
    independent and standard normal. One learner is ridge regression on the first half of the inputs, the other on
    the second half. Exchanging the halves does not change the distribution of tables and splits but negates the
    difference, which is therefore symmetric about 0 even though splits share rows. On one table, either learner
    may be better on all splits.
    """
    x = generator.normal(size=(size, ROWS, INPUTS))
    y = x.sum(axis=-1) + generator.normal(size=(size, ROWS))
    halves = (slice(INPUTS // 2), slice(INPUTS // 2, None))
    log_losses = np.empty((size, 2, splits))
    for split in range(splits):
        order = generator.permuted(np.tile(np.arange(ROWS), (size, 1)), axis=1)
        xs, ys = np.take_along_axis(x, order[..., None], axis=1), np.take_along_axis(y, order, axis=1)
        for learner, half in enumerate(halves):
            log_losses[:, learner, split] = np.log(ridge_error(xs[..., half], ys))
    return log_losses


def ridge_error(x: Numbers, y: Numbers) -> Numbers:
    """Return the test mean squared error of ridge regression, ``(N,)``, for x ``(N, rows, inputs)``.

    The first ``TRAIN`` rows are training rows, the last ``TEST`` rows test rows.
    """
    x_train, target = x[:, :TRAIN], y[:, :TRAIN, None]
    gram = x_train.transpose(0, 2, 1) @ x_train + PENALTY * np.eye(x.shape[-1])
    weights = np.linalg.solve(gram, x_train.transpose(0, 2, 1) @ target)
    return np.asarray((((x[:, -TEST:] @ weights)[..., 0] - y[:, -TEST:]) ** 2).mean(axis=1))


def splits(size: int, generator: np.random.Generator) -> Tables:
    """Estimate how often learners with equal and with different expected losses are declared different."""
    tables: Tables = {}
    for count in (12, 24, 100):
        logs = learners(size, generator, count)
        spread = np.sqrt((logs[:, 1] - logs[:, 0]).var(axis=1, ddof=1).mean())
        for shift in (0.0, 1.0, 1.5, 2.0) if count < 100 else (0.0,):
            claimed = [
                claims(analyse(runs, generator))
                for runs in (
                    pair((second - first + shift * spread) / UNIT, first / UNIT, Scope.SPLIT)
                    for first, second in logs
                )
            ]
            for title, rate in zip(
                ("over these splits", "over new tables"), np.mean(claimed, axis=0), strict=True
            ):
                name = f"learners {shift} sd apart" if shift else "learners of equal expected loss"
                tables.setdefault(f"{name}: declared", {}).setdefault(title, {})[f"J = {count}"] = float(rate)
    detectable = {
        f"{train} training, {test} test rows": {
            f"J = {count}": corrected_t_detectable(count, train, test) for count in (12, 24, 100)
        }
        for train, test in ((60, 20), (75, 25), (80, 20), (90, 10))
    }
    return tables | {"difference in sd that the corrected t finds with 80 % power": detectable}


def claims(analysis: Analysis) -> tuple[bool, bool]:
    """Return two claims: a difference over splits of this table, and one over new tables."""
    row = analysis.comparisons.iloc[0]
    return bool(row["declared"]), bool(row["declared"] and row["new_table_p_adjusted"] <= ALPHA)


def settings(size: int, generator: np.random.Generator) -> Tables:
    """Estimate how often an arm with eight equal settings is declared better or worse than one with one."""
    eight = Sweep((1, 8), 18)
    frame = eight.frame()
    on_rows = frame.assign(scope=Scope.SPLIT)
    sources: dict[str, Iterator[pd.DataFrame]] = {
        "draws, separate tuning seeds": (eight.fill(frame, generator) for _ in range(size)),
        "seeds, separate tuning seeds": (
            eight.fill(frame.assign(scope=Scope.SEED), generator) for _ in range(size)
        ),
        "splits, tuned per split": (replace(eight, luck=0.0).fill(on_rows, generator) for _ in range(size)),
        "splits that share rows, tuned per split": (row_losses(on_rows, generator) for _ in range(size)),
        "splits that share rows, separate tuning seeds": (row_losses(frame, generator) for _ in range(size)),
        "splits, tuned per split, correlated losses": (eight.fill(on_rows, generator) for _ in range(size)),
    }
    table = {title: rates(sweeps, directions, generator) for title, sweeps in sources.items()}
    return {"8 settings against 1: declared": table}


def row_losses(frame: pd.DataFrame, generator: np.random.Generator) -> pd.DataFrame:
    """Draw runs whose losses are means of per-row losses of their setting, over the rows of a split.

    All per-row losses have the same distribution. A setting with low losses on some rows has them in every split
    that tests on these rows.
    """
    setting = frame.groupby(["model", "optimizer.lr"], sort=False).ngroup().to_numpy()
    seed = frame["seed"].to_numpy(dtype=int)
    losses = np.exp(0.5 * generator.normal(size=(setting.max() + 1, ROWS)))
    order = generator.permuted(np.tile(np.arange(ROWS), (seed.max() + 1, 1)), axis=1)[seed]
    by_row = losses[setting[:, None], order]
    validation, test = by_row[:, TRAIN:-TEST].mean(axis=1), by_row[:, -TEST:].mean(axis=1)
    return frame.assign(validation=validation, **{LOSS.name: test})


def directions(analysis: Analysis) -> dict[str, float]:
    """Return the direction of a declared difference, its claim over new tables (1 or 0), and the effect."""
    row = analysis.comparisons.iloc[0]
    declared, new_tables = claims(analysis)
    return {
        "better": declared and row["verdict"] == BETTER,
        "worse": declared and row["verdict"] == WORSE,
        "over new tables": new_tables if row["scope"] == Scope.SPLIT else np.nan,
        "mean effect": float(row["estimate"]) - 1,
    }
