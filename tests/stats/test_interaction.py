import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normlab.stats.paired_tests import interaction, mean_over_splits
from normlab.stats.signed_rank import paired_test

INF = math.inf
NUMBERS = st.lists(st.integers(-20, 20), min_size=1, max_size=10)


class TestInteraction:
    def test_by_hand(self):
        # In every replicate the difference is larger by 1 to 6: p = 2/2⁶, between the ends 1 and 6.
        found = interaction([11, 22, 33, 44, 55, 66], [10, 20, 30, 40, 50, 60])
        assert found.p == 2 / 64
        assert found.shift[:3] == (3.5, 1.0, 6.0)

    def test_equal_effects_are_no_interaction(self):
        effects = [5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0]
        assert paired_test(effects).p == 2 / 2**8
        assert interaction(effects, effects[::-1]).p == 1.0

    def test_infinite_differences_of_one_sign_tie(self):
        assert interaction([INF, 1, 2], [INF, 0, 1]).p == paired_test([0, 1, 1]).p
        assert interaction([INF, 1, 2], [-INF, 0, 1]).p == paired_test([INF, 1, 1]).p

    @given(NUMBERS)
    def test_swapped_panels_negate_the_shift(self, values):
        other = np.arange(len(values)) % 3
        found, turned = interaction(values, other), interaction(other, values)
        assert found.p == turned.p
        assert found.shift[:3] == (-turned.shift.value, -turned.shift.high, -turned.shift.low)

    def test_unequal_replicates_raise(self):
        with pytest.raises(ValueError, match="must have the same replicates, got 2 and 1"):
            interaction([1.0, 2.0], [1.0])


class TestMeanOverSplits:
    def test_replicate_counts_once_for_all_splits(self):
        """Values of one replicate on several splits are correlated: they are not n·P independent values."""
        generator = np.random.default_rng(0)
        values = generator.normal(size=(300, 8, 1)) + 0.3 * generator.normal(size=(300, 8, 6))
        false = np.mean([paired_test(mean_over_splits(sweep)).p <= 0.05 for sweep in values])
        naive = np.mean([paired_test(sweep.ravel()).p <= 0.05 for sweep in values])
        assert false <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)
        assert naive > 0.3

    def test_infinite_values_of_a_replicate(self):
        values = np.array([[INF, -INF, 4.0], [INF, 1.0, -INF], [-INF, -INF, INF], [2.0, 4.0, 6.0]])
        assert mean_over_splits(values).tolist() == [4.0, 1.0, -INF, 4.0]
