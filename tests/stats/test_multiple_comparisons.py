"""All comparisons of a sweep: corrections, pooled splits, interactions, impossible comparisons."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normlab.stats.design import GENERALIZATION, OPTIMIZATION, Metric
from normlab.stats.multiple_comparisons import holm, replicates_needed
from normlab.stats.paired_tests import detectable_shift

INF, NAN = math.inf, math.nan
LOSS, ACC = Metric("test/loss", "min", GENERALIZATION), Metric("test/acc", "max", GENERALIZATION)
TRAIN = Metric("train_eval/loss", "min", OPTIMIZATION)
ONES, SMALLEST = [1.0] * 12, 2 / 2**12


def rows(frame, *columns):
    return frame[list(columns)].to_numpy().tolist()


def mixed(count):
    """Return 12 losses, of which the given number exceed 1, by different factors."""
    return [(1 + k / 100) ** (1 if k <= count else -1) for k in range(1, 13)]


class TestHolm:
    def test_by_hand(self):
        # Sorted 0.01, 0.02, 0.03, 0.04, times 4, 3, 2, 1, and never below an earlier one.
        assert holm(np.array([0.04, 0.01, 0.03, 0.02])).tolist() == pytest.approx([0.06, 0.04, 0.06, 0.06])

    def test_single_p_and_empty_array_are_unchanged(self):
        assert holm(np.array([0.03])).tolist() == [0.03]
        assert holm(np.array([])).size == 0

    def test_nan_does_not_count(self):
        found = holm(np.array([NAN, 0.02, NAN, 0.5]))
        assert found[[1, 3]].tolist() == [0.04, 0.5]
        assert np.isnan(found[[0, 2]]).all()

    @given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
    def test_between_uncorrected_and_bonferroni(self, values):
        p = np.array(values)
        found = holm(p)
        assert (found >= p).all()
        assert (found <= np.minimum(1, len(p) * p)).all()
        np.testing.assert_array_equal(holm(p[::-1]), found[::-1])


@pytest.mark.parametrize("factor", [1.0, 2.0, 12.0])
@pytest.mark.parametrize("comparisons", [1, 3, 6, 7, 40])
def test_replicates_needed_is_minimal(comparisons, factor):
    n = replicates_needed(comparisons, factor)
    assert 2.0 ** (1 - n) * comparisons * factor <= 0.05 < 2.0 ** (2 - n) * comparisons * factor


class TestCorrected:
    def test_each_arm_is_compared_with_baseline_of_its_panel(self, sweep, arm):
        arms = (arm(name, ONES, batch_size=size) for name in ("bn", "nobn", "ln") for size in ("8", "16"))
        found = sweep(*arms).comparisons
        assert rows(found, "data.batch_size", "panel", "arm", "baseline", "comparisons") == [
            [size, f"data.batch_size={size}", name, "nobn", 4] for size in ("8", "16") for name in ("bn", "ln")
        ]

    def test_p_is_corrected_within_a_question(self, sweep, arm):
        arms = (
            arm(name, [loss] * 12, **{"train_eval/loss": train})
            for name, loss, train in (("bn", 1.0, 3.0), ("ln", 3.0, mixed(10)), ("nobn", 2.0, 1.0))
        )
        found = sweep(*arms, metrics=[LOSS, TRAIN]).comparisons.set_index(["metric", "arm"])
        assert found["p_adjusted"]["test/loss"].tolist() == [2 * SMALLEST] * 2
        # The two questions are corrected apart: of the training loss the clearest p counts twice, the other once.
        train = found.loc["train_eval/loss"]
        assert train["p_adjusted"].tolist() == [2 * SMALLEST, train["p"]["ln"]]
        assert found["comparisons"].tolist() == [2] * 4
        assert found["verdict"].tolist()[:3] == ["better", "worse", "worse"]

    def test_loss_and_accuracy_are_one_question(self, sweep, arm):
        arms = (arm(name, [loss] * 12, **{"test/acc": loss / 4}) for name, loss in (("bn", 1.0), ("nobn", 2.0)))
        found = sweep(*arms, metrics=[LOSS, ACC]).comparisons
        assert found["p_adjusted"].tolist() == [2 * SMALLEST] * 2
        assert found["verdict"].tolist() == ["better", "worse"]

    def test_metrics_without_question_are_separate_families(self, sweep, arm):
        arms = (arm(name, [loss] * 12, **{"val/loss": loss}) for name, loss in (("bn", 1.0), ("nobn", 2.0)))
        metrics = [Metric("test/loss", "min"), Metric("val/loss", "min")]
        assert sweep(*arms, metrics=metrics).comparisons["p_adjusted"].tolist() == [SMALLEST] * 2

    def test_failure_and_new_table_p_are_corrected(self, sweep, arm):
        split = {"scope": "split", "train_rows": 75.0, "test_rows": 25.0}
        draws = np.random.default_rng(0)
        values = {
            name: np.exp(draws.normal(loc=loc, size=12)) for name, loc in (("bn", -2), ("ln", -2), ("nobn", 0))
        }
        failed = {name: [float(k < lost) for k in range(12)] for name, lost in (("bn", 6), ("ln", 0), ("nobn", 0))}
        found = sweep(
            *(arm(name, own, untrained=failed[name], **split) for name, own in values.items())
        ).comparisons
        assert found["new_table_p_adjusted"].tolist() == holm(found["new_table_p"].to_numpy()).tolist()
        # Holm counts the failures of ln, of which there are none, not at all.
        assert found["failure_p"].tolist() == [2 / 2**6, 1.0]
        assert found["failure_p_adjusted"][0] == 2 / 2**6
        assert math.isnan(found["failure_p_adjusted"][1])

    def test_detectable_effect(self, sweep, arm):
        draws = np.random.default_rng(0)
        arms = [arm(name, np.exp(draws.normal(size=12))) for name in ("bn", "ln", "nobn")]
        found = sweep(*arms).comparisons
        expected = detectable_shift(12, 0.05 / 2) * found["spread"]
        assert found["detectable"].tolist() == pytest.approx(expected.tolist())
        assert sweep(*(own[:6] for own in arms)).comparisons["detectable"].tolist() == [INF] * 2


class TestTooFewReplicates:
    """Eight replicates have a smallest p of 2 / 2^8, which six comparisons may multiply, and seven may not."""

    @pytest.mark.parametrize(("comparisons", "expected"), [(6, "better"), (7, "too few replicates")])
    def test_all_comparisons_count(self, sweep, arm, comparisons, expected):
        found = sweep(*(arm(f"m{k}", [2.0**-k] * 8) for k in range(comparisons)), arm("nobn", [2.0] * 8))
        assert set(found.comparisons["verdict"]) == {expected}

    def test_questions_are_counted_separately(self, sweep, arm):
        own = [[(1 + k) ** (-1.0 - seed) for seed in range(8)] for k in range(5)]
        arms = [arm(f"m{k}", own[k], **{"train_eval/loss": own[k]}) for k in range(5)]
        assert "too few replicates" not in set(sweep(*arms, metrics=[LOSS, TRAIN]).comparisons["verdict"])

    def test_a_comparison_with_fewer_replicates_does_not_silence_the_others(self, sweep, arm):
        found = sweep(arm("bn", [1.0] * 12), arm("ln", [1.0] * 5), arm("nobn", [2.0] * 12)).comparisons
        assert found["verdict"].tolist() == ["better", "too few replicates"]


class TestPairs:
    ARMS = (("bn", 1.0), ("ln", 2.0), ("nobn", 4.0))

    def test_all_pairs_of_arms(self, sweep, arm):
        found = sweep(*(arm(name, [loss] * 12) for name, loss in self.ARMS), pairs=True).comparisons
        assert rows(found, "arm", "baseline", "verdict", "estimate") == [
            ["bn", "nobn", "better", pytest.approx(0.25)],
            ["ln", "nobn", "better", pytest.approx(0.5)],
            ["ln", "bn", "worse", pytest.approx(2.0)],
        ]
        assert found["p_adjusted"].tolist() == [3 * SMALLEST] * 3

    def test_other_baseline(self, sweep, arm):
        found = sweep(*(arm(name, [loss] * 12) for name, loss in self.ARMS), baseline="ln").comparisons
        assert rows(found, "arm", "baseline", "estimate") == [
            ["bn", "ln", pytest.approx(0.5)],
            ["nobn", "ln", pytest.approx(2.0)],
        ]


class TestNotComparable:
    def test_arm_without_runs(self, sweep, arm):
        found = sweep(arm("bn", ONES), arm("nobn", [None] * 12), arm("ln", ONES)).comparisons
        assert set(found["verdict"]) == {"not comparable: no run of nobn is reported"}
        assert found["p_adjusted"].isna().all()
        found = sweep(arm("bn", [None] * 12), arm("nobn", ONES)).comparisons
        assert found["verdict"].tolist() == ["not comparable: no run of bn is reported"]

    def test_arms_that_differ_in_another_key(self, sweep, arm):
        found = sweep(arm("bn", ONES, batch_size="1"), arm("nobn", ONES), arm("ln", mixed(6))).comparisons
        assert rows(found, "arm", "verdict") == [
            ["bn", "not comparable: nobn differs in data.batch_size"],
            ["ln", "no difference shown"],
        ]

    def test_run_of_the_default_baseline_in_another_panel_changes_no_comparison(self, sweep, arm):
        arms = arm("bn", ONES, batch_size="1"), arm("ln", mixed(6), batch_size="1")
        alone, beside = sweep(*arms).comparisons, sweep(*arms, arm("nobn", [1.0])).comparisons
        assert rows(beside, "arm", "baseline", "p_adjusted") == rows(alone, "arm", "baseline", "p_adjusted")

    def test_arms_without_shared_seed(self, sweep, arm):
        found = sweep(arm("bn", ONES), arm("nobn", ONES, seeds=range(100, 112))).comparisons
        assert found["verdict"].tolist() == ["not comparable: bn and nobn share no seed that is reported"]

    def test_metric_missing_in_one_arm(self, sweep, arm):
        found = sweep(arm("bn", ONES, **{"test/loss": NAN}), arm("nobn", ONES)).comparisons
        assert found["verdict"].tolist() == ["not comparable: no reported run of bn has test/loss"]

    def test_metric_that_all_runs_of_a_panel_lack_is_not_compared_there(self, sweep, arm):
        panels = {"batch_size": "1", "train_eval/loss": NAN}, {"train_eval/loss": ONES}
        arms = [arm(name, ONES, **panel) for panel in panels for name in ("bn", "nobn")]
        found = sweep(*arms, metrics=[LOSS, TRAIN]).comparisons
        assert found["metric"].tolist() == ["test/loss", "test/loss", "train_eval/loss"]
        assert not found["verdict"].str.startswith("not comparable").any()

    def test_impossible_comparison_is_not_counted(self, sweep, arm):
        found = sweep(arm("bn", ONES), arm("ln", [None] * 12), arm("nobn", [2.0] * 12)).comparisons
        assert rows(found, "arm", "comparisons", "p_adjusted")[0] == ["bn", 1, SMALLEST]

    def test_12_and_36_seeds_are_compared_on_8(self, sweep, arm):
        """The first third of all 36 seeds would be all twelve shared ones."""
        many = [arm("bn", [1.0] * 36, lr=lr) for lr in ("0.1", "0.2")]
        found = sweep(*many, *(arm("nobn", [2.0] * 12, lr=lr) for lr in ("0.1", "0.2"))).comparisons
        assert rows(found, "replicates", "verdict") == [[8, "better"]]
        assert found["seeds"][0] == tuple(range(4, 12))

    def test_single_arm_has_no_comparison(self, sweep, arm):
        assert sweep(arm("bn", ONES)).comparisons.empty


class TestPooled:
    """Panels that differ only in the data seed."""

    @pytest.fixture
    def splits(self, sweep, arm):
        """Return a function that pools log ratios of bn to nobn, ``(splits, seeds)``."""

        def found(logs, **columns):
            arms = [
                arm(name, np.exp(sign * np.array(own) / 2), data_seed=str(number), **columns)
                for number, own in enumerate(logs)
                for name, sign in (("bn", 1), ("nobn", -1))
            ]
            return sweep(*arms).comparisons

        return found

    def test_replicate_counts_once_with_its_mean(self, splits):
        draws = np.random.default_rng(0)
        logs = draws.normal(loc=-1, size=(3, 8))
        found = splits(logs)
        assert rows(found, "panel", "data.seed", "splits", "replicates", "tested") == [
            ["all 3 data.seed", "all 3 data.seed", 3, 8, True],
            *([f"data.seed={k}", str(k), 1, 8, False] for k in range(3)),
        ]
        pooled = splits([logs.mean(axis=0)]).iloc[0]
        for name in ("estimate", "estimate_low", "p", "spread", "better"):
            assert found[name][0] == pytest.approx(pooled[name])

    def test_single_splits_are_not_tested(self, splits):
        found = splits([[-1.0] * 8, [1.0] * 8])
        assert found["verdict"].tolist() == ["too few replicates", *["part of the pooled comparison"] * 2]
        assert found["p_adjusted"].isna().tolist() == [False, True, True]
        assert found["estimate"].tolist() == pytest.approx([1.0, math.exp(-1), math.e])
        assert found["comparisons"].tolist() == [1] * 3
        assert not found["declared"].any()

    def test_replicate_failing_in_one_split_fails(self, splits):
        logs = np.full((2, 8), -1.0)
        logs[1, :3] = INF
        assert rows(splits(logs), "failed", "failures_of", "better") == [[3, 8, 5 / 8], [0, 8, 1.0], [3, 8, 5 / 8]]

    def test_replicates_missing_in_a_split_are_excluded(self, sweep, arm):
        arms = (
            arm(name, [loss] * (8 + int(seed)), data_seed=seed)
            for name, loss in (("bn", 1.0), ("nobn", 2.0))
            for seed in "01"
        )
        assert sweep(*arms).comparisons["replicates"].tolist() == [8, 8, 9]

    def test_other_panels_are_pooled_separately(self, sweep, arm):
        grid = [(size, seed) for size in ("8", "16") for seed in "12"]
        arms = (arm(name, ONES, batch_size=size, data_seed=seed) for name in ("bn", "nobn") for size, seed in grid)
        found = sweep(*arms).comparisons
        assert found[found["tested"]]["panel"].tolist() == [
            "data.batch_size=8, all 2 data.seed",
            "data.batch_size=16, all 2 data.seed",
        ]

    def test_arm_missing_in_one_split_differs_in_data_seed(self, sweep, arm):
        found = sweep(arm("bn", ONES), *(arm("nobn", ONES, data_seed=seed) for seed in "01")).comparisons
        assert rows(found, "panel", "verdict") == [
            ["all 2 data.seed", "not comparable: bn differs in data.seed"],
            ["data.seed=0", "part of the pooled comparison"],
        ]


class TestInteractions:
    def found(self, sweep, arm, **by_size):
        """Return the interactions of the log ratios of bn to nobn by batch size."""
        arms = [
            arm(name, np.exp(sign * np.array(own) / 2), batch_size=size.removeprefix("b"))
            for size, own in by_size.items()
            for name, sign in (("bn", 1), ("nobn", -1))
        ]
        return sweep(*arms).interactions

    def test_by_hand(self, sweep, arm):
        # From batch 8 to 64 the log ratio grows by 0.1, 0.2, … 0.6: 0.35 in the middle, p = 2/2⁶.
        grown = np.arange(1, 7) / 10
        found = self.found(sweep, arm, b8=np.zeros(6), b64=grown)
        assert rows(found, "arm", "baseline", "key", "panel", "other", "replicates", "effect") == [
            ["bn", "nobn", "data.batch_size", "data.batch_size=64", "data.batch_size=8", 6, "ratio"]
        ]
        row = found.iloc[0]
        assert row[["estimate", "estimate_low", "estimate_high"]].tolist() == pytest.approx(
            [math.exp(0.35), math.exp(0.1), math.exp(0.6)]
        )
        assert (row["p"], row["p_adjusted"]) == (2 / 2**6, 2 / 2**6)

    def test_equal_effects_are_no_interaction(self, sweep, arm):
        effects = np.linspace(1, 2, 8)
        assert self.found(sweep, arm, b8=effects, b64=effects)["p"].tolist() == [1.0]

    def test_first_panel_is_reference_and_p_is_holm_corrected(self, sweep, arm):
        found = self.found(sweep, arm, b8=np.zeros(8), b16=np.linspace(1, 2, 8), b64=np.log(mixed(6)[:8]))
        assert found["panel"].tolist() == ["data.batch_size=16", "data.batch_size=64"]
        assert found["other"].tolist() == ["data.batch_size=8"] * 2
        assert found["p_adjusted"].tolist() == [2 * 2 / 2**8, found["p"][1]]

    def test_only_shared_replicates_count(self, sweep, arm):
        found = self.found(sweep, arm, b8=np.zeros(12), b64=np.linspace(1, 2, 8))
        assert rows(found, "replicates", "p") == [[8, 2 / 2**8]]

    def test_data_seed_is_no_factor(self, sweep, arm):
        arms = (arm(name, ONES, data_seed=seed) for name in ("bn", "nobn") for seed in "01")
        assert sweep(*arms).interactions.empty

    def test_no_verdict_gives_no_interaction(self, sweep, arm):
        grid = [(name, size, lr) for name in ("bn", "nobn") for size in ("8", "16") for lr in ("1", "2")]
        arms = (arm(name, [1.0] * 4, batch_size=size, lr=lr) for name, size, lr in grid)
        assert sweep(*arms).interactions.empty

    def test_accuracy_interaction_is_in_points(self, sweep, arm):
        acc = {("bn", "8"): 0.9, ("nobn", "8"): 0.88, ("bn", "64"): 0.8, ("nobn", "64"): 0.81}
        arms = (arm(name, [1.0] * 8, batch_size=size, **{"test/acc": own}) for (name, size), own in acc.items())
        row = sweep(*arms, metrics=[ACC]).interactions.iloc[0]
        assert (row["effect"], row["estimate"], row["p"]) == ("points", pytest.approx(-3.0), 2 / 2**8)


def test_failures_are_one_test_for_all_metrics(sweep, arm):
    values = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7]
    lost = [math.inf, math.inf, math.inf, math.inf, *values[4:]]
    arms = arm("nobn", values, **{"test/acc": 0.5}), arm("bn", lost, **{"test/acc": 0.5})
    rows = sweep(*arms, metrics=[LOSS, ACC]).comparisons
    assert rows["failure_p"].tolist() == [2 / 2**4] * 2
    assert rows["failure_p_adjusted"].tolist() == [2 / 2**4] * 2
    same = sweep(arm("nobn", values), arm("bn", values), arm("ln", values), margin=0.1).comparisons
    assert same["equivalence_p"].tolist() == [1 / 2**8] * 2
    assert same["equivalence_p_adjusted"].tolist() == [2 / 2**8] * 2
