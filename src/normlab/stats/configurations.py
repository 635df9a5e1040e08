"""The arms of a sweep: runs that differ in their seed alone are replicates of one arm.

A frame of runs has a row per run and the columns ``arm``, ``seed``, ``status`` (finished, diverged, stopped
or failed), ``untrained`` (a flag), ``best`` (of the optimized metric), its means at the end of the training on
each split, see ``ENDS``, and ``seconds``. A diverged run has the worst infinity as its values. One that was
stopped or failed has NaN: its values are not known.
"""

import re
from collections.abc import Iterable

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from normlab.config.schema import REPORT_KEYS

SEED, TARGET = "seed", "target"
NO_SETTINGS = (SEED, TARGET, "retrain", "timing", *REPORT_KEYS)
"""Keys that say which replicate a run is, what it is judged by, or how its folder is treated."""
ABSENT = "–"
"""The setting of a key that a run lacks."""
ENDS = ("train_eval", "val", "test")
"""Columns of runs: means over the last tenth of the epochs, the first of the training split in evaluation mode."""
STATUSES = ("finished", "diverged", "stopped", "failed")


def varied_keys(given: pd.DataFrame, settings: pd.DataFrame) -> list[str]:
    """Return the keys in which the runs of a sweep differ, apart from their seed and what they are judged by.

    A key that was given the same text everywhere does not vary, although it may come to something else in
    every run, as ``data.seed=${seed}`` does.

    Args:
        given: what was typed, (runs x keys); missing where a run was not given the key.
        settings: what the key came to, (runs x keys); missing where that is not known.
    """
    return [
        str(key)
        for key in given
        if key not in NO_SETTINGS and given[key].nunique(dropna=False) > 1 and settings[key].nunique() > 1
    ]


def natural(text: str) -> tuple[float, list[str | float]]:
    """Return a sort key of settings: numbers by size, and before words.

    >>> sorted(["nobn", "1e-1", "[100]", "bn, eps=0.1", "bn", "0.01", "[20]", "bn, eps=0.05"], key=natural)
    ['0.01', '1e-1', '[20]', '[100]', 'bn', 'bn, eps=0.05', 'bn, eps=0.1', 'nobn']
    """
    try:
        return float(text), []
    except ValueError:
        parts = enumerate(re.split(r"([0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)", text))
        return np.inf, [float(part) if place % 2 else part for place, part in parts]


def configuration_label(keys: Iterable[str], settings: Iterable[str]) -> str:
    """Return an arm's name.

    >>> configuration_label(["model", "optimizer.lr"], ["bn", "0.01"])
    'model=bn, optimizer.lr=0.01'
    """
    return ", ".join(f"{key}={setting}" for key, setting in zip(keys, settings, strict=True))


def replicates(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs whose best value is known, one per seed of an arm: a repetition is no evidence."""
    return runs[runs["best"].notna()].drop_duplicates(["arm", SEED])


def mean_and_error(values: ArrayLike) -> tuple[float, float]:
    """Return the mean of ``(n,)`` values and its standard error, ``s / √n``, where s² is divided by n − 1.

    NaN is left out. An infinite value makes the mean infinite; then, and below two values, the error is NaN.
    """
    x = np.asarray(values, dtype=float)
    x = x[~np.isnan(x)]
    if len(x) == 0:
        return np.nan, np.nan
    if len(x) == 1 or not np.isfinite(x).all():
        return float(x.mean()), np.nan
    return float(x.mean()), float(x.std(ddof=1) / np.sqrt(len(x)))


def summarize(runs: pd.DataFrame) -> pd.DataFrame:
    """Return a row per arm, in the order in which the arms appear among the ``runs``.

    Means are over the seeds whose runs came to their end. A diverged run is among them, with its infinity: a
    mean of those that happened to survive would favour the arm that loses its worst runs. ``seconds`` is the mean
    over finished runs.
    """
    rows = {arm: configuration_summary(group) for arm, group in runs.groupby("arm", sort=False)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("arm")


def target_summary(runs: pd.DataFrame) -> pd.DataFrame:
    """Return when each arm reaches the target, by the column ``epochs_to_target``, a row per arm.

    ``epochs_to_target`` is the median over the ``timed`` seeds, those of which it is known. Of them ``reached``
    got there; where half or more did not, it is infinite.
    """
    times = replicates(runs).groupby("arm")["epochs_to_target"]
    known = pd.DataFrame(
        {
            "epochs_to_target": times.median(),
            "timed": times.count(),
            "reached": times.agg(lambda epochs: np.isfinite(epochs).sum()),
        }
    )
    counts = ["timed", "reached"]
    return known.reindex(runs["arm"].unique()).fillna(dict.fromkeys(counts, 0)).astype(dict.fromkeys(counts, int))


def configuration_summary(arm: pd.DataFrame) -> dict[str, float]:
    """Return the row of one arm from its runs."""
    counted = replicates(arm)
    means = {name: mean_and_error(counted[name]) for name in ("best", *ENDS)}
    return {
        "runs": len(arm),
        **{status: int((arm["status"] == status).sum()) for status in STATUSES},
        "seeds": len(counted),
        "untrained": int(arm["untrained"].sum()),
        **{f"{name}_mean": mean for name, (mean, _) in means.items()},
        **{f"{name}_se": error for name, (_, error) in means.items()},
        "seconds": mean_and_error(arm.loc[arm["status"] == "finished", "seconds"])[0],
    }
