import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from normlab.analysis.equivalence import equivalence, not_worse

GRID = st.integers(-6, 6).map(lambda x: x / 4)
MARGINS = st.integers(1, 16).map(lambda x: x / 8)


def test_by_hand():
    # Moved by the margin 4, ±1, ±2 … are all on one side: p = 1/2⁶ on either side.
    d = [1, -1, 2, -2, 3, -3]
    assert equivalence(d, 4).p == 1 / 64
    # −1 − 3 … 3 − 3: a zero is dropped, and five are negative.
    assert equivalence(d, 3).p == 1 / 32
    assert not_worse([-5.0] * 6, 1).p == 1 / 64
    assert equivalence([-5.0] * 6, 1).p == 1.0


def test_a_large_difference_is_worse_and_a_small_one_with_few_pairs_shows_nothing():
    assert not_worse([3.0] * 12, 1).p == 1.0
    assert equivalence([0.1, -0.1, 0.0, 0.1], 1).p == 1 / 16


@given(st.lists(GRID, min_size=1, max_size=14), MARGINS)
@settings(deadline=None)
def test_it_holds_exactly_where_the_90_percent_interval_is_within_the_margins(values, margin):
    p, interval = equivalence(values, margin)
    assert (p <= 0.05) == (interval.is_above(-margin) and interval.is_below(margin))
    p, interval = not_worse(values, margin)
    assert (p <= 0.05) == interval.is_below(margin)


@given(st.lists(GRID, min_size=1, max_size=10), MARGINS)
@settings(deadline=None)
def test_arms_may_be_exchanged_and_equivalent_is_not_worse_either_way(values, margin):
    p = equivalence(values, margin).p
    assert equivalence(-np.array(values), margin).p == p
    assert p == max(not_worse(values, margin).p, not_worse(-np.array(values), margin).p)


def test_a_diverged_run_counts_against_the_arm():
    values = [0.0] * 7
    assert not_worse([*values, math.inf], 1).p > not_worse([*values, -math.inf], 1).p


@pytest.mark.parametrize("margin", [0, -1, math.inf, math.nan])
def test_the_margin_is_positive(margin):
    with pytest.raises(ValueError, match="margin must be positive and finite, got"):
        equivalence([1.0], margin)
