import numpy as np
import pytest
from scipy import integrate, special

from normlab.stats.estimates import COVERAGE, Resampler, coverage_of, iqm_estimate


@pytest.mark.parametrize("seeds", [2, 4, 6])
def test_coverage_table_matches_simulation(seeds):
    generator, inside = np.random.default_rng(0), 0
    for _ in range(300):
        found = iqm_estimate(generator.normal(size=seeds), Resampler(generator, 1000))
        inside += found.low <= 0 <= found.high
    assert inside / 300 == pytest.approx(COVERAGE[seeds], abs=0.07)


KINDS = {
    "normal": lambda z: z,
    "skewed": np.exp,
    "heavy-tailed": lambda z: special.stdtrit(3, special.ndtr(z)),
}


@pytest.mark.parametrize(("seeds", "least", "most"), [(8, 0.92, 1.0), (32, 0.93, 0.97)])
@pytest.mark.parametrize("kind", KINDS)
def test_interval_coverage_at_8_and_32_seeds(kind, seeds, least, most):
    """Within three standard errors of the bounds of the full simulation, benchmarks/simulations.py."""
    of, simulations, generator = KINDS[kind], 400, np.random.default_rng(1)
    truth = 2 * integrate.quad(lambda u: of(special.ndtri(u)), 0.25, 0.75)[0]
    found = [
        iqm_estimate(of(generator.normal(size=seeds)), Resampler(generator, 1000)) for _ in range(simulations)
    ]
    inside = sum(each.low <= truth <= each.high for each in found) / simulations
    assert least - 3 * (least * (1 - least) / simulations) ** 0.5 <= inside
    assert inside <= most + 3 * (most * (1 - most) / simulations) ** 0.5


def test_no_coverage_warning_from_eight_seeds():
    assert coverage_of(7) == COVERAGE[7]
    assert coverage_of(1) is None
    assert coverage_of(8) is None
    assert list(COVERAGE.values()) == sorted(COVERAGE.values())
