"""Verdicts on claims, from the tests of their parts; the entry is :func:`decide`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from normlab.stats.comparison import ALPHA
from normlab.stats.estimates import Estimate
from normlab.stats.multiple_comparisons import holm
from normlab.stats.regions import Region


class Answer(StrEnum):
    """The answer to a claim."""

    HOLDS = "holds"
    FAILS = "does not hold"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Part:
    """The test of one part of a claim.

    Attributes:
        name: the compared arms, the metric and the panel.
        unit: the unit of the effect: ``ratio``, ``points``, ``difference``, ``value``, ``slope``, ``share`` or
            ``correlation``.
        effect: the estimate.
        interval: the ends of its interval.
        level: the level of the interval, in percent.
        region: the effects for which the part holds.
        n: the number of replicates.
        p: p of the null hypothesis that the part does not hold.
        p_against: p of the null hypothesis that the part holds.
        needed: the number of replicates that would decide with 80 % power; None if no number would.
    """

    name: str
    unit: str
    effect: float
    interval: tuple[float, float]
    level: int
    region: Region
    n: int
    p: float
    p_against: float
    needed: int | None = None

    @property
    def answer(self) -> Answer:
        """The answer to this part alone, at 5 % in each direction."""
        if self.p <= ALPHA:
            return Answer.HOLDS
        return Answer.FAILS if self.p_against <= ALPHA else Answer.UNDECIDED

    @property
    def sentence(self) -> str:
        """The estimate, its interval and the region that the claim requires, in words."""
        if not self.n:
            return f"{self.name}: no replicate has the values"
        if math.isnan(self.effect):
            reason = "no estimate, as more than 29 % of the replicates are infinite"
            return f"{self.name}: {reason} (n = {self.n}), required {region_text(self.region)}"
        low, high = self.interval
        found = f"{self.unit} {self.effect:.3g} ({self.level} % interval {low:.3g} to {high:.3g}, n = {self.n})"
        return f"{self.name}: {found}, required {region_text(self.region)}"


@dataclass(frozen=True)
class Verdict:
    """The verdict on a claim.

    Attributes:
        answer: whether the claim holds.
        effect, interval, n: those of the decisive part: the part with the largest p, or, if the claim does not
            hold, the part with the smallest p against it.
        sentence: the answer with the decisive part in words.
        parts: all parts.
        p: the largest p of the parts; the claim holds if it is at most 5 %.
        p_against: the smallest Holm-corrected p against a part.
        needed: the number of replicates that would decide; None if the claim is decided or no number would.
    """

    answer: Answer
    effect: float
    interval: Estimate
    n: int
    sentence: str
    parts: tuple[Part, ...]
    p: float
    p_against: float
    needed: int | None = None


def decide(parts: Sequence[Part]) -> Verdict:
    """Return the verdict on a claim from its parts, each tested in both directions.

    - *holds* if every part is shown at 5 %. This intersection–union test needs no correction: the claim is false
      only if some part is, and that part is shown with probability at most 5 %.
    - *does not hold* if the complement of some part is shown at 5 % after Holm's correction for the parts.
    - else *undecided*.

    Args:
        parts: at least one part.

    Berger (1982), Multiparameter hypothesis testing and acceptance sampling, Technometrics 24.
    """
    p = max(part.p for part in parts)
    p_against = float(holm(np.array([part.p_against for part in parts])).min())
    answer = Answer.FAILS if p_against <= ALPHA else Answer.UNDECIDED
    answer = Answer.HOLDS if p <= ALPHA else answer
    part = parts[decisive_part(parts, answer)]
    needed = replicates_needed(parts) if answer == Answer.UNDECIDED else None
    sentence = f"{answer}: {part.sentence}"
    if answer == Answer.UNDECIDED and any(other.n > 1 for other in parts):
        sentence += f"; {needed_text(needed)}"
    estimate = Estimate(part.effect, *part.interval)
    return Verdict(answer, part.effect, estimate, part.n, sentence, tuple(parts), p, p_against, needed)


def decisive_part(parts: Sequence[Part], answer: Answer) -> int:
    """Return the index of the part with the largest p, or with the smallest against it if the claim fails."""
    if answer == Answer.FAILS:
        return min(range(len(parts)), key=lambda k: parts[k].p_against)
    return max(range(len(parts)), key=lambda k: parts[k].p)


def replicates_needed(parts: Sequence[Part]) -> int | None:
    """Return the number of replicates that would decide a claim if the estimates were true.

    If an estimate lies outside its part's region, showing this for one such part decides; else every part must be
    shown. None if no number of replicates would decide.
    """
    outside = [part for part in parts if not part.region.contains(part.effect) and not math.isnan(part.effect)]
    relevant = outside or [part for part in parts if part.answer != Answer.HOLDS]
    # The estimate may promise a decision with fewer replicates than there are.
    known = [max(part.needed, part.n + 1) for part in relevant if part.needed is not None]
    if outside:
        return min(known, default=None)
    return max(known) if known and len(known) == len(relevant) else None


def needed_text(needed: int | None) -> str:
    """Return the number of replicates that would decide, in words."""
    if needed is None:
        reason = "it is too close to the bound for this data"
        return f"more replicates would not decide: if the estimate is right, {reason}"
    return f"about {needed} replicates would decide with 80 % power, if the estimate is right"


def region_text(region: Region) -> str:
    """Return a region in words.

    >>> region_text(Region(high=1.0)), region_text(Region(0.5)), region_text(Region(-0.1, 0.1))
    ('below 1', 'above 0.5', 'between -0.1 and 0.1')
    """
    if region.is_bounded:
        return f"between {region.low:.4g} and {region.high:.4g}"
    return f"below {region.high:.4g}" if math.isinf(region.low) else f"above {region.low:.4g}"
