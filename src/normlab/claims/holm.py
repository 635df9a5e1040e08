"""Holm's correction over a page of claims; the entry is :func:`page_levels`."""

from collections.abc import Sequence

import numpy as np

from normlab.claims.claim_record import ClaimRecord
from normlab.claims.verdict import Answer, Verdict
from normlab.stats.comparison import ALPHA
from normlab.stats.multiple_comparisons import holm

TWO_SIDED_LEVEL = 95
"""Level of the interval of a part with a two-sided test, in percent."""


def page_levels(records: Sequence[ClaimRecord]) -> dict[str, float]:
    """Return the Holm-corrected p of each claim that followed its registered protocol, by the key of its record.

    Of the two null hypotheses of a claim, that it is false and that it is true, one is true. With independent
    claims, the probability of any wrong answer at the corrected level is at most 5 %. The p of one-sided tests is
    doubled first: otherwise two such claims at the ends of their regions would be wrong in 5.06 %, because an
    answer to one that is right by chance raises the level of the other.

    Shaffer (1980), Control of directional errors with stagewise multiple test procedures, Annals of Statistics 8.
    """
    registered = [record for record in records if record.is_registered]
    corrected = holm(np.array([two_sided_p(record.verdict) for record in registered]))
    return {record.key: float(p) for record, p in zip(registered, corrected, strict=True)}


def decisive_p(verdict: Verdict) -> float:
    """Return p of the null hypothesis that the answer rejects; the smaller p of both if it is undecided."""
    return {Answer.HOLDS: verdict.p, Answer.FAILS: verdict.p_against}.get(
        verdict.answer, min(verdict.p, verdict.p_against)
    )


def two_sided_p(verdict: Verdict) -> float:
    """Return the decisive p, doubled if a part has a one-sided test, whose interval has 90 %."""
    sides = 2 if any(part.level < TWO_SIDED_LEVEL for part in verdict.parts) else 1
    return min(1.0, sides * decisive_p(verdict))


def corrected_answer(verdict: Verdict, p: float) -> Answer:
    """Return the answer to a claim at 5 %, given its corrected p."""
    return verdict.answer if p <= ALPHA else Answer.UNDECIDED
