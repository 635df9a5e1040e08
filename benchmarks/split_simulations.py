"""Simulations of replicates that are splits of one table of 178 rows, through ``find``.

Each function takes the number of tables and a generator, and returns tables by their titles.
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
    """Return log losses of two learners of equal expected loss on splits of tables, ``(size, 2, splits)``.

    The target is the sum of all inputs and noise, all independent and standard normal. One learner is ridge
    regression on one half of the inputs, the other on the other half. Exchanging the halves leaves the law of a
    table and of its random splits the same and turns the difference around: it is symmetric about 0, whatever the
    splits share. On one table either learner may be ahead, and on all of its splits at once.
    """
    x = generator.normal(size=(size, ROWS, INPUTS))
    y = x.sum(axis=-1) + generator.normal(size=(size, ROWS))
    halves = (slice(INPUTS // 2), slice(INPUTS // 2, None))
    found = np.empty((size, 2, splits))
    for split in range(splits):
        order = generator.permuted(np.tile(np.arange(ROWS), (size, 1)), axis=1)
        xs, ys = np.take_along_axis(x, order[..., None], axis=1), np.take_along_axis(y, order, axis=1)
        for learner, half in enumerate(halves):
            found[:, learner, split] = np.log(ridge_error(xs[..., half], ys))
    return found


def ridge_error(x: Numbers, y: Numbers) -> Numbers:
    """Return the mean squared error on the last rows of ridge regression on the first, ``(N,)``."""
    past, target = x[:, :TRAIN], y[:, :TRAIN, None]
    gram = past.transpose(0, 2, 1) @ past + PENALTY * np.eye(x.shape[-1])
    weights = np.linalg.solve(gram, past.transpose(0, 2, 1) @ target)
    return np.asarray((((x[:, -TEST:] @ weights)[..., 0] - y[:, -TEST:]) ** 2).mean(axis=1))


def splits(size: int, generator: np.random.Generator) -> Tables:
    """Measure how often learners of equal expected loss are declared different, and learners that differ."""
    tables: Tables = {}
    for count in (12, 24, 100):
        logs = learners(size, generator, count)
        spread = np.sqrt((logs[:, 1] - logs[:, 0]).var(axis=1, ddof=1).mean())
        for shift in (0.0, 1.0, 1.5, 2.0) if count < 100 else (0.0,):
            found = [
                claims(analyse(runs, generator))
                for runs in (
                    pair((own[1] - own[0] + shift * spread) / UNIT, own[0] / UNIT, Scope.SPLIT) for own in logs
                )
            ]
            for title, rate in zip(("over these splits", "over new tables"), np.mean(found, axis=0), strict=True):
                name = f"learners {shift} sd apart" if shift else "learners of equal expected loss"
                tables.setdefault(f"{name}: declared", {}).setdefault(title, {})[f"J = {count}"] = float(rate)
    detectable = {
        f"{train} to {test} rows": {
            f"difference, J = {count}": corrected_t_detectable(count, train, test) for count in (12, 24, 100)
        }
        for train, test in ((60, 20), (75, 25), (80, 20), (90, 10))
    }
    return tables | {"difference in sd that the corrected t finds with 80 % power": detectable}


def claims(found: Analysis) -> tuple[bool, bool]:
    """Return whether a difference is declared over splits of the table, and is said to hold over new tables."""
    row = found.comparisons.iloc[0]
    return bool(row["declared"]), bool(row["declared"] and row["new_table_p_adjusted"] <= ALPHA)


def settings(size: int, generator: np.random.Generator) -> Tables:
    """Compare eight settings with one that is equal in truth, and count declarations in either direction."""
    eight = Sweep((1, 8), 18)
    frame = eight.frame()
    on_rows = frame.assign(scope=Scope.SPLIT)
    sources: dict[str, Iterator[pd.DataFrame]] = {
        "draws, tuning apart": (eight.fill(frame, generator) for _ in range(size)),
        "seeds, tuning apart": (eight.fill(frame.assign(scope=Scope.SEED), generator) for _ in range(size)),
        "splits, chosen within": (replace(eight, luck=0.0).fill(on_rows, generator) for _ in range(size)),
        "splits that share rows, chosen within": (row_losses(on_rows, generator) for _ in range(size)),
        "splits that share rows, tuning apart": (row_losses(frame, generator) for _ in range(size)),
        "splits, chosen within, lucky runs": (eight.fill(on_rows, generator) for _ in range(size)),
    }
    table = {title: rates(sweeps, directions, generator) for title, sweeps in sources.items()}
    return {"8 settings against 1: declared": table}


def row_losses(frame: pd.DataFrame, generator: np.random.Generator) -> pd.DataFrame:
    """Return runs of which each setting has its own loss on each row of a table: means over the rows of a split.

    All losses have the same law. A setting that does well on some rows does so in every split that tests on them.
    """
    setting = frame.groupby(["model", "optimizer.lr"], sort=False).ngroup().to_numpy()
    seed = frame["seed"].to_numpy(dtype=int)
    losses = np.exp(0.5 * generator.normal(size=(setting.max() + 1, ROWS)))
    order = generator.permuted(np.tile(np.arange(ROWS), (seed.max() + 1, 1)), axis=1)[seed]
    own = losses[setting[:, None], order]
    return frame.assign(validation=own[:, TRAIN:-TEST].mean(axis=1), **{LOSS.name: own[:, -TEST:].mean(axis=1)})


def directions(found: Analysis) -> dict[str, float]:
    """Return in which direction a difference is declared, whether it holds over new tables, and the effect."""
    row = found.comparisons.iloc[0]
    declared, new_tables = claims(found)
    return {
        "better": declared and row["verdict"] == BETTER,
        "worse": declared and row["verdict"] == WORSE,
        "over new tables": new_tables if row["scope"] == Scope.SPLIT else np.nan,
        "mean effect": float(row["estimate"]) - 1,
    }
