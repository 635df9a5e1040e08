"""The design of a sweep: its arms, tuned keys and panels, and the metrics that arms are compared by.

A frame of runs has a row per run, a text column per key that varies (``model``, ``optimizer.lr``), a column per
metric, and the columns

- ``seed``, ``status`` (finished, diverged, stopped or failed);
- ``validation``: the outcome that settings are chosen by. Like every metric it is the mean over the last tenth of
  a run's epochs, the worst infinity of a diverged run, NaN where it is not known;
- optional: ``best`` (the best validation over the epochs), ``untrained`` and ``shortened`` (stopped early),
  flags; ``scope`` (see ``Scope``), ``train_rows`` and ``test_rows``; ``lr``, the text of the learning rate.
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
    """The difference between the replicates of a panel besides initial weights and batch order."""

    SEED = "seed"
    """Nothing: all have the same samples."""
    DRAW = "draw"
    """The samples, which each replicate draws for itself."""
    SPLIT = "split"
    """The split of one table. Splits share rows."""


@dataclass(frozen=True)
class Metric:
    """A metric that arms are compared by.

    Attributes:
        name: with its split, as ``test/loss``.
        direction: whether ``min`` or ``max`` is good.
        question: ``generalization``, ``optimization``, or empty for a metric that was asked for. p-values are
            corrected for all comparisons of one question.
    """

    name: str
    direction: str
    question: str = ""

    @property
    def sign(self) -> float:
        """The factor that turns a value into a loss: 1 where small is good, else −1."""
        return 1.0 if self.direction == "min" else -1.0

    @property
    def is_share(self) -> bool:
        """Whether values are shares, compared in percentage points."""
        return self.name.rpartition("/")[2] == "acc"


@dataclass(frozen=True)
class Design:
    """A sweep's design.

    Attributes:
        compare: the key whose settings are the arms; empty if there is one arm alone, whose name is empty too.
        arms: the settings of that key, in their natural order.
        baseline: the arm that the others are compared with.
        tuned: keys of which each arm takes the best setting.
        panels: the other keys; arms are compared where these are the same.
        metrics: those that arms are compared by, the primary first.
        choice: the validation metric that settings are chosen by.
        pairs: whether all arms are compared with each other.
        margin: of the equivalence test, as a share (0.05 is 5 %); None without one.
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
        """The metric that figures show."""
        return self.metrics[0]

    @property
    def comparisons(self) -> list[tuple[str, str]]:
        """The arms that are compared, each with its baseline."""
        if not self.pairs:
            return [(arm, self.baseline) for arm in self.arms if arm != self.baseline]
        ordered = [self.baseline, *(arm for arm in self.arms if arm != self.baseline)]
        return [(arm, other) for place, other in enumerate(ordered) for arm in ordered[place + 1 :]]


def design_of(
    runs: pd.DataFrame,
    keys: Sequence[str],
    metrics: Sequence[Metric],
    choice: Metric,
    compare: str | None = None,
    baseline: str | None = None,
    untyped: Sequence[str] = (),
    pairs: bool = False,
    margin: float | None = None,
) -> Design:
    """Find the design of a sweep in its runs.

    Compared is ``model`` where it varies, else the first key that is not tuned. Tuned are the keys of the
    optimizer and its scheduler whose settings are all numbers, or absent where a run lacks the key.

    Args:
        runs: as this module describes them.
        keys: those that vary.
        metrics, choice, pairs, margin: as in :class:`Design`.
        compare, baseline: a key and an arm to take instead; by default ``nobn`` is the baseline where there is
            such an arm, else the first.
        untyped: keys in which the runs differ although nobody typed them. They are never tuned, and unless one
            is asked for, compared only if it is ``model``.

    Raises:
        ValueError: ``compare`` does not vary, ``baseline`` is none of the arms, or the margin is not positive.
    """
    known = runs[runs["validation"].notna()] if runs["validation"].notna().any() else runs
    typed = [key for key in keys if key not in untyped]
    numbers = [key for key in typed if key.startswith(OPTIMIZER) and are_numbers(set(known[key].tolist()))]
    if compare is None:
        others = [key for key in typed if key not in numbers]
        compare = MODEL if MODEL in keys else next(iter(others), "")
    elif compare not in keys:
        raise ValueError(f"{compare!r} cannot be compared: {listed('what varies in this sweep is', keys)}")
    arms = tuple(sorted(set(runs[compare].tolist()), key=natural)) if compare else ("",)
    if baseline is None:
        baseline = PLAIN if PLAIN in arms else arms[0]
    elif not compare:
        raise ValueError(f"{baseline!r} cannot be the baseline: nothing is compared in this sweep; leave it away")
    elif baseline not in arms:
        raise ValueError(f"{baseline!r} cannot be the baseline: {listed(f'the settings of {compare} are', arms)}")
    if margin is not None and not 0 < margin < math.inf:
        raise ValueError(f"margin must be a number > 0, got {margin}; 0.05 is 5 %")
    tuned = tuple(key for key in numbers if key != compare)
    panels = tuple(key for key in keys if key != compare and key not in tuned)
    return Design(compare, arms, baseline, tuned, panels, tuple(metrics), choice, pairs, margin)


def are_numbers(settings: set[str]) -> bool:
    """Return whether settings are numbers wherever a run has the key.

    >>> are_numbers({"0.1", "–"}), are_numbers({"–"}), are_numbers({"0.1", "null"})
    (True, False, False)
    """
    present = settings - {ABSENT}
    return bool(present) and all(map(is_number, present))


def is_number(setting: str) -> bool:
    """Return whether a setting is a finite number.

    >>> [is_number(text) for text in ("1e-3", "10", "null", "inf", "true")]
    [True, True, False, False, False]
    """
    try:
        return math.isfinite(float(setting))
    except ValueError:
        return False


def listed(start: str, names: Sequence[str]) -> str:
    """Return the end of a sentence that lists names.

    >>> listed("the arms are", ["bn", "nobn"]), listed("the arms are", [])
    ('the arms are bn, nobn', 'the arms are none')
    """
    return f"{start} {', '.join(names) or 'none'}"
