import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normlab.stats.estimates import share_estimate
from normlab.stats.paired_tests import compare_paired_shares, failure_correlation, newcombe


def failures(both, only_arm, only_baseline, neither):
    """Return the failures of the arm and of the baseline by replicate."""
    arm = [True] * (both + only_arm) + [False] * (only_baseline + neither)
    baseline = [True] * both + [False] * only_arm + [True] * only_baseline + [False] * neither
    return np.array(arm), np.array(baseline)


COUNTS = st.tuples(*[st.integers(0, 12)] * 4).filter(lambda counts: sum(counts) > 0)


class TestPaired:
    def test_by_hand(self):
        # The arm alone fails five times, the baseline alone never: 2/2⁵.
        assert compare_paired_shares(*failures(3, 5, 0, 4)).p == pytest.approx(1 / 16)
        # One against seven: of 2⁸ ways, 2 (1 + 8) are as uneven.
        assert compare_paired_shares(*failures(1, 1, 7, 12)).p == pytest.approx(18 / 256)
        assert compare_paired_shares(*failures(4, 0, 0, 4)).p == 1.0

    @pytest.mark.parametrize(
        ("counts", "difference", "low", "high"),
        [
            ((1, 1, 7, 12), -0.286, -0.507, -0.026),  # Bentur et al. (2009), in Fagerland et al. (2014)
            ((14, 5, 0, 22), 0.122, 0.011, 0.226),  # Altman et al. (2000), table 6.2
        ],
    )
    def test_published_intervals(self, counts, difference, low, high):
        found = compare_paired_shares(*failures(*counts)).difference
        assert found == pytest.approx((difference, low, high), abs=6e-4)

    def test_correlation_by_hand(self):
        # 14·22 − 5·0 = 308, less half of 41, over √(19·22·14·27).
        assert failure_correlation(14, 5, 0, 22) == pytest.approx(287.5 / math.sqrt(19 * 22 * 14 * 27))
        # 1·1 − 3·4 = −11 is not corrected, and 3·3 − 2·3 = 3 is less than half of 11.
        assert failure_correlation(1, 3, 4, 1) == pytest.approx(-11 / math.sqrt(4 * 5 * 5 * 4))
        assert failure_correlation(3, 2, 3, 3) == 0.0
        assert failure_correlation(0, 0, 2, 3) == 0.0

    @given(COUNTS)
    def test_swapped_arms_or_outcomes_mirror_the_result(self, counts):
        arm, baseline = failures(*counts)
        p, found = compare_paired_shares(arm, baseline)
        for again in (compare_paired_shares(baseline, arm), compare_paired_shares(~arm, ~baseline)):
            assert again.p == pytest.approx(p)
            value, low, high = again.difference
            assert (-value, -high, -low) == pytest.approx(found)
        assert -1 <= found.low <= found.value <= found.high <= 1

    def test_unequal_replicates_raise(self):
        with pytest.raises(ValueError, match="equally many replicates, got 2 and 1"):
            compare_paired_shares([True, False], [True])
        assert math.isnan(compare_paired_shares([], []).p)


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [
        ((56, 70, 48, 80), 0.0524, 0.3339),
        ((9, 10, 3, 10), 0.1705, 0.8090),
        ((5, 56, 0, 29), -0.0381, 0.1926),
        ((0, 10, 0, 20), -0.1611, 0.2775),
        ((10, 10, 0, 20), 0.6791, 1.0),
    ],
)
def test_uncorrelated_interval_matches_newcombe_table(counts, low, high):
    found = newcombe(share_estimate(*counts[:2]), share_estimate(*counts[2:]))
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)
