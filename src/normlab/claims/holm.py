"""Holm's correction over a page of claims; the entry is :func:`page_levels`."""

from collections.abc import Sequence

import numpy as np

from normlab.claims.claim_record import ClaimRecord
from normlab.claims.verdict import Answer, Verdict
from normlab.stats.comparison import ALPHA
from normlab.stats.multiple_comparisons import holm


def page_levels(records: Sequence[ClaimRecord]) -> dict[str, float]:
    r"""Return the Holm-corrected p of each claim that followed its registered protocol, by the key of its record.

    Of the two null hypotheses of a claim, that it is false and that it is true, one is true. With independent
    claims, the probability of any wrong answer at the corrected level is at most about α = 5 %. A bit above this,
    :math:`α + α²/4` = 5.06 %, is reached by two claims with one-sided tests that both lie exactly at the end of
    their regions: the right answer to one, by chance, raises the level of the other.

    Shaffer (1980), Control of directional errors with stagewise multiple test procedures, Annals of Statistics 8.
    """
    registered = [record for record in records if record.is_registered]
    corrected = holm(np.array([decisive_p(record.verdict) for record in registered]))
    return {record.key: float(p) for record, p in zip(registered, corrected, strict=True)}


def decisive_p(verdict: Verdict) -> float:
    """Return p of the null hypothesis that the answer rejects; the smaller p of both if it is undecided."""
    return {Answer.HOLDS: verdict.p, Answer.FAILS: verdict.p_against}.get(
        verdict.answer, min(verdict.p, verdict.p_against)
    )


def corrected_answer(verdict: Verdict, p: float) -> Answer:
    """Return the answer to a claim at 5 %, given its corrected p."""
    return verdict.answer if p <= ALPHA else Answer.UNDECIDED
