"""Configurations, and the design of a sweep: arms, tuned keys, panels and metrics; see :func:`design_of`.

Runs that differ only in their seed are replicates of one configuration. A frame of runs has a row per run, a text
column per key that varies (``model``, ``optimizer.lr``), a column per metric, and the columns

- ``configuration``, ``seed`` and ``status`` (finished, diverged, stopped, failed or pruned);
- ``validation``: the metric that settings are chosen by. Like every metric it is the mean over the last tenth of
  a run's epochs (``ENDS``: on each split), infinite with the bad sign for a diverged run, NaN for a stopped or
  failed run or if unknown;
- optional: ``best`` (the best validation over the epochs), the flags ``untrained`` and ``shortened`` (stopped
  early), ``scope`` (see ``Scope``), ``train_rows``, ``test_rows``, ``seconds``, and ``lr`` (the learning rate as
  text).
"""

import math
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from normlab.config.schema import REPORT_KEYS

SEED, TARGET = "seed", "target"
NO_SETTINGS = (SEED, TARGET, "retrain", "timing", "claim", *REPORT_KEYS)
"""Keys that do not define a configuration: the seed, the options of the analysis, and the use of the folder."""
ABSENT = "–"
"""The setting of a key that a run lacks."""
ENDS = ("train_eval", "val", "test")
"""Columns of means over the last tenth of the epochs; ``train_eval`` is the training split in evaluation mode."""
STATUSES = ("finished", "diverged", "stopped", "failed", "pruned")


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


MODEL, PLAIN = "model", "nobn"
OPTIMIZER = ("optimizer.", "scheduler.")
LR, DATA_SEED = "optimizer.lr", "data.seed"
GENERALIZATION, OPTIMIZATION = "generalization", "optimization"


class Scope(StrEnum):
    """The source of variation between replicates, besides initial weights and batch order."""

    SEED = "seed"
    """None: all replicates have the same samples and split."""
    DRAW = "draw"
    """The samples: each replicate draws new ones."""
    SPLIT = "split"
    """The split: each replicate splits the same table, so that splits share rows."""


@dataclass(frozen=True)
class Metric:
    """A metric that arms are compared by.

    Attributes:
        name: the split and the metric, as in ``test/loss``.
        direction: ``min`` if small values are good, ``max`` if large ones are.
        question: ``generalization`` or ``optimization``; empty for a metric chosen by the user. p-values are
            corrected for all comparisons of one question.
    """

    name: str
    direction: str
    question: str = ""

    @property
    def sign(self) -> float:
        """The factor that turns a value into a loss: 1 if small values are good, else −1."""
        return 1.0 if self.direction == "min" else -1.0

    @property
    def is_share(self) -> bool:
        """True for shares such as accuracies, which are compared in percentage points."""
        return self.name.rpartition("/")[2] == "acc"


@dataclass(frozen=True)
class Design:
    """The roles of the keys and metrics of a sweep.

    Attributes:
        compare: the compared key, whose settings are the arms; empty if nothing is compared. There is then one
            arm with an empty name.
        arms: the settings of the compared key, in natural order.
        baseline: the arm that the others are compared with; see :meth:`baseline_among`.
        tuned: the tuned keys, of which each arm takes its best setting.
        panels: the other keys; arms are compared among runs with the same settings of these.
        metrics: the compared metrics, the primary one first.
        choice: the validation metric that settings are chosen by.
        pairs: whether all pairs of arms are compared, instead of each arm with the baseline.
        margin: relative margin of the equivalence test (0.05 is 5 %); None: no equivalence test.
        is_given: whether the baseline was given, instead of inferred.
    """

    compare: str
    arms: tuple[str, ...]
    baseline: str
    tuned: tuple[str, ...]
    panels: tuple[str, ...]
    metrics: tuple[Metric, ...]
    choice: Metric
    pairs: bool = False
    margin: float | None = None
    is_given: bool = False

    @property
    def primary(self) -> Metric:
        """The metric of the figures and of interactions."""
        return self.metrics[0]

    def baseline_among(self, present: Collection[str]) -> str:
        """Return the baseline of a panel with some of the arms.

        A panel without the inferred baseline, but with several arms, infers its own from them.
        """
        if self.is_given or self.baseline in present or len(present) < 2:
            return self.baseline
        return default_baseline([arm for arm in self.arms if arm in present])

    def comparisons_among(self, present: Collection[str]) -> list[tuple[str, str]]:
        """Return the compared pairs ``(arm, baseline)`` of a panel with some of the arms.

        With ``pairs``, those with the baseline come first.
        """
        baseline = self.baseline_among(present)
        ordered = [baseline, *(arm for arm in self.arms if arm in present and arm != baseline)]
        compared = ordered if self.pairs else ordered[:1]
        return [(arm, other) for k, other in enumerate(compared) for arm in ordered[k + 1 :]]


def design_of(
    runs: pd.DataFrame,
    keys: Sequence[str],
    metrics: Sequence[Metric],
    choice: Metric,
    compare: str | None = None,
    baseline: str | None = None,
    implicit: Sequence[str] = (),
    pairs: bool = False,
    margin: float | None = None,
) -> Design:
    """Infer the design of a sweep from its runs.

    The compared key is ``model`` if it varies, else the first key that is not tuned. Tuned keys are those of the
    optimizer and the scheduler whose settings are all numbers; runs may lack such a key.

    Args:
        runs: a row per run, with the columns that this module lists.
        keys: the keys that vary.
        metrics, choice, pairs, margin: as in :class:`Design`.
        compare: the key to compare instead.
        baseline: the arm to use as baseline; by default ``nobn`` if it is an arm, else the first arm.
        implicit: keys that vary without an override on the command line. They are never tuned, and are compared
            only if ``compare`` names them or if the key is ``model``.

    Raises:
        ValueError: ``compare`` does not vary, ``baseline`` is not an arm, or the margin is not positive.
    """
    known = runs[runs["validation"].notna()] if runs["validation"].notna().any() else runs
    explicit = [key for key in keys if key not in implicit]
    numbers = [key for key in explicit if key.startswith(OPTIMIZER) and are_numbers(set(known[key].tolist()))]
    if compare is None:
        others = [key for key in explicit if key not in numbers]
        compare = MODEL if MODEL in keys else next(iter(others), "")
    elif compare not in keys:
        raise ValueError(f"compare must be a key that varies ({', '.join(keys) or 'none does'}), got {compare!r}")
    arms = tuple(sorted(set(runs[compare].tolist()), key=natural)) if compare else ("",)
    is_given = True
    if baseline is None:
        baseline, is_given = default_baseline(arms), False
    elif not compare:
        raise ValueError(f"baseline must be empty if nothing is compared, got {baseline!r}; leave it out")
    elif baseline not in arms:
        raise ValueError(f"baseline must be a setting of {compare} ({', '.join(arms)}), got {baseline!r}")
    if margin is not None and not 0 < margin < math.inf:
        raise ValueError(f"margin must be a number > 0, got {margin}; 0.05 is 5 %")
    tuned = tuple(key for key in numbers if key != compare)
    panels = tuple(key for key in keys if key != compare and key not in tuned)
    return Design(compare, arms, baseline, tuned, panels, tuple(metrics), choice, pairs, margin, is_given)


def default_baseline(arms: Sequence[str]) -> str:
    """Return the baseline among some arms: ``nobn``, or else the first one."""
    return PLAIN if PLAIN in arms else arms[0]


def are_numbers(settings: set[str]) -> bool:
    """Return True if all settings are numbers or absent, and not all are absent.

    >>> are_numbers({"0.1", "–"}), are_numbers({"–"}), are_numbers({"0.1", "null"})
    (True, False, False)
    """
    present = settings - {ABSENT}
    return bool(present) and all(map(is_number, present))


def is_number(setting: str) -> bool:
    """Return True if a setting is a finite number.

    >>> [is_number(text) for text in ("1e-3", "10", "null", "inf", "true")]
    [True, True, False, False, False]
    """
    try:
        return math.isfinite(float(setting))
    except ValueError:
        return False
