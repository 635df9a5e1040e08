"""Criteria of claims: each takes a :class:`~normlab.claims.sweep.Sweep` and returns a verdict.

A criterion is a ``_target_`` of a claim's YAML, with its parameters. A margin is relative for a metric that is
compared by ratio (0.05 is 5 %), a share for accuracies (0.05 is 5 points), and else in the metric's unit.
"""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from normlab.claims.parts import (
    align,
    bounds,
    bounds_or_margin,
    in_unit,
    kind_of,
    margin_region,
    near_best_p,
    panel_text,
    part_name,
    region_part,
    shown_part,
)
from normlab.claims.sweep import Settings, Sweep
from normlab.claims.verdict import Part, Verdict, decide
from normlab.errors import require
from normlab.stats.comparison import DIFFERENCE, POINTS, RATIO, paired_effects
from normlab.stats.estimates import Numbers, differences
from normlab.stats.regions import Region, share_test


@dataclass(frozen=True, kw_only=True)
class Criterion(ABC):
    """A rule that turns the numbers of a sweep into a verdict; its parts must all hold."""

    @abstractmethod
    def parts(self, sweep: Sweep) -> list[Part]:
        """Test each part of the claim."""

    def __call__(self, sweep: Sweep) -> Verdict:
        """Return the verdict on the claim."""
        return decide(self.parts(sweep))


@dataclass(frozen=True, kw_only=True)
class AllOf(Criterion):
    """The parts of several criteria, which must all hold.

    Args:
        criteria: at least one criterion.
    """

    criteria: Sequence[Criterion]

    def __post_init__(self) -> None:
        require(len(self.criteria) > 0, "criteria", "at least one criterion", list(self.criteria))
        for criterion in self.criteria:
            # Hydra turns dataclasses in a list into mappings, unless it converts the list.
            require(isinstance(criterion, Criterion), "criteria", "criteria (set _convert_: all)", criterion)

    def parts(self, sweep: Sweep) -> list[Part]:
        """Test the parts of each criterion."""
        return [part for criterion in self.criteria for part in criterion.parts(sweep)]


@dataclass(frozen=True, kw_only=True)
class Each(Criterion):
    """The parts of a criterion for each combination of settings; all must hold.

    Args:
        over: the settings of each key. A key that is part of a text of the criterion, as ``{layer}`` is of the
            metric ``mean/probe/angular_update/batch/{layer}/angle``, is replaced there; the settings of the other
            keys are added to the criterion's panel.
        criterion: the criterion.
    """

    over: Mapping[str, Sequence[Any]]
    criterion: Criterion

    def __post_init__(self) -> None:
        require(
            len(self.over) > 0 and all(self.over.values()), "over", "lists of settings by key", dict(self.over)
        )

    def parts(self, sweep: Sweep) -> list[Part]:
        """Test the parts of the criterion for each combination."""
        combinations = (dict(zip(self.over, row, strict=True)) for row in itertools.product(*self.over.values()))
        return [part for settings in combinations for part in specialized(self.criterion, settings).parts(sweep)]


def specialized(criterion: Criterion, settings: Settings) -> Criterion:
    """Return a criterion with settings in place of ``{key}`` in its texts, and else in its panel."""
    if isinstance(criterion, AllOf):
        return replace(criterion, criteria=[specialized(each, settings) for each in criterion.criteria])
    if isinstance(criterion, Each):
        return replace(criterion, criterion=specialized(criterion.criterion, settings))
    changes = {each.name: getattr(criterion, each.name) for each in fields(criterion)}
    for key, setting in settings.items():
        mark = f"{{{key}}}"
        marked = [name for name, value in changes.items() if isinstance(value, str) and mark in value]
        panels = [name for name in ("panel", "other") if isinstance(changes.get(name), Mapping)]
        changes |= {name: changes[name].replace(mark, str(setting)) for name in marked}
        changes |= {} if marked else {name: {**changes[name], key: setting} for name in panels}
    return replace(criterion, **changes)


@dataclass(frozen=True, kw_only=True)
class Comparison(Criterion):
    """Two arms that are compared by a metric in one panel, paired by replicate.

    Args:
        arm, baseline: the names of the arms.
        metric: the name of the metric.
        panel: the settings of the panel, by key.
    """

    arm: str
    baseline: str
    metric: str
    panel: Settings = field(default_factory=dict)

    @property
    def arms(self) -> tuple[str, str]:
        """The names of both arms."""
        return self.arm, self.baseline

    @property
    def name(self) -> str:
        """The name of the part."""
        return part_name(f"{self.arm} against {self.baseline}", self.metric, self.panel)

    def pair(self, sweep: Sweep) -> list[Numbers]:
        """Return the values of the arm and of the baseline in their shared replicates, each ``(n,)``."""
        return align(*(sweep.values(self.metric, arm, self.panel) for arm in self.arms))

    def relative_part(self, sweep: Sweep, region: Region, sides: int) -> Part:
        """Test whether the effect lies in a region of relative effects."""
        values = self.pair(sweep)
        kind = kind_of(sweep, self.metric, *values)
        return self.part(sweep, kind, paired_effects(kind, *values), in_unit(kind, region), sides)

    def part(self, sweep: Sweep, kind: str, effects: Numbers, region: Region, sides: int = 2) -> Part:
        """Test whether the shift of paired effects lies in a region."""
        return region_part(self.name, kind, effects, region, sides, sweep.rows(self.metric, self.panel))

    def beats(self, sweep: Sweep, margin: float, sides: int) -> Part:
        """Test whether the arm is better by more than a margin; a negative one allows it to be worse."""
        region = Region(high=-margin) if sweep.metric(self.metric).sign > 0 else Region(low=margin)
        part = self.relative_part(sweep, region, sides)
        p, p_against = near_best_p(sweep, self.metric, self.arms, self.panel, region, sides)
        return replace(part, p=max(part.p, p), p_against=max(part.p_against, p_against))


@dataclass(frozen=True, kw_only=True)
class Better(Comparison):
    """The arm is better than the baseline by more than a margin (95 % interval).

    The test is that of docs/statistics.md, two-sided at 5 % and also against near-best settings of the worse arm.
    """

    margin: float = 0.0

    def __post_init__(self) -> None:
        require(0 <= self.margin < math.inf, "margin", "a number ≥ 0", self.margin)

    def parts(self, sweep: Sweep) -> list[Part]:
        """Test whether the arm is better."""
        return [self.beats(sweep, self.margin, sides=2)]


@dataclass(frozen=True, kw_only=True)
class NotWorse(Comparison):
    """The arm is worse than the baseline by less than a margin, or better (one-sided, 90 % interval)."""

    margin: float

    def __post_init__(self) -> None:
        margin_region(self.margin)

    def parts(self, sweep: Sweep) -> list[Part]:
        """Test whether the arm is not worse."""
        return [self.beats(sweep, -self.margin, sides=1)]


@dataclass(frozen=True, kw_only=True)
class Equivalent(Comparison):
    """The arms differ by less than a margin: the 90 % interval lies within ± margin."""

    margin: float

    def __post_init__(self) -> None:
        margin_region(self.margin)

    def parts(self, sweep: Sweep) -> list[Part]:
        """Test whether the arms are equivalent."""
        return [self.relative_part(sweep, margin_region(self.margin), sides=1)]


@dataclass(frozen=True, kw_only=True)
class Ratio(Comparison):
    """The ratio of the arm's value to the baseline's is above or below a bound, or both (95 % interval).

    Args:
        above, below: the bounds, as ratios; both values must be positive.
    """

    above: float | None = None
    below: float | None = None

    def __post_init__(self) -> None:
        ends = [end for end in bounds(self.above, self.below) if math.isfinite(end)]
        require(min(ends) > 0, "above" if self.above is not None else "below", "a ratio > 0", min(ends))

    def parts(self, sweep: Sweep) -> list[Part]:
        """Test whether the ratio lies between the bounds."""
        values = self.pair(sweep)
        lowest = min((*values[0], *values[1], math.inf))
        require(lowest > 0, "metric", "one with positive values for a ratio", f"{self.metric} of {lowest:g}")
        region = bounds(*(end if end is None else math.log(end) for end in (self.above, self.below)))
        return [self.part(sweep, RATIO, paired_effects(RATIO, *values), region)]


@dataclass(frozen=True, kw_only=True)
class Difference(Comparison):
    """The arm's value minus the baseline's is above or below a bound, or both (95 % interval).

    Args:
        above, below: the bounds, in percentage points for accuracies, else in the metric's unit.
    """

    above: float | None = None
    below: float | None = None

    def __post_init__(self) -> None:
        bounds(self.above, self.below)

    def parts(self, sweep: Sweep) -> list[Part]:
        """Test whether the difference lies between the bounds."""
        kind = POINTS if sweep.metric(self.metric).is_share else DIFFERENCE
        effects = paired_effects(kind, *self.pair(sweep))
        return [self.part(sweep, kind, effects, bounds(self.above, self.below))]


@dataclass(frozen=True, kw_only=True)
class Interaction(Comparison):
    """The effect of the arm in a panel, less its effect in another panel, is above or below a bound.

    For losses this is a ratio of ratios. The interval is of 95 %, or of 90 % with a margin.

    Args:
        other: the settings of the other panel.
        above, below: the bounds, relative as margins are: 0 is no change, 0.1 a ratio of ratios of 1.1.
        margin: instead of bounds, the largest change in either direction.
    """

    other: Settings
    above: float | None = None
    below: float | None = None
    margin: float | None = None

    def __post_init__(self) -> None:
        bounds_or_margin(self.above, self.below, self.margin)

    def parts(self, sweep: Sweep) -> list[Part]:
        """Test whether the change of the effect lies between the bounds."""
        panels = (self.panel, self.other)
        values = align(*(sweep.values(self.metric, arm, panel) for panel in panels for arm in self.arms))
        kind = kind_of(sweep, self.metric, *values)
        change = differences(paired_effects(kind, *values[:2]), paired_effects(kind, *values[2:]))
        region, sides = bounds_or_margin(self.above, self.below, self.margin)
        rows = sweep.rows(self.metric, self.panel) or sweep.rows(self.metric, self.other)
        name = f"{self.name} {'over' if kind == RATIO else 'minus'} {panel_text(self.other)}"
        return [region_part(name, kind, change, in_unit(kind, region), sides, rows)]


@dataclass(frozen=True, kw_only=True)
class Share(Comparison):
    """The share of replicates in which the arm's value is lower is above or below a bound, by the sign test.

    Ties do not count. The interval is Clopper and Pearson's of 95 %.

    Args:
        above, below: the bounds of the share.
        higher: True to count replicates in which the arm's value is higher.
    """

    above: float | None = None
    below: float | None = None
    higher: bool = False

    def __post_init__(self) -> None:
        ends = [end for end in bounds(self.above, self.below) if math.isfinite(end)]
        require(min(ends) > 0 and max(ends) < 1, "above, below", "shares between 0 and 1", ends)

    def parts(self, sweep: Sweep) -> list[Part]:
        """Test the share of replicates."""
        require(
            sweep.rows(self.metric, self.panel) is None,
            "metric",
            "one that is not measured on overlapping test splits for a sign test; use generated data",
            self.metric,
        )
        signs = np.sign(differences(*self.pair(sweep))) * (1 if self.higher else -1)
        region, n = bounds(self.above, self.below), int(np.count_nonzero(signs))
        name = f"{self.name}, {'higher' if self.higher else 'lower'}"
        return [shown_part(name, "share", share_test(int((signs > 0).sum()), n, region), region, n)]
