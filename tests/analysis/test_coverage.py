import numpy as np
import pytest

from normlab.analysis.coverage import COVERAGE, coverage_of
from normlab.analysis.estimates import mean
from normlab.analysis.resampling import Draws


@pytest.mark.parametrize("seeds", [2, 4, 6])
def test_it_is_what_a_small_simulation_measures(seeds):
    generator, inside = np.random.default_rng(0), 0
    for _ in range(300):
        found = mean(generator.normal(size=seeds), Draws(generator, 1000))
        inside += found.low <= 0 <= found.high
    assert inside / 300 == pytest.approx(COVERAGE[seeds], abs=0.07)


def test_from_eight_seeds_on_there_is_nothing_to_say():
    assert coverage_of(7) == COVERAGE[7]
    assert coverage_of(1) is None
    assert coverage_of(8) is None
    assert list(COVERAGE.values()) == sorted(COVERAGE.values())
