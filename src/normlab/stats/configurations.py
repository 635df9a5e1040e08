"""The configurations of a sweep and the summary of their runs; see :func:`summarize`.

Runs that differ only in their seed are replicates of one configuration. A frame of runs has a row per run and the
columns ``configuration``, ``seed``, ``status`` (finished, diverged, stopped or failed), ``untrained`` (a flag),
``best`` (the best value of the optimized metric), the means of that metric over the last epochs on each split (see
``ENDS``), and ``seconds``. The values of a diverged run are infinite, with the bad sign. Those of a stopped or
failed run are NaN.
"""

import re
from collections.abc import Iterable

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from normlab.config.schema import REPORT_KEYS

SEED, TARGET = "seed", "target"
NO_SETTINGS = (SEED, TARGET, "retrain", "timing", *REPORT_KEYS)
"""Keys that do not define a configuration: the seed, the options of the analysis, and the use of the folder."""
ABSENT = "–"
"""The setting of a key that a run lacks."""
ENDS = ("train_eval", "val", "test")
"""Columns of means over the last tenth of the epochs; ``train_eval`` is the training split in evaluation mode."""
STATUSES = ("finished", "diverged", "stopped", "failed")


def varied_keys(given: pd.DataFrame, settings: pd.DataFrame) -> list[str]:
    """Return the keys in which the runs of a sweep differ, without ``NO_SETTINGS``.

    A key with the same override in all runs does not vary, even if it resolves to different values, as
    ``data.seed=${seed}`` does.

    Args:
        given: the overrides, ``(runs x keys)``; missing if a run does not override the key.
        settings: the resolved values, ``(runs x keys)``; missing if unknown.
    """
    return [
        str(key)
        for key in given
        if key not in NO_SETTINGS and given[key].nunique(dropna=False) > 1 and settings[key].nunique() > 1
    ]


def natural(text: str) -> tuple[float, list[str | float]]:
    """Return a natural sort key: numbers by value, then words, with the numbers inside them by value.

    >>> sorted(["nobn", "1e-1", "[100]", "bn, eps=0.1", "bn", "0.01", "[20]", "bn, eps=0.05"], key=natural)
    ['0.01', '1e-1', '[20]', '[100]', 'bn', 'bn, eps=0.05', 'bn, eps=0.1', 'nobn']
    """
    try:
        return float(text), []
    except ValueError:
        parts = enumerate(re.split(r"([0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)", text))
        return np.inf, [float(part) if k % 2 else part for k, part in parts]


def configuration_label(keys: Iterable[str], settings: Iterable[str]) -> str:
    """Return the name of a configuration (or panel) from its keys and settings.

    >>> configuration_label(["model", "optimizer.lr"], ["bn", "0.01"])
    'model=bn, optimizer.lr=0.01'
    """
    return ", ".join(f"{key}={setting}" for key, setting in zip(keys, settings, strict=True))


def replicates(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs with a known best value, without runs that repeat a configuration and seed."""
    return runs[runs["best"].notna()].drop_duplicates(["configuration", SEED])


def mean_and_error(values: ArrayLike) -> tuple[float, float]:
    """Return the mean of ``(n,)`` values and its standard error ``s / √n``.

    s² has the denominator n − 1. NaN is ignored. The error is NaN if a value is infinite or fewer than two are
    known.
    """
    x = np.asarray(values, dtype=float)
    x = x[~np.isnan(x)]
    if len(x) == 0:
        return np.nan, np.nan
    if len(x) == 1 or not np.isfinite(x).all():
        return float(x.mean()), np.nan
    return float(x.mean()), float(x.std(ddof=1) / np.sqrt(len(x)))


def summarize(runs: pd.DataFrame) -> pd.DataFrame:
    """Return a row per configuration, in the order of their first run.

    Means are over the seeds with a finished or diverged run. Diverged runs count as infinite: a mean over the
    surviving runs would favour a configuration that loses its worst runs. ``seconds`` is the mean over finished
    runs.
    """
    rows = {name: configuration_summary(group) for name, group in runs.groupby("configuration", sort=False)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("configuration")


def target_summary(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the median epochs to the target of each configuration, from the column ``epochs_to_target``.

    Columns: ``timed``, the number of seeds with a known time; ``reached``, those that reach the target;
    ``epochs_to_target``, the median over the timed seeds, infinite if half of them or more do not reach it.
    """
    times = replicates(runs).groupby("configuration")["epochs_to_target"]
    known = pd.DataFrame(
        {
            "epochs_to_target": times.median(),
            "timed": times.count(),
            "reached": times.agg(lambda epochs: np.isfinite(epochs).sum()),
        }
    )
    counts = ["timed", "reached"]
    return (
        known.reindex(runs["configuration"].unique())
        .fillna(dict.fromkeys(counts, 0))
        .astype(dict.fromkeys(counts, int))
    )


def configuration_summary(runs: pd.DataFrame) -> dict[str, float]:
    """Return the counts, means and standard errors of one configuration from its runs."""
    counted = replicates(runs)
    means = {name: mean_and_error(counted[name]) for name in ("best", *ENDS)}
    return {
        "runs": len(runs),
        **{status: int((runs["status"] == status).sum()) for status in STATUSES},
        "seeds": len(counted),
        "untrained": int(runs["untrained"].sum()),
        **{f"{name}_mean": mean for name, (mean, _) in means.items()},
        **{f"{name}_se": error for name, (_, error) in means.items()},
        "seconds": mean_and_error(runs.loc[runs["status"] == "finished", "seconds"])[0],
    }
