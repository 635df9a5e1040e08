import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normlab.stats.estimates import final_mean, log_ratios, point_differences

INF, NAN = math.inf, math.nan


class TestFinalMean:
    def test_by_hand(self):
        assert final_mean(np.arange(1.0, 101), 100) == 95.5, "91 to 100"
        assert final_mean(np.arange(1.0, 16), 15) == 14.5, "14 and 15"
        assert final_mean([5.0, 4.0, 3.0], 3) == 3.0, "at least one"

    @pytest.mark.parametrize(
        ("epochs", "count"), [(1, 1), (10, 1), (11, 2), (20, 2), (30, 3), (70, 7), (1000, 100)]
    )
    def test_window_is_last_ten_percent_of_epochs(self, epochs, count):
        values = np.zeros(epochs)
        values[-count:] = 1.0
        assert final_mean(values, epochs) == 1.0
        values[-count] = 0.0
        assert final_mean(values, epochs) < 1.0

    def test_each_run_has_its_own_number_of_epochs(self):
        values = np.array([[9.0, 8.0, 7.0, 6.0], [9.0, 8.0, NAN, NAN]])
        assert final_mean(values, [4, 2]).tolist() == [6.0, 8.0]
        assert final_mean(values, [3, 1]).tolist() == [7.0, 9.0]

    def test_diverged_run_is_infinite(self):
        values = np.array([[1.0, INF, INF], [INF, 2.0, 2.0], [1.0, -INF, NAN], [1.0, 2.0, INF]])
        assert final_mean(values, [3, 3, 3, 2]).tolist() == [INF, INF, -INF, 2.0]

    def test_epochs_without_evaluation_are_ignored(self):
        values = np.full(100, NAN)
        values[[19, 39, 59, 79, 94, 99]] = [6, 5, 4, 3, 2, 1]
        assert final_mean(values, 100) == 1.5
        values[[94, 99]] = NAN
        assert final_mean(values, 100) == 3.0, "the last known value"
        assert math.isnan(final_mean(np.full(5, NAN), 5))

    @given(st.lists(st.lists(st.floats(-9, 9), min_size=12, max_size=12), min_size=1, max_size=4))
    def test_batch_equals_single_runs(self, rows):
        assert final_mean(rows, [12] * len(rows)).tolist() == [float(final_mean(row, 12)) for row in rows]

    @pytest.mark.parametrize("epochs", [0, 4])
    def test_epochs_outside_range_raise(self, epochs):
        with pytest.raises(ValueError, match="epochs must be from 1 to 3"):
            final_mean([1.0, 2.0, 3.0], epochs)


class TestPairs:
    def test_log_ratios_by_hand(self):
        found = log_ratios([math.e, 1.0, INF, INF, 3.0], [1.0, 1.0, INF, 1.0, INF])
        assert found.tolist() == pytest.approx([1.0, 0.0, 0.0, INF, -INF])

    def test_nonpositive_losses_raise(self):
        with pytest.raises(ValueError, match=r"losses must be positive for a log ratio, got -2\.0"):
            log_ratios([1.0, -2.0], [1.0, 1.0])

    def test_points_are_rounded_to_tie(self):
        found = point_differences([0.95, 0.03, 0.3, -INF], [0.94, 0.02, 0.1 + 0.2, 0.5])
        assert found.tolist() == [1.0, 1.0, 0.0, -INF]
