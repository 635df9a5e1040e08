import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from normlab.analysis.estimates import difference, differences, improvement, iqm, mean, ratio, share, wilson
from normlab.analysis.resampling import Draws

INF = math.inf
numbers = st.lists(st.floats(-100, 100), min_size=8, max_size=12)


def draws(seed=0, resamples=1000):
    return Draws(np.random.default_rng(seed), resamples)


def array(*values):
    return np.array(values, dtype=float)


class TestInterquartileMean:
    def test_by_hand(self):
        assert iqm(array(1, 2, 3, 100)) == 2.5
        assert iqm(array(8, 1, 2, 3, 4, 5, 6, 700)) == 4.5  # 3, 4, 5, 6
        assert iqm(array(9, 1, 5)) == 5.0, "below four values nothing is cut"

    @given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40))
    def test_scipy_has_the_same(self, values):
        assert iqm(np.array(values)) == pytest.approx(stats.trim_mean(values, 0.25), abs=1e-6)

    def test_along_the_last_axis(self):
        values = np.random.default_rng(0).normal(size=(3, 2, 10))
        np.testing.assert_allclose(iqm(values), stats.trim_mean(values, 0.25, axis=-1))

    def test_the_interval_is_scipys_to_the_noise_of_resampling(self):
        values = np.random.default_rng(1).normal(size=16)
        found = mean(values, draws(resamples=20_000))
        theirs = stats.bootstrap(
            (values,), iqm, method="percentile", n_resamples=20_000, rng=np.random.default_rng(2)
        ).confidence_interval
        assert found[1:] == pytest.approx(theirs, abs=0.03)
        assert found.low < found.value < found.high

    def test_the_order_of_the_values_does_not_move_the_interval(self):
        values = np.random.default_rng(1).normal(size=9)
        assert mean(values[::-1], draws()) == mean(values, draws())

    def test_up_to_a_quarter_of_diverged_runs_is_left_out(self):
        found = mean(array(1, 2, 3, 4, 5, 6, INF, INF), draws())
        assert found.value == 4.5
        assert found.high == INF, "resamples have more of them"
        assert math.isfinite(found.low)

    def test_above_a_quarter_there_is_none(self):
        assert all(map(math.isnan, mean(array(1, 2, 3, 4, 5, INF, INF, INF), draws())))

    def test_few_values(self):
        assert mean(array(3), draws())[0] == 3.0
        assert math.isnan(mean(array(3), draws()).low)
        assert math.isnan(mean(array(), draws()).value)

    def test_without_resamples_there_is_a_value_alone(self):
        found = mean(array(1, 2, 3, 4), draws(resamples=0))
        assert found.value == 2.5
        assert math.isnan(found.low)


class TestDifference:
    def test_by_hand(self):
        found = difference(array(2, 4, 6, 8), array(1, 1, 1, 1), True, draws())
        assert found.value == 4.0  # of 1, 3, 5, 7 the middle two

    def test_of_one_seed_nothing_else_than_the_difference_counts(self):
        hard = np.random.default_rng(0).normal(scale=100, size=8)
        found = difference(hard + 2, hard, True, draws())
        assert found == pytest.approx((2, 2, 2))

    def test_unpaired_it_is_that_of_the_means(self):
        found = difference(array(1, 2, 3, 100), array(0, 0, 1, 1, 1), False, draws())
        assert found.value == pytest.approx(2.5 - 2 / 3)
        assert found.low < found.value < found.high

    @given(numbers, numbers)
    def test_with_the_arms_exchanged_it_has_the_other_sign(self, ours, theirs):
        n = min(len(ours), len(theirs))
        a, b = array(*ours[:n]), array(*theirs[:n])
        there, back = difference(a, b, True, draws()), difference(b, a, True, draws())
        assert [there.value, there.low, there.high] == pytest.approx([-back.value, -back.high, -back.low])

    def test_two_that_diverged_do_not_differ(self):
        assert differences(array(INF, INF, 1), array(INF, 1, INF)).tolist() == [0, INF, -INF]

    def test_diverged_runs_on_both_sides_leave_an_interval_without_ends(self):
        found = difference(array(1, 2, 3, 4, 5, 6, INF, INF), array(INF, INF, 1, 1, 1, 1, 1, 1), True, draws())
        assert found.value == 3.5  # of 2, 3, 4, 5
        assert (found.low, found.high) == (-INF, INF)

    def test_above_a_quarter_of_diverged_runs_there_is_none(self):
        assert math.isnan(difference(array(1, 1, 1, INF, INF), array(2, 2, 2, 2, 2), True, draws()).value)

    def test_one_seed_and_none(self):
        assert difference(array(3), array(1), True, draws()).value == 2.0
        assert math.isnan(difference(array(3), array(1), False, draws()).low)
        assert math.isnan(difference(array(), array(), True, draws()).value)


class TestRatio:
    def test_a_constant_ratio_has_an_interval_of_no_width(self):
        baseline = array(1, 2, 4, 8, 16, 32, 64, 128)
        assert ratio(3 * baseline, baseline, True, draws()) == pytest.approx((3, 3, 3))

    def test_by_hand(self):
        assert ratio(array(2, 4, 9, 70), array(1, 1, 1, 1), True, draws()).value == pytest.approx(6.0)  # √(4·9)

    @given(numbers, numbers)
    def test_with_the_arms_exchanged_it_is_inverted(self, ours, theirs):
        n = min(len(ours), len(theirs))
        a, b = (np.exp(array(*values[:n]) / 20) for values in (ours, theirs))
        there, back = ratio(a, b, True, draws()), ratio(b, a, True, draws())
        assert [there.value, there.low, there.high] == pytest.approx([1 / back.value, 1 / back.high, 1 / back.low])

    def test_unpaired_it_is_that_of_the_geometric_means(self):
        assert ratio(array(1, 4, 4, 9), array(1, 1), False, draws()).value == pytest.approx(4.0)

    def test_numbers_that_are_not_positive_have_none(self):
        assert math.isnan(ratio(array(1, 2), array(0, 1), True, draws()).value)

    def test_a_diverged_run_is_infinite_or_nothing_whichever_is_bad(self):
        baseline = array(*[1.0] * 8)
        large = ratio(array(2, 2, 2, 2, 2, 2, INF, INF), baseline, True, draws())
        small = ratio(array(2, 2, 2, 2, 2, 2, -INF, -INF), baseline, True, draws())
        assert (large.value, large.low, large.high) == (pytest.approx(2), pytest.approx(2), INF)
        assert (small.value, small.low, small.high) == (pytest.approx(2), 0, pytest.approx(2))


class TestImprovement:
    def test_over_all_pairs_with_ties_one_half(self):
        # 1 is below 2 and 3, 3 below none and equal to 3: (2 + 0.5) of 4.
        assert improvement(array(1, 3), array(2, 3), True, draws()).value == 0.625

    @given(numbers, numbers)
    def test_it_is_that_of_the_rank_sum(self, ours, theirs):
        a, b = array(*ours), array(*theirs)
        rank_sum = stats.mannwhitneyu(b, a).statistic / (len(a) * len(b))
        assert improvement(a, b, False, draws()).value == pytest.approx(rank_sum)

    @given(numbers, numbers)
    def test_with_the_arms_exchanged_it_is_the_rest(self, ours, theirs):
        n = min(len(ours), len(theirs))
        a, b = array(*ours[:n]), array(*theirs[:n])
        there, back = improvement(a, b, True, draws()), improvement(b, a, True, draws())
        assert [there.value, there.low, there.high] == pytest.approx([1 - back.value, 1 - back.high, 1 - back.low])

    def test_that_every_run_is_better_does_not_make_it_sure(self):
        found = improvement(array(*range(8)), array(*range(10, 18)), True, draws())
        assert (found.value, found.high) == (1.0, pytest.approx(1.0))
        assert found.low == pytest.approx(wilson(1.0, 8)[0])

    def test_diverged_runs_are_worst_and_equal(self):
        assert improvement(array(INF, 1), array(INF, 2), True, draws()).value == (0.5 + 0 + 1 + 1) / 4

    def test_one_seed_and_none(self):
        assert improvement(array(1), array(2), True, draws()).value == 1.0
        assert math.isnan(improvement(array(1), array(2), True, draws()).low)
        assert math.isnan(improvement(array(), array(2), False, draws()).value)


class TestShare:
    def test_by_hand(self):
        # (p + z²/2n ± z√(p(1 − p)/n + z²/4n²)) / (1 + z²/n), p = 3/4, n = 8, z = 1.96
        assert share(6, 8) == pytest.approx((0.75, 0.4093, 0.9285), abs=1e-4)

    @given(st.integers(1, 40), st.data())
    def test_wilsons_interval_is_scipys(self, n, data):
        count = data.draw(st.integers(0, n))
        assert share(count, n)[1:] == pytest.approx(wilson(count / n, n), abs=1e-9)

    def test_of_none_nothing_is_known(self):
        assert all(map(math.isnan, share(0, 0)))
