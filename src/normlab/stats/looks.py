"""Significance levels for repeated looks at a growing sweep, and the :class:`History` of looks."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import permutations
from typing import Any

import numpy as np
from scipy import optimize, special, stats

from normlab.stats.comparison import ALPHA, BETTER, NO_DIFFERENCE, WORSE, ComparisonRow
from normlab.stats.estimates import Numbers
from normlab.stats.grid import Grid, Panel
from normlab.stats.tuning import Tuning

GRID_POINTS = 400
"""Nodes of the numerical integration; the levels then have a relative error of 1e-6."""
WIDEST = 8.0
"""Standard deviations used for an infinite boundary: a probability of 1e-15 lies beyond it."""
Key = tuple[str, ...]
Seeds = tuple[int, ...]


def look_level(look: int, alpha: float = 0.05) -> float:
    r"""Return the level of look k if the number of looks is unlimited.

    :math:`\alpha_k = \alpha / (k (k + 1))`. The levels of all looks sum to α, so the probability of any false
    declaration is at most α, for any number and timing of looks.

    >>> [round(look_level(look), 5) for look in (1, 2, 3)]
    [0.025, 0.00833, 0.00417]
    """
    if look < 1:
        raise ValueError(f"look must be at least 1, got {look}; the first look is 1")
    return alpha / (look * (look + 1))


def spent_alpha(fraction: float, alpha: float = 0.05) -> float:
    r"""Return the type I error spent after a fraction t of the maximum number of replicates.

    The O'Brien–Fleming type spending function,
    :math:`\alpha(t) = 4 - 4\,\Phi\big(z_{\alpha/4} / \sqrt t\big)`: each of the two sides spends
    :math:`2 - 2\Phi(z_{\alpha/4} / \sqrt t)`, which is α/2 at t = 1. Lan and DeMets (1983), Discrete sequential
    boundaries for clinical trials, Biometrika 70.
    """
    return float(4 * stats.norm.sf(stats.norm.isf(alpha / 4) / math.sqrt(fraction)))


def obrien_fleming(looks: Sequence[int], max_replicates: int, alpha: float = 0.05) -> Numbers:
    """Return the nominal two-sided level of each look, ``(K,)``, for a declared maximum of replicates.

    A difference is declared at look k if p is at most the k-th level. If looks continue up to the maximum, the
    probability of any false declaration is α. The level of a look does not depend on later looks, so only the
    maximum must be known in advance, not the schedule. The levels hold for statistics that are sums over the
    replicates, which the signed-rank statistic approximates. The boundaries are computed one after the other by
    numerical integration, see ``next_density``.

    Args:
        looks: the number of replicates at each look so far, strictly increasing.
        max_replicates: the declared maximum, at which all of α is spent.
        alpha: the overall level of all looks.

    Raises:
        ValueError: ``looks`` does not increase from at least 1 to at most the maximum.

    O'Brien and Fleming (1979), A multiple testing procedure for clinical trials, Biometrics 35.
    """
    sizes = tuple(int(look) for look in looks)
    if any(later <= earlier for earlier, later in zip((0, *sizes), sizes, strict=False)):
        raise ValueError(f"looks must increase from at least 1, got {list(sizes)}; list each look once, in order")
    if sizes and sizes[-1] > max_replicates:
        raise ValueError(
            f"looks must not exceed max_replicates={max_replicates}, got {sizes[-1]}; "
            "declare the maximum before the first look"
        )
    z = np.array(boundaries(tuple(size / max_replicates for size in sizes), alpha))
    return np.asarray(2 * stats.norm.sf(z))


@lru_cache(maxsize=256)
def boundaries(fractions: tuple[float, ...], alpha: float = 0.05) -> tuple[float, ...]:
    """Return the boundary z of each look: ``|Z| ≥ z`` declares a difference.

    Args:
        fractions: t of each look, strictly increasing, at most 1.
        alpha: the overall level of all looks.

    >>> [round(z, 3) for z in boundaries((0.2, 0.4, 0.6, 0.8, 1.0))]
    [4.877, 3.357, 2.68, 2.29, 2.031]
    """
    limits: list[float] = []
    nodes, density = np.zeros(1), np.ones(1)  # before the first look, the sum is 0
    earlier = already_spent = 0.0
    for fraction in fractions:
        step, spend = math.sqrt(fraction - earlier), spent_alpha(fraction, alpha) - already_spent
        end = WIDEST * math.sqrt(fraction)
        state = (nodes, density, step, spend)
        if excess_spending(end, *state) < 0:
            end = optimize.brentq(excess_spending, 0.0, end, state)
        limits.append(end / math.sqrt(fraction))
        nodes, density = next_density(nodes, density, step, end)
        earlier, already_spent = fraction, already_spent + spend
    return tuple(limits)


def excess_spending(end: float, nodes: Numbers, density: Numbers, step: float, spend: float) -> float:
    """Return the probability that the sum first crosses ±end at this look, minus its allotted type I error.

    Args:
        end, nodes, density, step: as in ``next_density``.
        spend: the type I error that the look may spend.
    """
    beyond = special.ndtr((nodes - end) / step) + special.ndtr((-nodes - end) / step)
    return float(density @ beyond) - spend


def next_density(nodes: Numbers, density: Numbers, step: float, end: float) -> tuple[Numbers, Numbers]:
    r"""Return Gauss–Legendre nodes between the boundaries ±end and the weighted density of the sum there.

    :math:`f_k(s) = \int f_{k-1}(u)\, \varphi\big((s - u)/\sigma\big)/\sigma\; du`, over sums u between the
    boundaries of the previous look (Armitage, McPherson and Rowe 1969).

    Args:
        nodes, density: nodes of the previous look and its density times the node weights, ``(M,)``.
        step: σ, the standard deviation of the increment of the sum since then.
        end: the boundary of the sum.
    """
    unit_nodes, weights = legendre()
    after = end * unit_nodes
    kernel = np.exp(-(((after[:, None] - nodes) / step) ** 2) / 2) / (step * math.sqrt(2 * math.pi))
    return after, end * weights * (kernel @ density)


@lru_cache(maxsize=1)
def legendre() -> tuple[Numbers, Numbers]:
    """Return the nodes and weights of Gauss–Legendre integration on [−1, 1]."""
    return np.polynomial.legendre.leggauss(GRID_POINTS)


def comparison_key(compare: str, arm: str, baseline: str, panel: str) -> Key:
    """Return the key of a comparison, which does not depend on the choice of the baseline."""
    return (compare, *sorted((arm, baseline)), panel)


def is_shortened(short: Key, key: Key) -> bool:
    """Return True if one key is another one with fewer settings in the names of the arms and the panel.

    >>> is_shortened(("model", "bn", "mine", ""), ("model", "bn", "mine, power=1", "data=rings"))
    True
    >>> is_shortened(("model", "bn", "mine", ""), ("model", "bn", "ln", ""))
    False
    """

    def has_fewer(name: str, other: str) -> bool:
        return set(filter(None, name.split(", "))) <= set(other.split(", "))

    same_arms = any(has_fewer(short[1], a) and has_fewer(short[2], b) for a, b in permutations(key[1:3]))
    return short[0] == key[0] and same_arms and has_fewer(short[3], key[3])


@dataclass
class History:
    """The earlier verdicts on the runs of a folder.

    The first verdict fixes the seeds that choose settings and the settings of each arm; replicates added later
    only report. Each later verdict on other replicates is another look at the same comparison.

    Attributes:
        max_replicates: the declared maximum number of reported replicates; None without one.
        tuning_seeds: the seeds that choose settings; None before the first verdict.
        settings: the settings that each arm of a panel may take.
        looks: the seeds of the replicates at each look, by comparison.
    """

    max_replicates: int | None = None
    tuning_seeds: Seeds | None = None
    settings: dict[tuple[Panel, str], list[Key]] = field(default_factory=dict)
    looks: dict[Key, list[Seeds]] = field(default_factory=dict)

    def look(self, key: Key, seeds: Seeds) -> int:
        """Return the number of the look; replicates of an earlier look keep that look's number."""
        earlier = self.earlier_looks(key)
        return earlier.index(seeds) + 1 if seeds in earlier else len(earlier) + 1

    def earlier_looks(self, key: Key) -> list[Seeds]:
        """Return the seeds of the earlier looks at a comparison.

        Its arms and its panel had shorter names before further settings varied: ``mine`` becomes
        ``mine, power=1``. Of several comparisons with such names, the one with the most looks counts.
        """
        shorter = (looks for other, looks in self.looks.items() if is_shortened(other, key))
        return self.looks.get(key) or max(shorter, key=len, default=[])

    def factor(self, key: Key, seeds: Seeds) -> float:
        """Return the factor that p is multiplied by before it is compared with 0.05.

        This is 0.05 divided by the level of the look: ``k(k + 1)`` at look k, or the level of the O'Brien–Fleming
        boundary if a maximum of replicates is declared. Infinite beyond that maximum.
        """
        look = self.look(key, seeds)
        if self.max_replicates is None:
            return ALPHA / look_level(look)
        sizes = [len(earlier) for earlier in (*self.earlier_looks(key)[: look - 1], seeds)]
        if sizes[-1] > self.max_replicates or sizes[-1] < 1:
            return float("inf")
        growing = sorted({size for size in sizes if size <= sizes[-1]})
        level = float(obrien_fleming(growing, self.max_replicates)[-1])
        return ALPHA / level if level > 0 else float("inf")

    def add(self, grid: Grid, tuning: Tuning, rows: Iterable[ComparisonRow]) -> None:
        """Record the looks of the rows with a verdict, and fix tuning seeds and settings at the first one."""
        for row in rows:
            if row["verdict"] not in (BETTER, WORSE, NO_DIFFERENCE):
                continue
            looks = self.looks.setdefault(row["key"], [*self.earlier_looks(row["key"])])
            if row["seeds"] not in looks:
                looks.append(row["seeds"])
            for panel in row["of_panels"]:
                use = grid.uses[panel]
                if not use.within and len(use.tuning) and self.tuning_seeds is None:
                    self.tuning_seeds = tuple(grid.seeds[column] for column in use.tuning)
                for arm in (row["arm"], row["baseline"]):
                    tuned = tuning[panel, arm]
                    chosen = tuned.rows if use.within else sorted({int(k) for k in tuned.chosen if k >= 0})
                    self.settings.setdefault((panel, arm), [grid.configurations[k].tuned for k in chosen])

    def to_json(self) -> dict[str, Any]:
        """Return the history as JSON-serializable lists and mappings."""
        return {
            "max_replicates": self.max_replicates,
            "tuning_seeds": self.tuning_seeds,
            "settings": [
                {"panel": panel, "arm": arm, "settings": settings}
                for (panel, arm), settings in self.settings.items()
            ],
            "looks": [{"comparison": key, "replicates": seeds} for key, seeds in self.looks.items()],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "History":
        """Return the history from the output of :meth:`to_json`.

        Raises:
            KeyError, TypeError, ValueError: the content does not have that form.
        """
        seeds = content["tuning_seeds"]
        return cls(
            content["max_replicates"],
            None if seeds is None else as_seeds(seeds),
            {(tuple(e["panel"]), e["arm"]): [tuple(s) for s in e["settings"]] for e in content["settings"]},
            {
                tuple(entry["comparison"]): [as_seeds(seeds) for seeds in entry["replicates"]]
                for entry in content["looks"]
            },
        )


def as_seeds(numbers: Sequence[Any]) -> Seeds:
    """Return the numbers of a JSON list as a tuple of integers."""
    return tuple(int(number) for number in numbers)
