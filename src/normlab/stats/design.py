"""The design of a sweep: its arms, tuned keys, panels and metrics; see :func:`design_of`.

A frame of runs has a row per run, a text column per key that varies (``model``, ``optimizer.lr``), a column per
metric, and the columns

- ``seed`` and ``status`` (finished, diverged, stopped or failed);
- ``validation``: the metric that settings are chosen by. Like every metric it is the mean over the last tenth of
  a run's epochs, infinite with the bad sign for a diverged run, and NaN if unknown;
- optional: ``best`` (the best validation over the epochs), the flags ``untrained`` and ``shortened`` (stopped
  early), ``scope`` (see ``Scope``), ``train_rows``, ``test_rows``, and ``lr`` (the learning rate as text).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import pandas as pd

from normlab.stats.configurations import ABSENT, natural

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
        baseline: the arm that the others are compared with.
        tuned: the tuned keys, of which each arm takes its best setting.
        panels: the other keys; arms are compared among runs with the same settings of these.
        metrics: the compared metrics, the primary one first.
        choice: the validation metric that settings are chosen by.
        pairs: whether all pairs of arms are compared, instead of each arm with the baseline.
        margin: relative margin of the equivalence test (0.05 is 5 %); None: no equivalence test.
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

    @property
    def primary(self) -> Metric:
        """The metric of the figures and of interactions."""
        return self.metrics[0]

    @property
    def comparisons(self) -> list[tuple[str, str]]:
        """The compared pairs ``(arm, baseline)``."""
        if not self.pairs:
            return [(arm, self.baseline) for arm in self.arms if arm != self.baseline]
        ordered = [self.baseline, *(arm for arm in self.arms if arm != self.baseline)]
        return [(arm, other) for k, other in enumerate(ordered) for arm in ordered[k + 1 :]]


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
    if baseline is None:
        baseline = PLAIN if PLAIN in arms else arms[0]
    elif not compare:
        raise ValueError(f"baseline must be empty if nothing is compared, got {baseline!r}; leave it out")
    elif baseline not in arms:
        raise ValueError(f"baseline must be a setting of {compare} ({', '.join(arms)}), got {baseline!r}")
    if margin is not None and not 0 < margin < math.inf:
        raise ValueError(f"margin must be a number > 0, got {margin}; 0.05 is 5 %")
    tuned = tuple(key for key in numbers if key != compare)
    panels = tuple(key for key in keys if key != compare and key not in tuned)
    return Design(compare, arms, baseline, tuned, panels, tuple(metrics), choice, pairs, margin)


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
