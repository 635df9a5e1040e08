import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from normlab.stats.estimates import Resampler, differences, iqm, iqm_estimate, share_estimate

INF = math.inf


def draws(seed=0, resamples=1000):
    return Resampler(np.random.default_rng(seed), resamples)


def array(*values):
    return np.array(values, dtype=float)


class TestInterquartileMean:
    def test_by_hand(self):
        assert iqm(array(1, 2, 3, 100)) == 2.5
        assert iqm(array(8, 1, 2, 3, 4, 5, 6, 700)) == 4.5  # 3, 4, 5, 6
        assert iqm(array(9, 1, 5)) == 5.0, "below four values nothing is cut"

    @given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40))
    def test_equals_scipy(self, values):
        assert iqm(np.array(values)) == pytest.approx(stats.trim_mean(values, 0.25), abs=1e-6)

    def test_along_the_last_axis(self):
        values = np.random.default_rng(0).normal(size=(3, 2, 10))
        np.testing.assert_allclose(iqm(values), stats.trim_mean(values, 0.25, axis=-1))

    def test_interval_matches_scipy_within_resampling_noise(self):
        values = np.random.default_rng(1).normal(size=16)
        found = iqm_estimate(values, draws(resamples=20_000))
        theirs = stats.bootstrap(
            (values,), iqm, method="percentile", n_resamples=20_000, rng=np.random.default_rng(2)
        ).confidence_interval
        assert found[1:] == pytest.approx(theirs, abs=0.03)
        assert found.low < found.value < found.high

    def test_value_order_does_not_change_interval(self):
        values = np.random.default_rng(1).normal(size=9)
        assert iqm_estimate(values[::-1], draws()) == iqm_estimate(values, draws())

    def test_up_to_a_quarter_diverged_is_trimmed(self):
        found = iqm_estimate(array(1, 2, 3, 4, 5, 6, INF, INF), draws())
        assert found.value == 4.5
        assert found.high == INF, "resamples have more of them"
        assert math.isfinite(found.low)

    def test_nan_above_a_quarter_diverged(self):
        assert all(map(math.isnan, iqm_estimate(array(1, 2, 3, 4, 5, INF, INF, INF), draws())))

    def test_few_values(self):
        assert iqm_estimate(array(3), draws())[0] == 3.0
        assert math.isnan(iqm_estimate(array(3), draws()).low)
        assert math.isnan(iqm_estimate(array(), draws()).value)

    def test_no_resamples_give_value_without_interval(self):
        found = iqm_estimate(array(1, 2, 3, 4), draws(resamples=0))
        assert found.value == 2.5
        assert math.isnan(found.low)


def test_two_diverged_runs_do_not_differ():
    assert differences(array(INF, INF, 1), array(INF, 1, INF)).tolist() == [0, INF, -INF]


class TestShare:
    def test_by_hand(self):
        # (p + z²/2n ± z√(p(1 − p)/n + z²/4n²)) / (1 + z²/n), p = 3/4, n = 8, z = 1.96
        assert share_estimate(6, 8) == pytest.approx((0.75, 0.4093, 0.9285), abs=1e-4)

    @given(st.integers(1, 40), st.data())
    def test_wilson_interval_by_formula(self, n, data):
        count, z = data.draw(st.integers(0, n)), stats.norm.isf(0.025)
        p = count / n
        half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
        ends = [(p + z**2 / (2 * n) + side * half) / (1 + z**2 / n) for side in (-1, 1)]
        assert share_estimate(count, n)[1:] == pytest.approx(ends, abs=1e-9)

    def test_no_runs_give_nan(self):
        assert all(map(math.isnan, share_estimate(0, 0)))
