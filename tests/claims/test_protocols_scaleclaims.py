"""Verdicts on claims about scale invariance and normalizers without statistics, in sweeps with a planted truth."""

import pytest

from normlab.claims import Answer
from tests.claims.planted import PlantedSweep, load_criterion

HOLDS, FAILS = Answer.HOLDS, Answer.FAILS


@pytest.mark.parametrize(
    ("differing", "without_norm", "answer"),
    [((), 0.4, HOLDS), (("ln",), 0.4, FAILS), ((), 1.0, FAILS)],
    ids=["holds", "ln differs", "also without a normalizer"],
)
def test_wd_is_lr(differing, without_norm, answer):
    def loss(metric, arm, panel):
        ratio = {"nobn": without_norm}.get(panel["model"], 1.01 if panel["model"] in differing else 1.0)
        return 0.2 * (ratio if arm == "exponential" else 1.0)

    assert load_criterion("wd_is_lr")(PlantedSweep(loss, n=12, scatter=1e-9)).answer == answer
