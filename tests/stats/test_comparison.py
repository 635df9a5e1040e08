"""A single comparison: test, estimate, interval, near-best settings, new tables, equivalence, failures."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from scipy import stats

from normlab.stats.comparison import BETTER, verdict
from normlab.stats.design import GENERALIZATION, Metric
from normlab.stats.paired_tests import corrected_t

INF, NAN = math.inf, math.nan
ACCURACY = Metric("test/acc", "max", GENERALIZATION)
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
PAIRS = st.lists(
    st.tuples(*[st.floats(0.5, 2) | st.just(INF)] * 2).filter(lambda pair: not math.isinf(min(pair))),
    min_size=5,
    max_size=12,
)


@pytest.fixture
def compared(sweep, arm):
    """Return a function that compares bn with nobn and returns the only row."""

    def row(ours, theirs, metrics=None, columns=None, **asked):
        arms = arm("bn", ours, **(columns or {})), arm("nobn", theirs, **(columns or {}))
        (found,) = sweep(*arms, metrics=metrics, **asked).comparisons.to_dict("records")
        return found

    return row


def by_flips(differences):
    """Return p of the signed-rank test by enumeration of all sign flips."""
    ranks = stats.rankdata(np.abs(differences))[differences != 0]
    sums = np.array(list(product((1, -1), repeat=len(ranks)))) @ ranks
    return (np.abs(sums) >= abs((np.sign(differences[differences != 0]) * ranks).sum()) - 1e-9).mean()


def hodges_lehmann(differences):
    """Return the median of the averages of two differences."""
    first, second = np.triu_indices(len(differences))
    return np.median((differences[first] + differences[second]) / 2)


class TestEffect:
    def test_loss_effect_is_a_ratio(self, compared):
        # Log ratios log 2, log 4 and log 8: their averages are log 2, 2.83, 4, 4, 5.66, 8.
        row = compared([2.0, 8.0, 24.0], [1.0, 2.0, 3.0])
        assert (row["effect"], row["estimate"]) == ("ratio", pytest.approx(4.0))
        assert (row["estimate_low"], row["estimate_high"]) == (0.0, INF), "three pairs exclude nothing"
        assert (row["p"], row["replicates"], row["seeds"]) == (0.25, 3, (0, 1, 2))

    def test_matches_slow_references(self, compared):
        draws = np.random.default_rng(0)
        ours, theirs = np.exp(draws.normal(size=(2, 10)))
        row, d = compared(ours, theirs), np.log(ours) - np.log(theirs)
        assert row["p"] == pytest.approx(by_flips(d))
        assert row["p"] == pytest.approx(stats.wilcoxon(d, method="exact").pvalue)
        assert row["estimate"] == pytest.approx(math.exp(hodges_lehmann(d)))
        assert row["spread"] == pytest.approx(d.std(ddof=1))
        assert row["better"] == (d < 0).mean()

    def test_accuracy_effect_is_in_points(self, compared):
        acc = {"test/acc": [0.9, 0.85, 0.8, 0.95]}
        rows = [compared([1.0] * 4, [1.0] * 4, [ACCURACY], acc)]
        assert (rows[0]["effect"], rows[0]["estimate"], rows[0]["p"]) == ("points", 0.0, 1.0)

    def test_higher_accuracy_is_better(self, sweep, arm):
        low, high = np.linspace(0.80, 0.87, 8), np.linspace(0.82, 0.89, 8)
        arms = (arm(name, [1.0] * 8, **{"test/acc": own}) for name, own in (("bn", high), ("nobn", low)))
        row = sweep(*arms, metrics=[ACCURACY]).comparisons.iloc[0]
        assert (row["verdict"], row["effect"], row["better"]) == ("better", "points", 1.0)
        assert row[["estimate", "estimate_low", "estimate_high"]].tolist() == pytest.approx([2.0] * 3)

    def test_nonpositive_loss_effect_is_a_difference(self, compared):
        row = compared([-2.0, -1.0, 0.0, 2.0], [0.0, 2.0, 4.0, 7.0])
        # Differences −2, −3, −4, −5.
        assert (row["effect"], row["estimate"], row["verdict"]) == ("difference", -3.5, "too few replicates")

    def test_maximized_metric_effect_is_a_difference(self, compared):
        row = compared([3.0] * 8, [1.0] * 8, direction="max")
        assert (row["effect"], row["estimate"], row["verdict"]) == ("difference", 2.0, "better")

    @given(PAIRS)
    @QUICK
    def test_interval_excludes_1_iff_p_is_at_most_5_percent(self, compared, pairs):
        row = compared(*map(list, zip(*pairs, strict=True)))
        if math.isnan(row["estimate"]):
            assert sum(math.isinf(max(pair)) for pair in pairs) > (1 - math.sqrt(0.5)) * len(pairs)
        else:
            assert (row["p"] <= 0.05) == (not row["estimate_low"] <= 1 <= row["estimate_high"])
            assert row["estimate_low"] <= row["estimate"] <= row["estimate_high"]

    @given(PAIRS)
    @QUICK
    def test_swapped_arms_invert_ratio_and_interval(self, compared, pairs):
        ours, theirs = map(list, zip(*pairs, strict=True))
        there, back = compared(ours, theirs), compared(theirs, ours)
        assert (there["p"], there["side"], there["better"]) == (
            back["p"],
            -back["side"],
            pytest.approx(1 - back["better"]),
        )
        with np.errstate(divide="ignore"):
            ends = [1 / np.float64(back[f"estimate{end}"]) for end in ("", "_high", "_low")]
        assert [there[f"estimate{end}"] for end in ("", "_low", "_high")] == pytest.approx(ends, nan_ok=True)

    @given(st.lists(st.floats(0.5, 2) | st.just(INF), min_size=6, max_size=10), st.floats(0.01, 100))
    @example([1.0, 1.0, 1.12, INF, 1.0, 1.0], 31.0)  # 31 * 1.12 differs from the other arm in its last bit
    @QUICK
    def test_ratio_does_not_depend_on_loss_unit(self, compared, values, unit):
        theirs = list(np.linspace(0.6, 1.9, len(values)))
        there = compared(values, theirs)
        moved = compared([unit * value for value in values], [unit * value for value in theirs])
        for name in ("p", "estimate", "estimate_low", "estimate_high", "better"):
            assert moved[name] == pytest.approx(there[name], nan_ok=True, rel=1e-6)


class TestDiverged:
    def test_diverged_run_is_worst_and_two_tie(self, compared):
        row = compared([INF, INF, 1.0, 1.0], [1.0, INF, 2.0, 4.0])
        assert row["p"] == by_flips(np.array([9.0, -1.0, -2.0, 0.0])) == 1.0
        assert (row["replicates"], row["better"]) == (4, (2 + 0.5) / 4)

    @pytest.mark.parametrize(("diverged", "known"), [(3, True), (4, False)])
    def test_no_estimate_above_29_percent_infinite_pairs(self, compared, diverged, known):
        # 3 of 12 are 25 %, 4 are 33 %.
        row = compared([INF] * diverged + [1.0] * (12 - diverged), [2.0] * 12)
        assert math.isfinite(row["estimate"]) == known
        assert (row["better"], row["better_low"] < row["better"] < row["better_high"]) == (
            (12 - diverged) / 12,
            True,
        )

    def test_always_diverging_arm_is_worse(self, compared):
        row = compared([INF] * 8, [1.0] * 8)
        assert (row["p"], row["verdict"], row["better"]) == (2 / 2**8, "worse", 0.0)
        assert compared([INF] * 8, [INF] * 8)["verdict"] == "too few replicates", "nothing differs"


class TestAttainable:
    def test_eight_pairs_with_three_ties_are_too_few(self, compared):
        """The smallest p of five differing pairs is 2/2⁵."""
        row = compared([1.0] * 8, [1.0] * 3 + [2.0] * 5)
        assert (row["replicates"], row["attainable"], row["p"]) == (8, 0.0625, 0.0625)
        assert (row["verdict"], row["declared"]) == ("too few replicates", False)

    @pytest.mark.parametrize(("count", "expected"), [(5, "too few replicates"), (6, "better")])
    def test_six_differing_pairs_are_enough(self, compared, count, expected):
        assert compared([1.0] * count, [2.0] * count)["verdict"] == expected

    def test_verdict_follows_p(self):
        row = {"p_adjusted": 0.05, "side": -1.0}
        assert verdict(row, True, 1.0, 0.0078) == BETTER
        assert verdict({**row, "side": 1.0}, True, 1.0, 0.0078) == "worse"
        assert verdict({**row, "p_adjusted": 0.0501}, True, 1.0, 0.0078) == "no difference shown"
        assert verdict(row, False, 1.0, 0.0078) == verdict(row, True, 7.0, 0.0501) == "too few replicates"


class TestNearBest:
    TUNING, REPORT = [1.0, 1.2, 1.0, 1.2], list(np.linspace(1.0, 1.2, 8))

    def arms(self, arm, second):
        """Return bn with one setting, and nobn with two that are near-best on the first four seeds."""
        near = [1.2, 1.02, 1.2, 1.02]
        return (
            arm("bn", [value / 2 for value in self.TUNING + self.REPORT]),
            arm("nobn", self.TUNING + self.REPORT),
            arm("nobn", near + second, lr="0.2"),
        )

    def test_better_arm_must_beat_each_near_best_setting(self, sweep, arm):
        row = sweep(*self.arms(arm, self.REPORT)).comparisons.iloc[0]
        assert (row["near_best"], row["p"], row["p_near_best"], row["verdict"]) == (
            1,
            2 / 2**8,
            2 / 2**8,
            "better",
        )

    def test_equal_near_best_setting_prevents_verdict(self, sweep, arm):
        row = sweep(*self.arms(arm, [value / 3 for value in self.REPORT])).comparisons.iloc[0]
        assert (row["p"], row["p_near_best"], row["verdict"]) == (2 / 2**8, 1.0, "no difference shown")

    def test_p_is_the_largest_of_the_tests(self, sweep, arm):
        # bn against the second setting: better in six, of which the smallest ranks are on the other side.
        ratios = np.array([0.9, 0.8, 2, 3, 4, 5, 6, 7])
        second = list(np.array(self.REPORT) / 2 * ratios)
        row = sweep(*self.arms(arm, second)).comparisons.iloc[0]
        assert row["p"] == 2 / 2**8 < row["p_near_best"] == pytest.approx(by_flips(np.log(ratios)))

    def test_near_best_settings_of_better_arm_are_ignored(self, sweep, arm):
        near = [1.2, 1.02, 1.2, 1.02, *[9.0] * 8]
        arms = arm("bn", self.TUNING + self.REPORT), arm("bn", near, lr="0.2"), arm("nobn", [20.0] * 12)
        row = sweep(*arms).comparisons.iloc[0]
        assert (row["verdict"], row["near_best"], row["p_near_best"]) == ("better", 0, row["p"])

    def test_near_best_setting_without_reported_seeds_is_counted(self, sweep, arm):
        row = sweep(*self.arms(arm, [None] * 8)).comparisons.iloc[0]
        assert (row["untested"], row["near_best"], row["verdict"]) == (1, 0, "better")

    def test_choice_within_splits_has_no_near_best(self, sweep, arm):
        arms = [[{**run, "scope": "split"} for run in own] for own in self.arms(arm, self.REPORT)]
        assert sweep(*arms).comparisons["near_best"].tolist() == [0]


class TestNewTables:
    SPLIT = {"scope": "split", "train_rows": 75.0, "test_rows": 25.0}  # noqa: RUF012
    OURS, THEIRS = np.exp([1.0, 2.0, 3.0]), np.ones(3)

    def test_by_hand(self, compared):
        # Mean 2, s² = 1, √(1/3 + 1/3): t = √6 with 2 degrees of freedom, p = 1 − √(6/8).
        row = compared(self.OURS, self.THEIRS, None, self.SPLIT)
        assert row["new_table_p"] == pytest.approx(1 - math.sqrt(0.75))

    @pytest.mark.parametrize("scope", ["seed", "draw"])
    def test_independent_replicates_are_not_corrected(self, compared, scope):
        assert math.isnan(compared(self.OURS, self.THEIRS, None, {**self.SPLIT, "scope": scope})["new_table_p"])

    def test_only_test_metrics_are_corrected(self, compared):
        columns = {**self.SPLIT, "train_eval/loss": [1.0, 2.0, 3.0], "val/loss": [1.0, 2.0, 3.0]}
        for name in ("train_eval/loss", "val/loss"):
            assert math.isnan(compared(self.OURS, self.THEIRS, [Metric(name, "min")], columns)["new_table_p"])

    def test_nan_without_sizes_or_with_diverged_run(self, compared):
        assert math.isnan(compared(self.OURS, self.THEIRS, None, {"scope": "split"})["new_table_p"])
        assert math.isnan(compared([1.0, INF, 2.0], self.THEIRS, None, self.SPLIT)["new_table_p"])

    def test_pooled_splits_increase_the_correction(self, sweep, arm):
        """Averaging over P splits does not reduce the correlation of splits: P times the correction."""
        draws = np.random.default_rng(0)
        logs = draws.normal(loc=0.5, size=(2, 10))
        found = sweep(
            *(
                arm(name, np.exp(sign * own / 2), data_seed=seed, **self.SPLIT)
                for seed, own in zip("12", logs, strict=True)
                for name, sign in (("bn", 1), ("nobn", -1))
            )
        ).comparisons
        assert found["new_table_p"][0] == pytest.approx(corrected_t(logs.mean(axis=0), 75, 2 * 25).p)


class TestEquivalence:
    def test_by_hand(self, compared):
        # Log ratios ±0.01, ±0.02, ±0.03 are all within log 1.05: p = 1/2⁶. The end is the third average, as 3/2⁶
        # still rejects.
        ours = np.exp([0.01, -0.01, 0.02, -0.02, 0.03, -0.03])
        row = compared(ours, [1.0] * 6, margin=0.05)
        assert (row["equivalence_p"], row["margin"]) == (1 / 64, 0.05)
        assert (row["equivalence_low"], row["equivalence_high"]) == pytest.approx(
            (math.exp(-0.02), math.exp(0.02))
        )
        assert row["verdict"] == "no difference shown"

    def test_accuracy_margin_is_in_points(self, sweep, arm):
        steps = np.array([1, -1, 2, -2, 3, -3]) / 100
        arms = arm("bn", [1.0] * 6, **{"test/acc": 0.5 + steps}), arm("nobn", [1.0] * 6, **{"test/acc": 0.5})
        assert sweep(*arms, metrics=[ACCURACY], margin=0.05).comparisons["equivalence_p"][0] == 1 / 64
        # −1 − 2 … 3 − 2: a zero is dropped, and of five ranks 3, 2 for 3 − 2 … one is positive.
        assert sweep(*arms, metrics=[ACCURACY], margin=0.02).comparisons["equivalence_p"][0] > 0.05

    def test_no_margin_gives_nan(self, compared):
        row = compared([1.0] * 12, [1.0] * 12)
        assert math.isnan(row["equivalence_p"])
        assert compared([1.0] * 12, [1.0] * 12, margin=0.05)["equivalence_p"] == 1 / 2**12


class TestFailures:
    def test_mcnemars_test_by_hand(self, sweep, arm):
        # bn alone fails five times, nobn never: 2/2⁵. One diverges, four stay untrained.
        found = sweep(
            arm("bn", [INF] + [1.0] * 9, untrained=[0, 1, 1, 1, 1, 0, 0, 0, 0, 0]),
            arm("nobn", [1.0] * 10, untrained=0),
        )
        row = found.comparisons.iloc[0]
        assert (row["failed"], row["baseline_failed"], row["failures_of"]) == (5, 0, 10)
        assert row["failure_p"] == row["failure_p_adjusted"] == pytest.approx(2 / 2**5)
        assert row["failure_difference"] == 0.5
        assert found.arms[["diverged_share", "untrained_share"]].to_numpy().tolist() == [[0.1, 0.4], [0, 0]]

    def test_failures_reveal_arm_that_often_fails(self, compared):
        """The signed-rank test misses the failures: nine small ranks against three large ones."""
        row = compared([INF] * 3 + [1.0] * 9, [1.5] * 12)
        assert (row["verdict"], row["failed"], row["failure_p"]) == ("no difference shown", 3, 2 / 2**3)

    def test_same_failing_replicates_do_not_differ(self, compared):
        row = compared([INF, 1.0, INF, 1.0], [INF, 2.0, INF, 2.0])
        assert (row["failed"], row["baseline_failed"], row["failure_p"]) == (2, 2, 1.0)

    def test_no_failures_give_no_test(self, compared):
        row = compared([1.0] * 8, [2.0] * 8)
        assert (row["failed"], math.isnan(row["failure_p_adjusted"])) == (0, True)
