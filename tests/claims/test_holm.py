"""Holm's correction over a page of claims."""

import numpy as np
import pytest
from scipy.stats import norm
from tests.claims.claim_records import part, record, write

from normlab.claims.claim_record import read_records
from normlab.claims.holm import corrected_answer, decisive_p, page_levels, two_sided_p
from normlab.claims.verdict import Answer, Verdict, decide
from normlab.stats.estimates import UNKNOWN_ESTIMATE

PAGES = 4000
LIMIT = 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / PAGES)
"""A true rate of 5 % exceeds this in one of 200 tests."""
FAR = 9.0


def test_decisive_p_is_that_of_the_answer():
    for p, p_against, answer, decisive in (
        (0.01, 1.0, Answer.HOLDS, 0.01),
        (1.0, 0.02, Answer.FAILS, 0.02),
        (0.3, 0.8, Answer.UNDECIDED, 0.3),
        (0.9, 0.2, Answer.UNDECIDED, 0.2),
    ):
        verdict = decide([part(p=p, p_against=p_against)])
        assert (verdict.answer, decisive_p(verdict)) == (answer, decisive)


def test_one_sided_p_is_doubled():
    verdicts = [
        decide([part(p=0.01, p_against=1.0), part(p=0.001, p_against=1.0, level=level)]) for level in (95, 90)
    ]
    assert [two_sided_p(verdict) for verdict in verdicts] == [0.01, 0.02]


def test_registered_claims_are_corrected_together(tmp_path):
    for name, p in (("a", 0.01), ("b", 0.02), ("c", 0.04)):
        write(tmp_path, record(name, [part(p=p, p_against=1.0)]))
    write(tmp_path, record("d", [part(p=1.0, p_against=0.001)], overrides=["data=wine"]))
    write(tmp_path, record("a", [part(p=0.001, p_against=1.0)], fresh=True), "a-fresh")
    records = read_records(tmp_path)
    assert page_levels(records) == pytest.approx({"a": 0.03, "b": 0.04, "c": 0.04})
    answers = [corrected_answer(one.verdict, 0.06) for one in records]
    assert set(answers) == {Answer.UNDECIDED}


class Page:
    """A record of a claim with given p-values, as :func:`page_levels` uses it."""

    is_registered = True

    def __init__(self, key, p, p_against, sides):
        answer = Answer.HOLDS if p <= 0.05 else Answer.FAILS if p_against <= 0.05 else Answer.UNDECIDED
        self.key, self.verdict = (
            key,
            Verdict(answer, 0.0, UNKNOWN_ESTIMATE, 9, "", (part(level=90 if sides == 1 else 95),), p, p_against),
        )


def wrong_pages(shifts, sides, seed=0):
    """Return the shares of pages with a wrong answer: uncorrected, and after Holm's correction.

    No claim holds: its effect lies ``shift`` standard errors outside of the region, or on its end.
    """
    rng, counts = np.random.default_rng(seed), np.zeros(2)
    for z in rng.normal(-np.asarray(shifts), 1, (PAGES, len(shifts))):
        p, p_against = np.minimum(1, sides * norm.sf(z)), np.minimum(1, sides * norm.cdf(z))
        page = [Page(str(k), *pair, sides) for k, pair in enumerate(zip(p, p_against, strict=True))]
        corrected = page_levels(page)
        own = [one.verdict.answer == Answer.HOLDS for one in page]
        after = [corrected_answer(one.verdict, corrected[one.key]) == Answer.HOLDS for one in page]
        counts += [any(own), any(after)]
    return counts / PAGES


@pytest.mark.slow
@pytest.mark.parametrize("sides", [1, 2])
@pytest.mark.parametrize(
    "shifts",
    [
        pytest.param([0.0] * 21, id="all at the boundary"),
        pytest.param([0.0] * 2, id="two at the boundary"),
        pytest.param([0.0] * 2 + [FAR] * 19, id="two at the boundary, others decided"),
        pytest.param([FAR] * 10 + [0.0] * 11, id="half decided, half at the boundary"),
        pytest.param([0.0] * 7 + [2.0] * 7 + [FAR] * 7, id="mixed"),
        pytest.param(list(np.linspace(0, 4, 21)), id="graded"),
    ],
)
def test_page_is_wrong_in_5_percent(shifts, sides):
    own, after = wrong_pages(shifts, sides)
    assert after <= LIMIT
    if shifts == [0.0] * 21 and sides == 1:
        assert own == pytest.approx(1 - 0.95**21, abs=0.03)


@pytest.mark.thorough
def test_wrong_answers_in_both_directions():
    """Claims that hold and claims that do not are alike by symmetry: exchange p and p_against."""
    rng, wrong, k = np.random.default_rng(1), 0, 20
    for z in rng.normal(0, 1, (PAGES, k)):
        page = [Page(str(j), norm.sf(one), norm.cdf(one), 1) for j, one in enumerate(z)]
        corrected = page_levels(page)
        answers = [corrected_answer(one.verdict, corrected[one.key]) for one in page]
        wrong += Answer.HOLDS in answers[: k // 2] or Answer.FAILS in answers[k // 2 :]
    assert wrong / PAGES <= LIMIT
