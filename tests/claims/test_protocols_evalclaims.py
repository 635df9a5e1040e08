"""Verdicts on planted sweeps for claims about evaluation statistics, robustness and trained normalizers."""

import pytest
from tests.claims.planted import PlantedSweep, load_criterion

from normlab.claims import Answer

SPLITS = (1080, 357)


def verdict(name, center, **options):
    return load_criterion(name)(PlantedSweep(center, **options))


def ratio_at_small_batches(small, large=1.0):
    def center(metric, arm, panel):
        ratio = large if panel["data.batch_size"] == 128 else small
        return 0.1 * (ratio if arm == "running" else 1.0)

    return center


class TestPreciseBN:
    def test_holds_if_reestimated_statistics_win_at_small_batches_only(self):
        found = verdict("precise_bn", ratio_at_small_batches(1.1), rows=SPLITS)
        assert found.answer == Answer.HOLDS
        assert len(found.parts) == 4

    @pytest.mark.parametrize(("small", "large"), [(0.9, 1.0), (1.1, 1.2)], ids=["small", "large"])
    def test_fails_if_they_lose_or_win_at_large_batches_as_well(self, small, large):
        assert verdict("precise_bn", ratio_at_small_batches(small, large), rows=SPLITS).answer == Answer.FAILS

    def test_is_undecided_without_a_difference(self):
        found = verdict("precise_bn", ratio_at_small_batches(1.0), rows=SPLITS)
        assert found.answer == Answer.UNDECIDED


def accuracy_gain(**points):
    def center(metric, arm, panel):
        assert (metric, panel["data.test"]) == ("test/acc", 32)
        return 0.6 + (points[panel["data.corrupt"]] / 100 if arm == "batch" else 0.0)

    return center


class TestDomain:
    def test_holds_if_batch_statistics_win_under_each_corruption(self):
        center = accuracy_gain(noise=6, blur=50, contrast=70)
        found = verdict("domain", center, n=40, scatter=0.05, rows=(1080, 32))
        assert found.answer == Answer.HOLDS
        assert len(found.parts) == 3

    def test_fails_if_they_lose_under_one(self):
        center = accuracy_gain(noise=-6, blur=50, contrast=70)
        assert verdict("domain", center, n=40, scatter=0.05, rows=(1080, 32)).answer == Answer.FAILS


def losses(norm, random, output):
    def center(metric, arm, panel):
        assert metric == "test/loss"
        return {"norm": norm, "random:norm": random, "output": output}[arm]

    return center


class TestOnlyNorm:
    def test_holds_if_norm_beats_both_controls(self):
        found = verdict("only_norm", losses(0.3, 0.6, 0.4), rows=SPLITS)
        assert found.answer == Answer.HOLDS
        assert len(found.parts) == 4

    def test_fails_if_the_output_layer_learns_more(self):
        assert verdict("only_norm", losses(0.4, 0.6, 0.3), rows=SPLITS).answer == Answer.FAILS


def accuracy_drops(noise, attack):
    def center(metric, arm, panel):
        if metric != "test/acc":
            return 0.3 + (attack / 100 if arm == "bn" else 0.0)
        clean = 0.97 if arm == "bn" else 0.95
        drop = 0.1 + (noise / 100 if arm == "bn" else 0.0)
        return clean - (drop if panel["data.corrupt"] == "noise" else 0.0)

    return center


class TestRobustness:
    def test_holds_if_the_extra_drop_exceeds_five_points(self):
        found = verdict("robustness", accuracy_drops(15, 15), rows=SPLITS)
        assert found.answer == Answer.HOLDS
        assert len(found.parts) == 4

    @pytest.mark.parametrize(("noise", "attack"), [(0, 15), (15, 0), (0, 0)])
    def test_fails_without_an_extra_drop_to_one_of_them(self, noise, attack):
        assert verdict("robustness", accuracy_drops(noise, attack), rows=SPLITS).answer == Answer.FAILS


def shifted_by(ratio):
    def center(metric, arm, panel):
        lag = 1.05 if arm == "running" else 1.0
        return 0.1 * lag * (ratio if arm == "running" and panel["net.dropout"] == 0.5 else 1.0)

    return center


class TestDropoutShift:
    def test_holds_if_running_statistics_lose_with_dropout(self):
        assert verdict("dropout_shift", shifted_by(1.2)).answer == Answer.HOLDS

    def test_fails_if_they_win_with_dropout(self):
        assert verdict("dropout_shift", shifted_by(0.85)).answer == Answer.FAILS

    def test_is_undecided_if_they_only_lag(self):
        assert verdict("dropout_shift", shifted_by(1.0)).answer == Answer.UNDECIDED
