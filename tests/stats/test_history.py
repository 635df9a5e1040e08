"""Repeated looks at a sweep to which replicates, arms and settings are added."""

import json

import numpy as np
import pytest

from normlab.stats.design import GENERALIZATION, OPTIMIZATION, Metric
from normlab.stats.looks import History, comparison_key, obrien_fleming
from normlab.stats.sentences import sentence

DRAWS = np.random.default_rng(0)
BN, LN, NOBN = (np.exp(DRAWS.normal(loc=loc, size=60)) for loc in (-1.0, -1.0, 0.0))
KEY = ("model", "bn", "nobn", "")


@pytest.fixture
def look(sweep, arm):
    """Return a function that analyses the first replicates of bn and nobn and returns the row of bn."""

    def at(history, count, *others, **asked):
        found = sweep(arm("bn", BN[:count]), arm("nobn", NOBN[:count]), *others, history=history, **asked)
        return found.comparisons.iloc[0]

    return at


class TestLooks:
    def test_p_is_multiplied_by_k_times_k_plus_1(self, look):
        history = History()
        for k, count in enumerate((12, 16, 20), 1):
            row = look(history, count)
            assert (row["look"], row["factor"]) == (k, pytest.approx(k * (k + 1)))
            assert row["p_adjusted"] == pytest.approx(min(1.0, k * (k + 1) * row["p"]))

    def test_no_history_means_no_correction(self, look):
        row = look(None, 12)
        assert (row["look"], row["factor"], row["p_adjusted"]) == (0, 1.0, row["p"])

    def test_same_replicates_are_no_new_look(self, look):
        history = History()
        first = look(history, 12)
        assert look(history, 12)["p_adjusted"] == first["p_adjusted"]
        second = look(history, 16)
        assert (look(history, 16)["look"], look(history, 12)["look"], second["look"]) == (2, 1, 2)
        assert history.looks == {KEY: [tuple(range(12)), tuple(range(16))]}

    def test_swapped_baseline_is_the_same_comparison(self, look):
        history = History()
        there, back = look(history, 12), look(history, 12, baseline="bn")
        assert (there["arm"], back["arm"]) == ("bn", "nobn")
        assert (back["look"], back["p_adjusted"]) == (1, there["p_adjusted"])
        assert look(history, 16, baseline="bn")["look"] == 2
        assert comparison_key("model", "a", "b", "x") == comparison_key("model", "b", "a", "x")

    def test_comparisons_are_counted_separately(self, look, arm):
        history = History()
        look(history, 12)
        found = look(history, 16, arm("ln", LN[:16])), history.looks[("model", "ln", "nobn", "")]
        assert (found[0]["look"], found[1]) == (2, [tuple(range(16))])

    def test_look_counts_on_under_longer_names(self, sweep, arm):
        """With a further arm, ``mine`` becomes ``mine, power=1``; with other data, the panel gets a name."""
        history = History()
        for count in (12, 16):
            sweep(arm("mine", BN[:count]), arm("nobn", NOBN[:count]), history=history)
        longer = [arm(f"mine, power={power}", own[:20]) for power, own in ((1, BN), (2, LN))]
        found = sweep(*longer, arm("nobn", NOBN[:20]), history=history).comparisons
        assert found["look"].tolist() == [3, 3]
        assert history.look(comparison_key("model", "mine", "nobn", "data=wine"), tuple(range(12))) == 1
        assert history.look(comparison_key("model", "mine", "nobn", "data=wine"), tuple(range(20))) == 3
        assert history.look(comparison_key("model", "ln", "nobn", ""), tuple(range(20))) == 1

    def test_holm_follows_look_correction(self, sweep, arm):
        history = History()
        arms = [arm("bn", BN[:16]), arm("nobn", NOBN[:16])]
        sweep(*arms, history=history)
        found = sweep(*arms, arm("ln", LN[:16]), history=history).comparisons
        scaled = (found["p"] * [2.0, 2.0]).to_numpy()
        assert found["factor"].tolist() == pytest.approx([2.0, 2.0])
        assert sorted(found["p_adjusted"]) == pytest.approx(
            sorted([2 * min(scaled), max(2 * min(scaled), *scaled)])
        )

    def test_too_few_replicates_are_no_look(self, look):
        history = History()
        assert look(history, 6)["verdict"] == "too few replicates", "2 · 2/2⁶ is above 0.05"
        assert history == History()
        assert look(history, 12)["look"] == 1

    def test_impossible_comparison_is_no_look(self, sweep, arm):
        history = History()
        sweep(arm("bn", BN[:12]), arm("nobn", NOBN[:12], seeds=range(12, 24)), history=history)
        assert history == History()

    def test_all_metrics_are_one_look(self, sweep, arm):
        """Also if one metric is unknown in some replicates."""
        history = History()
        metrics = [Metric("test/loss", "min", GENERALIZATION), Metric("train_eval/loss", "min", OPTIMIZATION)]
        train = np.where(np.arange(12) < 3, np.nan, 1.0)
        arms = arm("bn", BN[:12], **{"train_eval/loss": train}), arm("nobn", NOBN[:12], **{"train_eval/loss": 2.0})
        for _ in range(2):
            found = sweep(*arms, metrics=metrics, history=history).comparisons
            assert found["replicates"].tolist() == [12, 9]
            assert found["look"].tolist() == [1, 1]
        assert history.looks == {KEY: [tuple(range(12))]}


class TestMaximum:
    def test_levels_are_obrien_fleming(self, look):
        history, looks = History(max_replicates=40), (16, 24, 40)
        levels = obrien_fleming(looks, 40)
        for place, (count, level) in enumerate(zip(looks, levels, strict=True)):
            row = look(history, count)
            assert row["look"] == place + 1
            assert row["factor"] == pytest.approx(0.05 / level)
            assert row["p_adjusted"] == pytest.approx(min(1.0, row["p"] * 0.05 / level))

    def test_single_look_at_maximum_is_uncorrected(self, look):
        row = look(History(max_replicates=12), 12)
        assert (row["factor"], row["p_adjusted"]) == (pytest.approx(1.0), pytest.approx(row["p"]))

    def test_no_verdict_beyond_maximum(self, sweep, arm):
        history = History(max_replicates=12)
        found = sweep(arm("bn", [1.0] * 16), arm("nobn", [2.0] * 16), history=history)
        row = found.comparisons.to_dict("records")[0]
        assert (row["verdict"], row["declared"], row["p_adjusted"]) == (
            "no verdict beyond max_replicates",
            False,
            1.0,
        )
        assert sentence(row, found.grid, found.tuning).startswith(
            "no verdict beyond max_replicates for bn against nobn; "
        )
        expected = "max_replicates=12 was declared at the first verdict: no verdict with more replicates"
        assert expected in found.warnings

    def test_equally_many_other_replicates_are_a_look_at_same_level(self, sweep, arm):
        history = History(max_replicates=24)
        for first in (0, 1):
            seeds = range(first, first + 12)
            row = sweep(
                arm("bn", BN[:12], seeds=seeds), arm("nobn", NOBN[:12], seeds=seeds), history=history
            ).comparisons.iloc[0]
            assert (row["look"], row["factor"]) == (first + 1, pytest.approx(0.05 / obrien_fleming([12], 24)[0]))


class TestFrozen:
    RATES = ("0.1", "0.2")

    def grid(self, arm, best, count, rates=RATES, names=("bn", "nobn"), scope="seed"):
        """Return arms with several learning rates, of which one is best on validation."""
        values = {"bn": BN, "ln": LN, "nobn": NOBN}
        return [
            arm(name, values[name][:count] * (1.0 if lr == best else 3.0), lr=lr, scope=scope)
            for name in names
            for lr in rates
        ]

    def test_added_replicates_keep_tuning_seeds_and_settings(self, sweep, arm):
        history = History()
        first = sweep(*self.grid(arm, "0.1", 12), history=history)
        assert first.comparisons["seeds"].tolist() == [tuple(range(4, 12))]
        assert history.tuning_seeds == (0, 1, 2, 3)
        assert history.settings == {((), "bn"): [("0.1",)], ((), "nobn"): [("0.1",)]}
        # With 24 seeds eight would choose, and the other learning rate is the better one by now.
        second = sweep(*self.grid(arm, "0.2", 24), history=history)
        assert second.comparisons["seeds"].tolist() == [tuple(range(4, 24))]
        assert second.arms["optimizer.lr"].tolist() == ["0.1", "0.1"]
        assert second.comparisons["look"].tolist() == [2]

    def test_new_settings_of_frozen_arm_are_not_chosen(self, sweep, arm):
        history = History()
        sweep(*self.grid(arm, "0.1", 12), history=history)
        found = sweep(*self.grid(arm, "0.4", 12, rates=("0.1", "0.2", "0.4")), history=history)
        assert found.arms["optimizer.lr"].tolist() == ["0.1", "0.1"]
        assert found.comparisons["look"].tolist() == [1], "the same replicates"

    def test_new_arms_are_tuned_freely(self, sweep, arm):
        history = History()
        sweep(*self.grid(arm, "0.1", 12), history=history)
        new = self.grid(arm, "0.2", 12, names=("ln",))
        found = sweep(*self.grid(arm, "0.1", 12), *new, history=history)
        assert found.arms.set_index("arm")["optimizer.lr"].to_dict() == {"bn": "0.1", "ln": "0.2", "nobn": "0.1"}
        assert found.comparisons["look"].tolist() == [1, 1]

    def test_splits_choose_among_first_settings(self, sweep, arm):
        history = History()
        sweep(*self.grid(arm, "0.1", 12, scope="split"), history=history)
        assert (history.tuning_seeds, history.settings[(), "bn"]) == (None, [("0.1",), ("0.2",)])
        found = sweep(*self.grid(arm, "0.4", 16, (*self.RATES, "0.4"), scope="split"), history=history)
        assert found.settings["chosen"].tolist()[2::3] == [0.0, 0.0]
        assert found.comparisons["replicates"].tolist() == [16]

    def test_key_tuned_later_is_another_look(self, sweep, arm):
        history = History()
        sweep(*self.grid(arm, "0.1", 12, rates=["0.1"]), history=history)
        found = sweep(*self.grid(arm, "0.2", 16), history=history)
        assert found.arms["optimizer.lr"].tolist() == ["0.2", "0.2"]
        assert found.comparisons["seeds"].tolist() == [tuple(range(6, 16))]
        assert found.comparisons["look"].tolist() == [2]

    def test_nothing_is_frozen_without_verdict(self, sweep, arm):
        history = History()
        sweep(*self.grid(arm, "0.1", 8), history=history)
        assert history == History(), "4 choose, 4 report"


def test_history_json_roundtrip(sweep, arm):
    history = History(max_replicates=40)
    grid = [(name, size, lr) for name in ("bn", "nobn") for size in ("8", "16") for lr in ("0.1", "0.2")]
    values = {"bn": [1.0] * 30, "nobn": [2.0] * 30}
    sweep(*(arm(name, values[name], batch_size=size, lr=lr) for name, size, lr in grid), history=history)
    assert len(history.looks) == 2
    assert History.from_json(json.loads(json.dumps(history.to_json()))) == history
    assert History.from_json(json.loads(json.dumps(History().to_json()))) == History()


@pytest.mark.parametrize(
    "content", [{}, {"max_replicates": None, "tuning_seeds": 3, "settings": [], "looks": []}, []]
)
def test_damaged_file_raises(content):
    with pytest.raises((KeyError, TypeError, ValueError)):
        History.from_json(content)
