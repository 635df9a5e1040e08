import numpy as np
import pytest
from scipy import stats

from normlab.stats.looks import boundaries, look_level, obrien_fleming, spent_alpha
from normlab.stats.signed_rank import signed_rank

SCHEDULE = range(8, 41, 4)


class TestPublished:
    @pytest.mark.parametrize(
        ("fractions", "z"),
        [
            ((0.5, 1.0), (2.9626, 1.9686)),
            ((1 / 3, 2 / 3, 1.0), (3.7103, 2.5114, 1.9930)),
            ((0.2, 0.4, 0.6, 0.8, 1.0), (4.8769, 3.3569, 2.6803, 2.2898, 2.0310)),  # DeMets and Lan (1994)
        ],
    )
    def test_lan_demets_boundaries(self, fractions, z):
        assert boundaries(fractions) == pytest.approx(z, abs=2e-4)

    def test_close_to_obrien_fleming_boundaries(self):
        """O'Brien and Fleming's boundaries are 2.04·√(5/k); the spending function approximates them."""
        theirs = 2.04 * np.sqrt(5 / np.arange(1, 6))
        assert boundaries((0.2, 0.4, 0.6, 0.8, 1.0)) == pytest.approx(theirs, rel=0.08)


class TestLevels:
    def test_one_look_has_the_full_level(self):
        assert obrien_fleming([40], 40).tolist() == pytest.approx([0.05])
        assert spent_alpha(1.0) == pytest.approx(0.05)
        assert spent_alpha(0.5) == pytest.approx(4 * stats.norm.sf(2.2414 / np.sqrt(0.5)), rel=1e-3)

    def test_later_looks_do_not_change_earlier_levels(self):
        levels = obrien_fleming(SCHEDULE, 40)
        assert (np.diff(levels) > 0).all()
        np.testing.assert_array_equal(obrien_fleming([8, 12, 16], 40), levels[:3])
        assert obrien_fleming([8, 12, 33], 40)[2] > levels[5]

    def test_many_looks(self):
        levels = obrien_fleming(range(4, 401, 4), 400)
        assert (levels > 0).all()
        assert 0.02 < levels[-1] < 0.05

    @pytest.mark.parametrize("alpha", [0.05, 0.01])
    def test_looks_at_normal_sum_keep_alpha(self, alpha):
        generator = np.random.default_rng(0)
        sums = generator.normal(size=(40_000, 40)).cumsum(axis=1)[:, [n - 1 for n in SCHEDULE]]
        p = 2 * stats.norm.sf(np.abs(sums) / np.sqrt(SCHEDULE))
        false = (p <= obrien_fleming(SCHEDULE, 40, alpha)).any(axis=1).mean()
        assert false == pytest.approx(alpha, abs=4 * np.sqrt(alpha / 40_000))

    def test_unlimited_look_levels_sum_to_alpha(self):
        assert [look_level(look) for look in (1, 2, 3)] == pytest.approx([0.05 / 2, 0.05 / 6, 0.05 / 12])
        assert sum(look_level(look) for look in range(1, 1000)) == pytest.approx(0.05, rel=2e-3)


def test_signed_rank_looks_keep_alpha():
    d = np.random.default_rng(1).normal(size=(1500, 40))
    p = np.stack([signed_rank(d[:, :n]) for n in SCHEDULE], axis=1)
    assert (p <= 0.05).any(axis=1).mean() > 0.13, "without a rule"
    most = 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1500)
    assert (p <= obrien_fleming(SCHEDULE, 40)).any(axis=1).mean() <= most
    assert (p <= [look_level(look) for look in range(1, 10)]).any(axis=1).mean() <= most


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: obrien_fleming([8, 8], 40), "looks must increase from at least 1, got"),
        (lambda: obrien_fleming([0, 8], 40), "looks must increase from at least 1, got"),
        (lambda: obrien_fleming([8, 44], 40), "looks must not exceed max_replicates=40, got 44"),
        (lambda: look_level(0), "look must be at least 1, got 0"),
    ],
)
def test_invalid_schedule_raises(call, message):
    with pytest.raises(ValueError, match=message):
        call()
