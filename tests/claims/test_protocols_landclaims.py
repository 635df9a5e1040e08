"""The criteria of the claims about landscape and initialization, on sweeps where the claim holds or does not."""

import re

import pytest
from tests.claims.planted import PlantedSweep, load_criterion

from normlab.claims import Answer

RATE = 1.2113
LIMITS = {"0.0": 2.0, "0.5": 3.0, "true": 1.357, "adam": 38.0}


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


class TestSmoother:
    @staticmethod
    def measures(bn, best_rate=1.0):
        """Return values of bn relative to nobn, times ``best_rate`` at the best rates; the cosine is inverse."""

        def center(metric, arm, panel):
            ratio = 1.0 if arm == "nobn" else bn if panel else bn * best_rate
            return 1 / ratio if metric.endswith("cosine_min") else ratio

        return center

    def test_smoother_at_both_rates(self):
        assert answers("smoother", self.measures(0.8)) == (Answer.HOLDS, [Answer.HOLDS] * 8)

    def test_rougher(self):
        assert answers("smoother", self.measures(1.2)) == (Answer.FAILS, [Answer.FAILS] * 8)

    def test_smoother_at_the_common_rate_only(self):
        verdict, parts = answers("smoother", self.measures(0.8, best_rate=1.6))
        assert (verdict, parts) == (Answer.FAILS, [Answer.FAILS] * 4 + [Answer.HOLDS] * 4)

    def test_no_difference(self):
        assert answers("smoother", self.measures(1.0))[0] == Answer.UNDECIDED


class TestNotIcs:
    @staticmethod
    def training(noisy, accuracy):
        losses = {"bn": 0.01, "noisy": 0.01 * noisy, "nobn": 0.03}
        accuracies = {"bn": 0.98, "noisy": accuracy, "nobn": 0.9}
        return lambda metric, arm, panel: (accuracies if metric.endswith("acc") else losses)[arm]

    def test_noise_has_no_effect(self):
        assert answers("not_ics", self.training(1.0, 0.98)) == (Answer.HOLDS, [Answer.HOLDS] * 3)

    def test_noise_costs_some_of_the_loss(self):
        verdict, parts = answers("not_ics", self.training(1.5, 0.975))
        assert (verdict, parts) == (Answer.FAILS, [Answer.HOLDS, Answer.HOLDS, Answer.FAILS])

    def test_noise_costs_all_of_the_benefit(self):
        assert answers("not_ics", self.training(3.3, 0.9)) == (Answer.FAILS, [Answer.FAILS] * 3)


class TestEdge:
    def sharpness(self, share=1.0, arm=None):
        """Return the sharpness at a share of the limit, in one arm or in all."""

        def center(metric, name, panel):
            key = panel.get("optimizer") or str(panel.get("optimizer.momentum", panel["optimizer.nesterov"]))
            return LIMITS[key] * (share if arm in (None, name) else 1.0)

        return center

    def test_at_the_limit(self):
        assert answers("edge", self.sharpness(), n=10) == (Answer.HOLDS, [Answer.HOLDS] * 12)

    @pytest.mark.parametrize("share", [0.8, 1.2])
    def test_away_from_the_limit(self, share):
        assert answers("edge", self.sharpness(share), n=10) == (Answer.FAILS, [Answer.FAILS] * 12)

    def test_away_from_the_limit_in_one_arm(self):
        verdict, parts = answers("edge", self.sharpness(0.8, arm="ln"), n=10)
        assert (verdict, parts) == (Answer.FAILS, [Answer.HOLDS, Answer.FAILS, Answer.HOLDS] * 4)
