import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from normlab.stats.paired_tests import equivalence

GRID = st.integers(-6, 6).map(lambda x: x / 4)
MARGINS = st.integers(1, 16).map(lambda x: x / 8)


def test_by_hand():
    # Moved by the margin 4, ±1, ±2 … are all on one side: p = 1/2⁶ on either side.
    d = [1, -1, 2, -2, 3, -3]
    assert equivalence(d, 4).p == 1 / 64
    # −1 − 3 … 3 − 3: a zero is dropped, and five are negative.
    assert equivalence(d, 3).p == 1 / 32
    assert equivalence([-5.0] * 6, 1).p == 1.0


def test_few_pairs_are_not_equivalent():
    assert equivalence([0.1, -0.1, 0.0, 0.1], 1).p == 1 / 16


@given(st.lists(GRID, min_size=1, max_size=14), MARGINS)
@settings(deadline=None)
def test_equivalent_iff_90_percent_interval_is_within_margin(values, margin):
    p, interval = equivalence(values, margin)
    assert (p <= 0.05) == (interval.is_above(-margin) and interval.is_below(margin))


@given(st.lists(GRID, min_size=1, max_size=10), MARGINS)
@settings(deadline=None)
def test_swapped_arms_give_same_p(values, margin):
    p = equivalence(values, margin).p
    assert equivalence(-np.array(values), margin).p == p


@pytest.mark.parametrize("lost", [math.inf, -math.inf])
def test_diverged_run_is_outside_any_margin(lost):
    # Moved by the margin, seven have the midrank 4 and one sign, and the infinite one the rank 8 and the other: of
    # 2⁸ sums 1 + 7 + 21 + 1 are at most 8.
    assert equivalence([0.0] * 7, 1).p == 1 / 2**7
    assert equivalence([*[0.0] * 7, lost], 1).p == 30 / 2**8


@pytest.mark.parametrize("margin", [0, -1, math.inf, math.nan])
def test_nonpositive_margin_raises(margin):
    with pytest.raises(ValueError, match="margin must be positive and finite, got"):
        equivalence([1.0], margin)
