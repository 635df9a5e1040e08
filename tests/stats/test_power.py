import math
import time

import numpy as np
import pytest

from normlab.stats.paired_tests import asymptotic_shift, detectable_shift, replicates_for
from normlab.stats.signed_rank import signed_rank


@pytest.mark.parametrize(
    ("n", "level"), [(6, 0.05), (8, 0.05), (12, 0.05), (12, 0.05 / 3), (24, 0.05), (32, 0.05), (60, 0.05 / 7)]
)
def test_detectable_shift_has_80_percent_power(n, level):
    d = np.random.default_rng(1).normal(loc=detectable_shift(n, level), size=(2000, n))
    assert (signed_rank(d) <= level).mean() == pytest.approx(0.8, abs=0.03)


def test_six_pairs_by_hand():
    """Only six differences of one sign are declared: P(Z > −δ)⁶ = 0.8."""
    assert detectable_shift(6) == pytest.approx(1.7914, abs=0.03)


def test_too_few_pairs_detect_nothing():
    assert detectable_shift(5) == math.inf
    assert detectable_shift(8, 0.05 / 7) == math.inf, "p is at least 1/128"
    assert detectable_shift(0) == math.inf


def test_unreachable_level_is_infinite():
    # (6.11 + 0.84)/√(0.955·40) with p at most 1e-9.
    assert detectable_shift(40, 1e-9) == pytest.approx(1.125, abs=2e-3)
    assert detectable_shift(24, 1e-9) == math.inf


def test_formula_continues_simulation():
    found = [detectable_shift(n) for n in (20, 22, 24, 25, 26, 30, 100)]
    assert found == sorted(found, reverse=True)
    assert found[3] == pytest.approx(found[2], rel=0.03)
    # (1.96 + 0.8416)/√(0.955·10,000)
    assert detectable_shift(10_000) == pytest.approx(0.02867, rel=2e-3)
    assert detectable_shift(10_000) == pytest.approx(asymptotic_shift(10_000, 0.05), rel=1e-3)


@pytest.mark.parametrize("level", [0.05, 0.05 / 7])
@pytest.mark.parametrize("difference", [0.03, 0.3, 0.7, 1.0, 1.5, 3.0])
def test_replicates_for_is_minimal(difference, level):
    n = replicates_for(difference, level)
    assert detectable_shift(n, level) <= difference < detectable_shift(n - 1, level)


def test_second_call_is_cached():
    detectable_shift(24)
    started = time.perf_counter()
    for _ in range(1000):
        detectable_shift(24)
    assert time.perf_counter() - started < 0.1


def test_nonpositive_difference_raises():
    with pytest.raises(ValueError, match="difference must be positive, got 0"):
        replicates_for(0)
