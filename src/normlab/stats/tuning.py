"""Tuning: the selected and the near-best configurations of each arm, and the ranges of good settings.

Losses are ``(S, n)``: a row per configuration of one arm in one panel, in natural order, and a column per
replicate. Small values are good, ∞ is a diverged run, NaN an unknown one.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from normlab.stats.design import is_number
from normlab.stats.estimates import MOST_DIVERGED, Numbers, differences, iqm
from normlab.stats.grid import Grid, Panel, Use

Frozen = Mapping[tuple[Panel, str], Sequence[tuple[str, ...]]]
"""The settings that each arm of a panel may take, as fixed by an earlier verdict."""


@dataclass(frozen=True)
class Tuned:
    """The chosen settings of one arm in one panel.

    Attributes:
        rows: the grid rows of the arm's configurations with a known run.
        chosen: the row that each reported replicate takes, ``(R,)``; −1 without one.
        near_best: the rows of near-best settings; see ``near_best_of``.
    """

    rows: list[int]
    chosen: NDArray[np.intp]
    near_best: list[int]

    @property
    def common(self) -> int | None:
        """The row that all replicates take; None if they take different rows or no row."""
        rows = np.unique(self.chosen[self.chosen >= 0])
        return int(rows[0]) if len(rows) == 1 else None

    def pick(self, table: Numbers, use: Use) -> Numbers:
        """Return the values of a table ``(S, N)`` at the chosen settings, ``(R,)``; NaN without a chosen one."""
        return np.where(self.chosen >= 0, table[self.chosen, use.report], np.nan)


Tuning = dict[tuple[Panel, str], Tuned]
"""The chosen settings by panel and arm."""


def arms_in(tuning: Tuning, panels: Collection[Panel]) -> set[str]:
    """Return the arms with a run in any of some panels."""
    return {arm for panel, arm in tuning if panel in panels}


def choose_settings(grid: Grid, frozen: Frozen | None = None) -> Tuning:
    """Choose the settings of each arm in each panel by the validation loss.

    Args:
        grid: the sweep.
        frozen: the settings that an earlier verdict fixed; other settings of these arms are not chosen, but may
            be near-best.
    """
    losses, tuning = grid.choice, {}
    for panel, arm, rows in grid.groups():
        use, known = grid.uses[panel], [row for row in rows if not np.isnan(losses[row]).all()]
        allowed = (frozen or {}).get((panel, arm))
        free = [row for row in known if allowed is None or grid.configurations[row].tuned in allowed] or known
        if use.within:
            tuning[panel, arm] = Tuned(known, chosen_within(losses[:, use.report], free), [])
            continue
        best, _ = best_of(losses[free][:, use.tuning])
        row = -1 if best is None else free[best]
        near_best = [] if best is None else near_best_of(losses[known][:, use.tuning], known.index(row))
        tuning[panel, arm] = Tuned(known, np.full(len(use.report), row), [known[k] for k in near_best])
    return tuning


def chosen_within(losses: Numbers, rows: Sequence[int]) -> NDArray[np.intp]:
    """Return the row of each replicate's lowest loss, the first of equal ones; −1 if none is known.

    Args:
        losses: the losses of all rows, ``(S, R)``.
        rows: the rows to choose from.
    """
    candidates = losses[list(rows)]
    if not len(candidates):
        return np.full(losses.shape[1], -1)
    best = np.argmin(np.where(np.isnan(candidates), np.inf, candidates), axis=0)
    # If all known runs of a replicate diverged, it takes the first of them.
    first = np.argmax(~np.isnan(candidates), axis=0)
    at_best = np.take_along_axis(candidates, best[None], axis=0)[0]
    chosen = np.where(np.isfinite(at_best), best, first)
    return np.where(np.isnan(candidates).all(axis=0), -1, np.array(rows, dtype=np.intp)[chosen])


def best_of(losses: Numbers) -> tuple[int | None, list[int]]:
    """Return the index of the best of S settings, and the indices of the near-best ones.

    The best has the lowest score; among equal scores, the fewest diverged runs, then the first index. A single
    setting is the best even without a known loss; otherwise None if no loss is known.
    """
    entries = zip(scores(losses).tolist(), np.isinf(losses).sum(axis=1).tolist(), range(len(losses)), strict=True)
    ranked = [entry for entry in entries if not np.isnan(entry[0])]
    if not ranked:
        return (0 if len(losses) == 1 else None), []
    best = min(ranked)[2]
    return best, near_best_of(losses, best)


def scores(losses: Numbers) -> Numbers:
    """Return the IQM of each row's known losses; ∞ if more than a quarter diverged, NaN if none is known."""
    ordered, counts = np.sort(losses, axis=1), (~np.isnan(losses)).sum(axis=1)
    diverged = np.isinf(losses).sum(axis=1) > MOST_DIVERGED * counts
    means = np.full(len(losses), np.nan)
    for count in set(counts.tolist()) - {0}:
        rows = counts == count
        means[rows] = iqm(ordered[rows, :count])  # sorting puts NaN last
    return np.where(diverged, np.inf, means)


def near_best_of(losses: Numbers, best: int) -> list[int]:
    """Return the indices of the other settings within one standard error of the best one.

    A setting is near-best if ``mean(d) ≤ s(d)/√n``, where d are its differences from the best over their n shared
    seeds, with n − 1 in the denominator of s². An infinite difference counts as the largest finite
    one. With one shared seed every setting is near-best.

    Reason: if chance in the tuning seeds gives one of two equal arms a worse setting, that arm is truly worse on
    the reported seeds. So a difference is declared only if it holds against each near-best setting of the
    worse arm.
    """
    near_best = []
    for row, setting_losses in enumerate(losses):
        both = ~np.isnan(setting_losses) & ~np.isnan(losses[best])
        if row == best or not both.any():
            continue
        d = finite_differences(differences(setting_losses[both], losses[best, both]))
        if len(d) == 1 or d.mean() <= d.std(ddof=1) / np.sqrt(len(d)):
            near_best.append(row)
    return near_best


def finite_differences(differences: Numbers) -> Numbers:
    """Replace each infinite difference by the largest finite magnitude, or 1, with its sign."""
    finite = np.isfinite(differences)
    largest = float(np.abs(differences[finite]).max(initial=0.0)) or 1.0
    return np.where(finite, differences, np.sign(differences) * largest)


def grid_edges(settings: Sequence[tuple[str, ...]], best: tuple[str, ...]) -> list[tuple[int, str, str]]:
    """Return the index, end and value of each key whose best setting is at an end of the grid.

    >>> grid_edges([("0.1", "0"), ("0.2", "0"), ("0.3", "0")], ("0.3", "0"))
    [(0, 'largest', '0.3')]
    """
    edges = []
    for key, setting in enumerate(best):
        tried = sorted({float(other[key]) for other in settings if is_number(other[key])})
        if len(tried) > 1 and is_number(setting) and float(setting) in (tried[0], tried[-1]):
            edges.append((key, "smallest" if float(setting) == tried[0] else "largest", setting))
    return edges


WITHIN = 10.0
"""Percent above the best loss."""
BATCH_SIZE = "data.batch_size"


class Range(NamedTuple):
    """A range of settings.

    Attributes:
        smallest, largest: its ends.
        decades: ``log10(largest / smallest)``; NaN unless both are positive.
        open: True if an end is also an end of the grid, so that the range may extend further.
    """

    smallest: float
    largest: float
    decades: float
    open: bool


def good_range(settings: Sequence[float], losses: Sequence[float], within: float = WITHIN) -> Range | None:
    """Return the contiguous range of settings around the best with ``L ≤ L* + within/100·|L*|``.

    None with fewer than two settings, or if no loss is finite.

    Args:
        settings: numbers, ``(S,)``, in any order; equal settings count with their lowest loss.
        losses: L, the loss of each setting; L* is the lowest. NaN and ∞ are outside the range.
        within: tolerance in percent.
    """
    best: dict[float, float] = {}
    for setting, loss in zip(settings, losses, strict=True):
        best[setting] = min(best.get(setting, np.inf), np.inf if np.isnan(loss) else loss)
    tried = sorted(best)
    lowest = np.array([best[setting] for setting in tried])
    if len(tried) < 2 or not np.isfinite(lowest).any():
        return None
    good = lowest <= lowest.min() + within / 100 * abs(lowest.min())
    low = high = int(lowest.argmin())
    while low > 0 and good[low - 1]:
        low -= 1
    while high < len(tried) - 1 and good[high + 1]:
        high += 1
    smallest, largest = tried[low], tried[high]
    decades = float(np.log10(largest / smallest)) if smallest > 0 else np.nan
    return Range(smallest, largest, decades, low == 0 or high == len(tried) - 1)


def largest_ratio(values: NDArray[np.float64]) -> float:
    """Return the largest over the smallest of ``(B,)`` values; NaN unless all are finite and positive."""
    if len(values) < 2 or not (np.isfinite(values) & (values > 0)).all():
        return np.nan
    return float(values.max() / values.min())
