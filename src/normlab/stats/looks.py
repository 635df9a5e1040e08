"""Significance levels for repeated looks at a growing sweep, and the record of earlier looks."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import optimize, special, stats

from normlab.stats.comparison import ALIKE, ALPHA, BETTER, WORSE, ComparisonRow
from normlab.stats.estimates import Numbers
from normlab.stats.grid import Grid, Panel
from normlab.stats.tuning import Tuning

GRID_POINTS = 400
"""Nodes of the integration between two boundaries; levels are then exact to 1e-6 of themselves."""
WIDEST = 8.0
"""Standard deviations that stand for an infinite boundary: 1e-15 is beyond it."""
Key = tuple[str, ...]
Seeds = tuple[int, ...]


def look_level(look: int, alpha: float = 0.05) -> float:
    r"""Return the level of the k-th look when there is no limit to the number of looks.

    :math:`\alpha_k = \alpha / (k (k + 1))`. The levels of all looks sum to α, so the probability of any false
    declaration is at most α, whenever the looks are taken and however long they go on.

    >>> [round(look_level(look), 5) for look in (1, 2, 3)]
    [0.025, 0.00833, 0.00417]
    """
    if look < 1:
        raise ValueError(f"look must be at least 1, got {look}; the first look is 1")
    return alpha / (look * (look + 1))


def spent(fraction: float, alpha: float = 0.05) -> float:
    r"""Return the level that is spent when a fraction t of the declared replicates has been seen.

    The O'Brien–Fleming type, :math:`\alpha(t) = 4 - 4\,\Phi\big(z_{\alpha/4} / \sqrt t\big)`: each of the two
    sides spends :math:`2 - 2\Phi(z_{\alpha/4} / \sqrt t)`, and α/2 in the end. Lan and DeMets (1983), Discrete
    sequential boundaries for clinical trials, Biometrika 70.
    """
    return float(4 * stats.norm.sf(stats.norm.isf(alpha / 4) / math.sqrt(fraction)))


def obrien_fleming(looks: Sequence[int], max_replicates: int, alpha: float = 0.05) -> Numbers:
    """Return the nominal two-sided level of each look, ``(K,)``, for a declared maximum of replicates.

    A difference is declared at look k if p is at most the k-th level. With all looks taken up to the maximum, the
    probability of any false declaration is α. Levels of past looks depend on no later one: the schedule need not
    be known in advance, only the maximum. They hold for tests whose statistic adds up over replicates, as the
    signed-rank test's nearly does. Boundaries are found one after the other by numerical integration, see
    ``next_density``.

    Args:
        looks: the replicates at each look so far, growing.
        max_replicates: the declared maximum, at which all of α is spent.
        alpha: the level of all looks together.

    Raises:
        ValueError: looks do not grow from at least 1 to at most the maximum.

    O'Brien and Fleming (1979), A multiple testing procedure for clinical trials, Biometrics 35.
    """
    sizes = tuple(int(look) for look in looks)
    if any(later <= earlier for earlier, later in zip((0, *sizes), sizes, strict=False)):
        raise ValueError(f"looks must grow from at least 1, got {list(sizes)}; list each look once, in order")
    if sizes and sizes[-1] > max_replicates:
        raise ValueError(
            f"looks must not pass max_replicates={max_replicates}, got {sizes[-1]}; "
            "declare the maximum before the first look"
        )
    z = np.array(boundaries(tuple(size / max_replicates for size in sizes), alpha))
    return np.asarray(2 * stats.norm.sf(z))


@lru_cache(maxsize=256)
def boundaries(fractions: tuple[float, ...], alpha: float = 0.05) -> tuple[float, ...]:
    """Return the boundary z of each look: ``|Z| ≥ z`` declares a difference.

    Args:
        fractions: t of each look, growing up to at most 1.
        alpha: the level of all looks together.

    >>> [round(z, 3) for z in boundaries((0.2, 0.4, 0.6, 0.8, 1.0))]
    [4.877, 3.357, 2.68, 2.29, 2.031]
    """
    found: list[float] = []
    nodes, density = np.zeros(1), np.ones(1)  # before the first look, the sum is 0
    before = already = 0.0
    for fraction in fractions:
        step, spend = math.sqrt(fraction - before), spent(fraction, alpha) - already
        end = WIDEST * math.sqrt(fraction)
        so_far = (nodes, density, step, spend)
        if excess(end, *so_far) < 0:
            end = optimize.brentq(excess, 0.0, end, so_far)
        found.append(end / math.sqrt(fraction))
        nodes, density = next_density(nodes, density, step, end)
        before, already = fraction, already + spend
    return tuple(found)


def excess(end: float, nodes: Numbers, density: Numbers, step: float, spend: float) -> float:
    """Return by how much the probability that the sum first passes ±end at a look exceeds what it may spend.

    Args:
        end, nodes, density, step: as in ``next_density``.
        spend: the level that the look may spend.
    """
    beyond = special.ndtr((nodes - end) / step) + special.ndtr((-nodes - end) / step)
    return float(density @ beyond) - spend


def next_density(nodes: Numbers, density: Numbers, step: float, end: float) -> tuple[Numbers, Numbers]:
    r"""Return Gauss–Legendre nodes between the boundaries ±end and the weighted density of the sum there.

    :math:`f_k(s) = \int f_{k-1}(u)\, \varphi\big((s - u)/\sigma\big)/\sigma\; du`, over sums u that were between
    the boundaries at the look before (Armitage, McPherson and Rowe 1969).

    Args:
        nodes, density: those of the look before, ``(M,)``; the density times the weight of each node.
        step: σ, the standard deviation of what the sum has gained since.
        end: the boundary of the sum.
    """
    places, weights = legendre()
    after = end * places
    kernel = np.exp(-(((after[:, None] - nodes) / step) ** 2) / 2) / (step * math.sqrt(2 * math.pi))
    return after, end * weights * (kernel @ density)


@lru_cache(maxsize=1)
def legendre() -> tuple[Numbers, Numbers]:
    """Return the nodes and weights of Gauss–Legendre integration over −1 to 1."""
    return np.polynomial.legendre.leggauss(GRID_POINTS)


def comparison_key(compare: str, arm: str, baseline: str, place: str) -> Key:
    """Return the key of a comparison, the same whichever of the arms is the baseline."""
    return (compare, *sorted((arm, baseline)), place)


@dataclass
class History:
    """The verdicts that a folder's runs have had so far.

    A first verdict fixes which seeds choose settings, and which settings each arm takes: replicates that are
    added only report. Each later verdict on other replicates is another look at the same comparison.

    Attributes:
        max_replicates: the declared maximum; None without one.
        tuning_seeds: the seeds that choose settings; None before the first verdict.
        settings: the settings that each arm of a panel may take.
        looks: of each comparison, the replicates at each look.
    """

    max_replicates: int | None = None
    tuning_seeds: Seeds | None = None
    settings: dict[tuple[Panel, str], list[Key]] = field(default_factory=dict)
    looks: dict[Key, list[Seeds]] = field(default_factory=dict)

    def look(self, key: Key, seeds: Seeds) -> int:
        """Return the number of a look at a comparison: that of the same replicates before, or the next."""
        earlier = self.looks.get(key, [])
        return earlier.index(seeds) + 1 if seeds in earlier else len(earlier) + 1

    def factor(self, key: Key, seeds: Seeds) -> float:
        """Return the number that p is multiplied with, so that it is compared with 0.05 at any look.

        0.05 over the level of the look: ``k(k + 1)`` at look k, or that of the O'Brien–Fleming boundary where a
        maximum of replicates is declared. Infinite beyond that maximum.
        """
        look = self.look(key, seeds)
        if self.max_replicates is None:
            return ALPHA / look_level(look)
        sizes = [len(own) for own in (*self.looks.get(key, [])[: look - 1], seeds)]
        if sizes[-1] > self.max_replicates or sizes[-1] < 1:
            return float("inf")
        growing = sorted({size for size in sizes if size <= sizes[-1]})
        level = float(obrien_fleming(growing, self.max_replicates)[-1])
        return ALPHA / level if level > 0 else float("inf")

    def add(self, grid: Grid, tuning: Tuning, rows: Iterable[ComparisonRow]) -> None:
        """Add the verdicts of a sweep; rows without one leave nothing."""
        for row in rows:
            if row["verdict"] not in (BETTER, WORSE, ALIKE):
                continue
            own = self.looks.setdefault(row["key"], [])
            if row["seeds"] not in own:
                own.append(row["seeds"])
            for panel in row["of_panels"]:
                use = grid.uses[panel]
                if not use.within and len(use.tuning) and self.tuning_seeds is None:
                    self.tuning_seeds = tuple(grid.seeds[column] for column in use.tuning)
                for arm in (row["arm"], row["baseline"]):
                    tuned = tuning[panel, arm]
                    rows_taken = tuned.rows if use.within else sorted({int(k) for k in tuned.chosen if k >= 0})
                    self.settings.setdefault((panel, arm), [grid.settings[k].tuned for k in rows_taken])

    def to_json(self) -> dict[str, Any]:
        """Return the history as lists and mappings of text and numbers."""
        return {
            "max_replicates": self.max_replicates,
            "tuning_seeds": self.tuning_seeds,
            "settings": [
                {"panel": panel, "arm": arm, "settings": own} for (panel, arm), own in self.settings.items()
            ],
            "looks": [{"comparison": key, "replicates": seeds} for key, seeds in self.looks.items()],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "History":
        """Return the history that :meth:`to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: the content is damaged.
        """
        seeds = content["tuning_seeds"]
        return cls(
            content["max_replicates"],
            None if seeds is None else as_seeds(seeds),
            {(tuple(e["panel"]), e["arm"]): [tuple(s) for s in e["settings"]] for e in content["settings"]},
            {
                tuple(entry["comparison"]): [as_seeds(own) for own in entry["replicates"]]
                for entry in content["looks"]
            },
        )


def as_seeds(numbers: Sequence[Any]) -> Seeds:
    """Return numbers of a JSON file as seeds."""
    return tuple(int(number) for number in numbers)
