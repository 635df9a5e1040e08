import math

import numpy as np
import pytest

from normlab.stats.learning_speed import time_per_step_ratio


def test_ratio_is_hodges_lehmann_of_log_ratios():
    # Logs to base 2: 0, 1, 2; their averages 0, 0.5, 1, 1, 1.5, 2 have the median 1.
    # One-sided at 0.25, of 8 sign flips: shifts below 0.5 are rejected (2/8), shifts up to 1 are not (3/8).
    found = time_per_step_ratio([3.0, 6.0, 12.0], [3.0, 3.0, 3.0], level=0.5)
    assert found.value == pytest.approx(2)
    assert (found.low, found.high) == pytest.approx((2**0.5, 2**1.5))


def test_six_rounds_interval_is_the_range():
    # 1/64 on either side is below 0.025, 2/64 above.
    found = time_per_step_ratio([1.1, 1.2, 1.3, 1.4, 1.5, 1.7], np.ones(6))
    assert (found.low, found.high) == pytest.approx((1.1, 1.7))


def test_slowing_machine_changes_no_ratio():
    drift = np.linspace(1, 3, 20)
    found = time_per_step_ratio(1.5 * drift, drift)
    assert (found.value, found.low, found.high) == pytest.approx((1.5, 1.5, 1.5))


def test_interval_covers_1_in_95_of_100_timings():
    generator = np.random.default_rng(0)
    # Of heavy tails, as of a machine with other work to do.
    noise = np.exp(0.01 * np.abs(generator.standard_t(2, size=(400, 2, 20))))
    found = [time_per_step_ratio(*pair) for pair in noise]
    missed = sum(not each.low <= 1 <= each.high for each in found)
    assert 7 <= missed <= 34  # the 99.9 % bounds of 400 draws at 4.8 %


def test_inverse_ratio_has_inverse_interval():
    times = np.random.default_rng(1).lognormal(size=(2, 12))
    there, back = time_per_step_ratio(*times), time_per_step_ratio(*times[::-1])
    assert (back.value, back.low, back.high) == pytest.approx((1 / there.value, 1 / there.high, 1 / there.low))


def test_one_round_gives_unbounded_interval():
    found = time_per_step_ratio([2.0], [1.0])
    assert (found.value, found.low, found.high) == (pytest.approx(2), 0, math.inf)


@pytest.mark.parametrize(("arm", "baseline"), [([1.0, 2.0], [1.0]), ([0.0, 1.0], [1.0, 1.0])])
def test_unpaired_rounds_or_nonpositive_times_raise(arm, baseline):
    with pytest.raises(ValueError, match="must"):
        time_per_step_ratio(arm, baseline)
