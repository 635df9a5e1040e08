"""The criteria of the claims about landscape and initialization, on sweeps in which the claim holds or does not."""

import re

import pytest

from normlab.claims import Answer
from tests.claims.planted import PlantedSweep, load_criterion

RATE = 1.2113


def layer(metric):
    """Return the number of the layer in a metric's name."""
    return int(re.search(r"hidden(\d+)", metric)[1])


def answers(name, center, **options):
    """Return the answer to a claim on a planted sweep, and those to its parts."""
    verdict = load_criterion(name)(PlantedSweep(center, **options))
    return verdict.answer, [part.answer for part in verdict.parts]


class TestExplosion:
    @staticmethod
    def gradients(bn, nobn=0.95):
        return lambda metric, arm, panel: {"bn": bn, "nobn": nobn}[arm] ** -layer(metric)

    def test_growth_of_the_theory(self):
        verdict, parts = answers("explosion", self.gradients(RATE), n=8)
        assert (verdict, parts) == (Answer.HOLDS, [Answer.HOLDS] * 4)

    @pytest.mark.parametrize("rate", [1.0, 1.15, 1.27])
    def test_another_growth(self, rate):
        verdict, parts = answers("explosion", self.gradients(rate), n=8)
        assert (verdict, parts) == (Answer.FAILS, [Answer.FAILS] * 2 + [Answer.HOLDS] * 2)

    def test_growth_without_normalizer(self):
        verdict, parts = answers("explosion", self.gradients(RATE, nobn=1.1), n=8)
        assert (verdict, parts) == (Answer.FAILS, [Answer.HOLDS] * 2 + [Answer.FAILS] * 2)


class TestRank:
    @staticmethod
    def ranks(power=0.0, nobn=1.5):
        return lambda metric, arm, panel: 5.0 * layer(metric) ** power if arm == "bn" else nobn

    def test_rank_is_kept(self):
        assert answers("rank", self.ranks()) == (Answer.HOLDS, [Answer.HOLDS] * 4)

    def test_no_collapse_without_normalizer(self):
        verdict, parts = answers("rank", self.ranks(nobn=4.0))
        assert (verdict, parts) == (Answer.FAILS, [Answer.FAILS, Answer.HOLDS] * 2)

    def test_collapse_with_normalizer(self):
        verdict, parts = answers("rank", self.ranks(power=-0.5, nobn=0.2))
        assert (verdict, parts) == (Answer.FAILS, [Answer.HOLDS, Answer.FAILS] * 2)
