"""Each arm at its own best setting, chosen on the tuning seeds; and which other settings may be the best.

Losses are ``(S, n)``: a row per setting of one arm in one panel, in natural order, and a column per tuning
seed. Small is good, ∞ is a run that diverged, NaN one that is not known.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from normlab.analysis.cells import Cells
from normlab.analysis.design import is_number
from normlab.analysis.estimates import MOST_DIVERGED, differences, iqm
from normlab.analysis.significance import finite_differences

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Tuned:
    """What the tuning seeds say of one arm in one panel.

    Attributes:
        rows: of its settings in the table of all, those of which something is known.
        chosen: the row of the best, None if no setting was run on a tuning seed.
        rivals: the rows of those that may as well be the best; see ``rivals_of``.
    """

    rows: list[int]
    chosen: int | None
    rivals: list[int]


Tuning = dict[tuple[tuple[str, ...], str], Tuned]
"""Of each panel and arm."""


def tuned(cells: Cells) -> Tuning:
    """Return what the tuning seeds say of each arm in each panel."""
    losses, known, found = cells.losses[:, cells.tuning], ~np.isnan(cells.values), {}
    for panel, arm, rows in cells.groups():
        run = [row for row in rows if known[row].any()]
        found[panel, arm] = tune(losses[run], run)
    return found


def tune(losses: Numbers, rows: Sequence[int]) -> Tuned:
    """Return the best of some settings, which are these rows of a table of all.

    The best has the lowest score; of equal ones, the one of which fewer runs diverged, then the first. A
    setting alone is the best without having been run on a tuning seed.
    """
    found = zip(scores(losses).tolist(), np.isinf(losses).sum(axis=1).tolist(), range(len(rows)), strict=True)
    ranked = [entry for entry in found if not np.isnan(entry[0])]
    if not ranked:
        return Tuned(list(rows), rows[0] if len(rows) == 1 else None, [])
    best = min(ranked)[2]
    return Tuned(list(rows), rows[best], [rows[place] for place in rivals_of(losses, best)])


def scores(losses: Numbers) -> Numbers:
    """Return the IQM of each row's known losses, ∞ if more than a quarter diverged, NaN if there are none."""
    ordered, counts = np.sort(losses, axis=1), (~np.isnan(losses)).sum(axis=1)
    diverged = np.isinf(losses).sum(axis=1) > MOST_DIVERGED * counts
    found = np.full(len(losses), np.nan)
    for count in set(counts.tolist()) - {0}:
        rows = counts == count
        found[rows] = iqm(ordered[rows, :count])  # NaN is sorted behind all numbers
    return np.where(diverged, np.inf, found)


def rivals_of(losses: Numbers, best: int) -> list[int]:
    """Return the settings that the tuning seeds cannot tell from the best: within one standard error of it.

    With d the differences of a setting from the best over the seeds that both have, those with
    ``mean(d) ≤ s(d)/√n``, s² divided by n − 1. An infinite difference is treated as in the test. With one seed,
    all that are known.

    On the seeds of the report, an arm that was tuned to a worse setting by chance is worse in truth, although
    the arms may be the same. So a difference is declared only where it shows against each rival of the arm that
    does worse.
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
