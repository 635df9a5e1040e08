"""The choice of each arm's settings on validation, and the near-best settings; see :func:`tuned`.

Losses are ``(S, n)``: a row per setting of one arm in one panel, in natural order, and a column per replicate.
Small is good, ∞ is a run that diverged, NaN one that is not known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from normlab.stats.design import is_number
from normlab.stats.estimates import MOST_DIVERGED, Numbers, differences, iqm
from normlab.stats.grid import Grid, Panel, Use

Frozen = Mapping[tuple[Panel, str], Sequence[tuple[str, ...]]]
"""The settings that each arm of a panel may take: one where it was chosen at an earlier verdict."""


@dataclass(frozen=True)
class Tuned:
    """The choice of settings of one arm in one panel.

    Attributes:
        rows: of its settings in the grid, those with a known run.
        chosen: for each reported replicate, the row of the setting it takes, ``(R,)``; −1 if it has none.
        near_best: rows of the settings that may as well be the best; see ``near_best_of``.
    """

    rows: list[int]
    chosen: NDArray[np.intp]
    near_best: list[int]

    @property
    def common(self) -> int | None:
        """The row that all replicates take; None where they take different ones, or none."""
        taken = np.unique(self.chosen[self.chosen >= 0])
        return int(taken[0]) if len(taken) == 1 else None

    def pick(self, table: Numbers, use: Use) -> Numbers:
        """Return the numbers of a table ``(S, N)`` at the chosen settings, ``(R,)``; NaN where there is none."""
        return np.where(self.chosen >= 0, table[self.chosen, use.report], np.nan)


Tuning = dict[tuple[Panel, str], Tuned]
"""Of each panel and arm."""


def tuned(grid: Grid, frozen: Frozen | None = None) -> Tuning:
    """Choose the settings of each arm in each panel, always on the validation loss.

    Args:
        grid: the sweep.
        frozen: settings that were fixed at an earlier verdict; these arms take no others, which may still be
            near-best.
    """
    losses, found = grid.choice, {}
    for panel, arm, rows in grid.groups():
        use, known = grid.uses[panel], [row for row in rows if not np.isnan(losses[row]).all()]
        allowed = (frozen or {}).get((panel, arm))
        free = [row for row in known if allowed is None or grid.settings[row].tuned in allowed] or known
        if use.within:
            found[panel, arm] = Tuned(known, chosen_within(losses[:, use.report], free), [])
            continue
        best, _ = best_of(losses[free][:, use.tuning])
        row = -1 if best is None else free[best]
        near_best = [] if best is None else near_best_of(losses[known][:, use.tuning], known.index(row))
        found[panel, arm] = Tuned(known, np.full(len(use.report), row), [known[place] for place in near_best])
    return found


def chosen_within(losses: Numbers, rows: Sequence[int]) -> NDArray[np.intp]:
    """Return for each replicate the row of its own lowest loss, the first of equal ones; −1 if none is known.

    Args:
        losses: of all rows, ``(S, R)``.
        rows: those to choose from.
    """
    own = losses[list(rows)]
    if not len(own):
        return np.full(losses.shape[1], -1)
    best = np.argmin(np.where(np.isnan(own), np.inf, own), axis=0)
    # Where all that is known diverged, the first known one.
    first = np.argmax(~np.isnan(own), axis=0)
    at_best = np.take_along_axis(own, best[None], axis=0)[0]
    chosen = np.where(np.isfinite(at_best), best, first)
    return np.where(np.isnan(own).all(axis=0), -1, np.array(rows, dtype=np.intp)[chosen])


def best_of(losses: Numbers) -> tuple[int | None, list[int]]:
    """Return the place of the best of S settings, and those of the settings that may as well be the best.

    The best has the lowest score; of equal ones, the one of which fewer runs diverged, then the first. A setting
    alone is the best without a run that chooses.
    """
    found = zip(scores(losses).tolist(), np.isinf(losses).sum(axis=1).tolist(), range(len(losses)), strict=True)
    ranked = [entry for entry in found if not np.isnan(entry[0])]
    if not ranked:
        return (0 if len(losses) == 1 else None), []
    best = min(ranked)[2]
    return best, near_best_of(losses, best)


def scores(losses: Numbers) -> Numbers:
    """Return the IQM of each row's known losses, ∞ if more than a quarter diverged, NaN if there are none."""
    ordered, counts = np.sort(losses, axis=1), (~np.isnan(losses)).sum(axis=1)
    diverged = np.isinf(losses).sum(axis=1) > MOST_DIVERGED * counts
    found = np.full(len(losses), np.nan)
    for count in set(counts.tolist()) - {0}:
        rows = counts == count
        found[rows] = iqm(ordered[rows, :count])  # NaN is sorted behind all numbers
    return np.where(diverged, np.inf, found)


def near_best_of(losses: Numbers, best: int) -> list[int]:
    """Return the settings that the tuning seeds cannot tell from the best: within one standard error of it.

    With d the differences of a setting from the best over the seeds that both have, those with
    ``mean(d) ≤ s(d)/√n``, s² divided by n − 1. An infinite difference counts as the largest finite one. With one
    seed, all that are known.

    On the seeds of the report, an arm that was tuned to a worse setting by chance is worse in truth, although
    the arms may be the same. So a difference is declared only where it shows against each near-best setting of
    the arm that does worse.
    """
    found = []
    for row, own in enumerate(losses):
        both = ~np.isnan(own) & ~np.isnan(losses[best])
        if row == best or not both.any():
            continue
        d = finite_differences(differences(own[both], losses[best, both]))
        if len(d) == 1 or d.mean() <= d.std(ddof=1) / np.sqrt(len(d)):
            found.append(row)
    return found


def finite_differences(differences: Numbers) -> Numbers:
    """Return differences with the largest finite magnitude among them, or 1, in place of each infinite one."""
    finite = np.isfinite(differences)
    largest = float(np.abs(differences[finite]).max(initial=0.0)) or 1.0
    return np.where(finite, differences, np.sign(differences) * largest)


def edges(settings: Sequence[tuple[str, ...]], best: tuple[str, ...]) -> list[tuple[int, str, str]]:
    """Return in which keys the best setting is the smallest or the largest that was tried, and which.

    >>> edges([("0.1", "0"), ("0.2", "0"), ("0.3", "0")], ("0.3", "0"))
    [(0, 'largest', '0.3')]
    """
    found = []
    for key, setting in enumerate(best):
        tried = sorted({float(other[key]) for other in settings if is_number(other[key])})
        if len(tried) > 1 and is_number(setting) and float(setting) in (tried[0], tried[-1]):
            found.append((key, "smallest" if float(setting) == tried[0] else "largest", setting))
    return found
