import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from normlab.stats.paired_tests import corrected_t, corrected_t_detectable


def test_by_hand():
    # Mean 2, s² = 1, and √(1/3 + 1/3) = 0.8165: t = 2.4495 with 2 degrees of freedom, where P(|T| > t) is
    # 1 − t/√(2 + t²) = 1 − √(6/8).
    found = corrected_t([1, 2, 3], train=75, test=25)
    assert found.p == pytest.approx(1 - math.sqrt(0.75))
    assert found.mean.value == 2.0
    assert found.mean.high - 2.0 == pytest.approx(4.3027 * math.sqrt(2 / 3), abs=1e-4)


def test_equals_scipy_with_negligible_test_rows():
    d = np.random.default_rng(0).normal(loc=0.5, size=20)
    theirs = stats.ttest_1samp(d, 0)
    found = corrected_t(d, train=10**12, test=1)
    assert found.p == pytest.approx(theirs.pvalue)
    assert found.mean[1:] == pytest.approx(tuple(theirs.confidence_interval()))


@given(st.lists(st.integers(-20, 20), min_size=2, max_size=12), st.integers(1, 50))
def test_interval_contains_0_iff_p_exceeds_5_percent(values, test):
    p, mean = corrected_t(values, train=50, test=test)
    if abs(p - 0.05) > 1e-9:
        assert (p > 0.05) == (mean.low <= 0 <= mean.high)
    assert corrected_t(-np.array(values), train=50, test=test).p == pytest.approx(p)


def test_equal_differences():
    assert corrected_t([0.0, 0.0], 3, 1).p == 1.0
    assert corrected_t([2.0, 2.0, 2.0], 3, 1) == (0.0, (2.0, 2.0, 2.0))


def test_infinite_difference_gives_nan():
    assert math.isnan(corrected_t([1.0, math.inf, 2.0], 3, 1).p)
    assert math.isnan(corrected_t([1.0], 3, 1).mean.low)
    with pytest.raises(ValueError, match="train and test must be at least 1 row each, got 3 and 0"):
        corrected_t([1.0, 2.0], 3, 0)


class TestDetectable:
    @pytest.mark.parametrize("splits", [12, 24, 100])
    def test_detectable_difference_has_80_percent_power(self, splits):
        """Differences over splits of one table have correlation test/(test + train) = 1/5."""
        generator, shared = np.random.default_rng(splits), 0.2
        own = generator.normal(size=(2000, splits))
        d = corrected_t_detectable(splits, 80, 20) + own
        d += math.sqrt(shared / (1 - shared)) * generator.normal(size=(2000, 1))
        power = np.mean([corrected_t(row, 80, 20).p <= 0.05 for row in d])
        assert power == pytest.approx(0.8, abs=0.03)

    def test_more_splits_approach_a_limit(self):
        found = [corrected_t_detectable(splits, 80, 20) for splits in (2, 12, 24, 100, 10_000)]
        assert found == sorted(found, reverse=True)
        # Without limit: (1.96 + 0.84)·√(1/4).
        assert found[-1] == pytest.approx(2.8016 / 2, abs=2e-3)
        assert corrected_t_detectable(1, 80, 20) == math.inf
