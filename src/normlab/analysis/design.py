"""What a sweep compares: its arms, what is tuned in each of them, its panels, and what each seed is for.

A frame of runs has a row per run, a text column per key that varies (``model``, ``optimizer.lr``), and the columns
``seed``, ``status`` (finished, diverged, stopped or failed) and ``value``: the metric's, the worst infinity of a
diverged run, NaN where it is not known.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from normlab.analysis.arms import ABSENT, SEED, natural

MODEL, PLAIN = "model", "nobn"
OPTIMIZER = ("optimizer.", "scheduler.")
TUNING_SHARE, LEAST_TUNING = 3, 4
"""One seed in three tunes, and at least four of them do."""


@dataclass(frozen=True)
class Design:
    """A sweep's design.

    Attributes:
        compare: the key whose settings are the arms; empty if there is one arm alone, whose name is empty too.
        arms: the settings of that key, in their natural order.
        baseline: the arm that the others are compared with.
        tuned: keys of which each arm takes the best setting.
        panels: the other keys; arms are compared where these are the same.
        metric, direction: what is compared, and whether ``min`` or ``max`` of it is good.
        tuning_seeds, report_seeds: the seeds that settings are chosen on, and those that are reported. No seed is
            both, unless there are too few; then all are.
    """

    compare: str
    arms: tuple[str, ...]
    baseline: str
    tuned: tuple[str, ...]
    panels: tuple[str, ...]
    metric: str
    direction: str
    tuning_seeds: tuple[int, ...]
    report_seeds: tuple[int, ...]

    @property
    def apart(self) -> bool:
        """Whether no seed that is reported was tuned on: without that there is no verdict."""
        return not set(self.tuning_seeds) & set(self.report_seeds)

    @property
    def sign(self) -> float:
        """What turns a value into a loss: 1 where small is good, else −1."""
        return 1.0 if self.direction == "min" else -1.0


def design_of(
    runs: pd.DataFrame,
    keys: Sequence[str],
    metric: str,
    direction: str,
    compare: str | None = None,
    baseline: str | None = None,
    untyped: Sequence[str] = (),
) -> Design:
    """Return the design that the runs of a sweep show.

    Compared is ``model`` where it varies, else the first key that is not tuned. Tuned are the keys of the
    optimizer and its scheduler whose settings are all numbers, or absent where a run lacks the key.

    Args:
        runs: as this module describes them.
        keys: those that vary.
        metric, direction: what ``value`` is, and whether ``min`` or ``max`` of it is good.
        compare, baseline: a key and an arm to take instead; ``nobn`` is the baseline where there is such an
            arm, else the first.
        untyped: keys in which the runs differ although nobody typed them. They are never tuned, and unless one
            is asked for, compared only if it is ``model``.

    Raises:
        ValueError: if ``compare`` does not vary, or ``baseline`` is none of the arms.
    """
    known = runs[runs["value"].notna()] if runs["value"].notna().any() else runs
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
    elif baseline not in arms:
        raise ValueError(f"{baseline!r} cannot be the baseline: {listed(f'the settings of {compare} are', arms)}")
    tuned = tuple(key for key in numbers if key != compare)
    panels = tuple(key for key in keys if key != compare and key not in tuned)
    seeds = seeds_of(known, compare)
    choice = has_choice(known, [*panels, *([compare] if compare else [])], list(tuned))
    tuning, report = split_for(seeds) if choice else ([], sorted({seed for own in seeds for seed in own}))
    return Design(compare, arms, baseline, tuned, panels, metric, direction, tuple(tuning), tuple(report))


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
    """Return a sentence's end that lists names.

    >>> listed("the arms are", ["bn", "nobn"]), listed("the arms are", [])
    ('the arms are bn, nobn', 'the arms are none')
    """
    return f"{start} {', '.join(names) or 'none'}"


def has_choice(runs: pd.DataFrame, arm: list[str], tuned: list[str]) -> bool:
    """Return whether any arm of any panel has several settings to choose from."""
    if not tuned:
        return False
    arms, settings = (
        set(zip(*(runs[key].tolist() for key in keys), strict=True)) for keys in (arm, [*arm, *tuned])
    )
    return len(settings) > max(len(arms), 1)


def seeds_of(runs: pd.DataFrame, compare: str) -> list[list[int]]:
    """Return the seeds of each arm, sorted."""
    found: dict[str, set[int]] = {}
    arms = runs[compare].tolist() if compare else [""] * len(runs)
    for arm, seed in zip(arms, runs[SEED].to_numpy(dtype=float, na_value=math.nan), strict=True):
        if not math.isnan(seed):
            found.setdefault(arm, set()).add(int(seed))
    return [sorted(seeds) for seeds in found.values()]


def split_for(arms: Sequence[list[int]]) -> tuple[list[int], list[int]]:
    """Return the seeds to tune on and those to report, the same for all arms, given the seeds of each.

    Where that would leave an arm of more than four seeds none of either, as arms that share no seed would be, each
    gives up a share of its own.

    >>> split_for([[0, 1, 2, 3, 4, 5], [10, 11, 12, 13, 14, 15]])
    ([0, 1, 2, 3, 10, 11, 12, 13], [4, 5, 14, 15])
    """
    seeds = sorted({seed for own in arms for seed in own})
    tuning, report = split(seeds)
    if all(set(own) & set(tuning) and set(own) & set(report) for own in arms if len(own) > LEAST_TUNING):
        return tuning, report
    tuning = sorted({seed for own in arms for seed in split(own)[0]})
    report = [seed for seed in seeds if seed not in tuning]
    return (tuning, report) if report else (seeds, seeds)


def split(seeds: list[int]) -> tuple[list[int], list[int]]:
    """Return the seeds to tune on and those to report; all of them for both where none would be left to report.

    >>> split(list(range(12)))
    ([0, 1, 2, 3], [4, 5, 6, 7, 8, 9, 10, 11])
    >>> split([0, 1, 2])
    ([0, 1, 2], [0, 1, 2])
    """
    tuning = max(LEAST_TUNING, math.ceil(len(seeds) / TUNING_SHARE))
    return (seeds[:tuning], seeds[tuning:]) if len(seeds) > tuning else (seeds, seeds)
