import math

import numpy as np
import pytest

from normlab.stats.design import GENERALIZATION, OPTIMIZATION, Metric
from normlab.stats.looks import History

INF, NAN = math.inf, math.nan
FINE, WORSE = list(np.linspace(1, 2, 12)), list(np.linspace(2, 1, 12) * 3)
ONE_DATASET = "all seeds share one split: other splits may differ; replicate=data gives each seed its own"


@pytest.fixture
def warnings_of(sweep):
    """Return a function that returns the warnings of some arms, without the one about a shared split."""
    return lambda *arms, **asked: [line for line in sweep(*arms, **asked).warnings if line != ONE_DATASET]


def test_sound_sweep_has_no_warnings(sweep, arm):
    assert sweep(arm("bn", FINE, scope="draw"), arm("nobn", WORSE, scope="draw")).warnings == []


class TestRuns:
    def test_excluded_runs(self, sweep, arm, frame):
        runs = frame(
            [
                *arm("bn", [*FINE, None]),
                *arm("nobn", [NAN], status="finished"),
                *arm("nobn", [NAN], status="stopped", seeds=[1]),
                *arm("nobn", [1.0], seeds=[None]),
                *arm("bn", [1.0]),
            ]
        )
        assert sweep(runs).warnings[:5] == [
            "stopped runs, excluded: 1",
            "failed runs, excluded: 1",
            "finished runs without val/loss, excluded: 1",
            "runs without a seed, excluded: 1",
            "runs that repeat a configuration and seed, averaged into one replicate: 1",
        ]

    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            ([None, None], "no run finished or diverged: nothing can be compared"),
            ([INF, INF], "every run diverged"),
            ([1.0], "one replicate: the spread is unknown, and one replicate supports no claim"),
        ],
    )
    def test_too_few_known_runs(self, warnings_of, arm, values, expected):
        assert expected in warnings_of(arm("bn", values), arm("nobn", values))


class TestReplicates:
    def test_coverage_below_eight_replicates(self, warnings_of, arm):
        (line,) = warnings_of(arm("bn", FINE[:4]), arm("nobn", WORSE[:4]))
        assert line.startswith(
            "with 4 replicates, 95 % intervals of interquartile means cover the true value in 8"
        )

    def test_tuning_and_reported_replicates(self, warnings_of, arm):
        rates = [arm("bn", FINE, lr="0.1"), arm("bn", WORSE, lr="0.2")]
        assert "replicates that choose settings: 4; reported replicates: 8" in warnings_of(*rates)
        few = [arm("bn", [1.0, 2.0], lr="0.1"), arm("bn", [3.0, 4.0], lr="0.2")]
        assert "the same 2 replicates tune and are reported, which favours tuned arms" in warnings_of(*few)

    def test_splits_tuned_within_have_no_warning(self, sweep, arm):
        rates = [
            arm(name, own, lr=lr, scope="split") for name, own in (("bn", FINE), ("nobn", WORSE)) for lr in "123"
        ]
        assert not [line for line in sweep(*rates).warnings if "replicates" in line]

    @pytest.mark.parametrize(("scope", "count"), [("seed", 1), ("draw", 0), ("split", 0)])
    def test_shared_split_is_warned_once(self, sweep, arm, scope, count):
        arms = (arm(name, FINE, scope=scope, batch_size=size) for name in ("bn", "nobn") for size in "12")
        assert sweep(*arms).warnings.count(ONE_DATASET) == count


class TestTuning:
    def test_best_at_edge_is_warned_once(self, warnings_of, arm):
        arms = [
            arm(name, [value * (1 + place) for value in own], lr=lr, batch_size=size)
            for name, own in (("bn", FINE), ("nobn", WORSE))
            for size in ("8", "16")
            for place, lr in enumerate(("0.1", "0.2"))
        ]
        (line,) = [line for line in warnings_of(*arms) if "of the grid" in line]
        assert line == (
            "the best optimizer.lr is at an edge of the grid: 0.1 (the smallest) for bn at data.batch_size=8, "
            "nobn at data.batch_size=8, bn at data.batch_size=16, nobn at data.batch_size=16: extend the grid"
        )

    def test_both_edges_are_one_warning(self, warnings_of, arm):
        rates = ("0.1", "0.2", "0.3")
        low, high = (FINE, WORSE, WORSE), (WORSE, WORSE, FINE)
        arms = [
            arm(name, own, lr=lr)
            for name, losses in (("bn", low), ("nobn", high))
            for own, lr in zip(losses, rates, strict=True)
        ]
        assert [line for line in warnings_of(*arms) if "of the grid" in line] == [
            "the best optimizer.lr is at an edge of the grid: 0.1 (the smallest) for bn; 0.3 (the largest) for "
            "nobn: extend the grid"
        ]

    def test_best_inside_grid_is_not_warned(self, warnings_of, arm):
        arms = (arm("bn", own, lr=lr) for lr, own in (("0.1", WORSE), ("0.2", FINE), ("0.3", WORSE)))
        assert not [line for line in warnings_of(*arms) if "of the grid" in line]

    @pytest.mark.parametrize(("at_the_edge", "expected"), [(6, False), (7, True)])
    def test_edge_needs_more_than_half_of_splits(self, warnings_of, arm, at_the_edge, expected):
        values = {"0.1": [1.0] * at_the_edge + [3.0] * (12 - at_the_edge), "0.2": [2.0] * 12, "0.3": [4.0] * 12}
        found = warnings_of(*(arm("bn", own, lr=lr, scope="split") for lr, own in values.items()))
        assert (
            any("optimizer.lr is at an edge of the grid: 0.1 (the smallest)" in line for line in found) == expected
        )

    def test_unequal_tuning_replicates(self, warnings_of, arm):
        found = warnings_of(arm("bn", FINE, lr="0.1"), arm("bn", [None, *FINE[1:]], lr="0.2"))
        assert "all runs: settings were tuned on unequal numbers of replicates, 3 to 4" in found


class TestTests:
    def test_impossible_comparisons(self, warnings_of, arm):
        assert "bn: not comparable: no run of nobn is reported" in warnings_of(
            arm("bn", FINE), arm("nobn", [None])
        )
        found = warnings_of(arm("bn", FINE), arm("nobn", FINE, seeds=range(50, 62)))
        assert "bn: not comparable: bn and nobn share no seed that is reported" in found

    def test_untested_near_best_settings(self, warnings_of, arm):
        same = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
        found = warnings_of(
            arm("bn", [*same, *FINE]),
            arm("nobn", [*same, *[value + 5 for value in FINE]]),
            arm("nobn", same, lr="0.2"),
        )
        assert "bn: near-best settings without a test, too few replicates: 1" in found


class TestLooks:
    def test_warned_from_second_look(self, warnings_of, arm):
        history, expected = (
            History(),
            "looks at these comparisons: {}; settings were fixed at the first look, and p is corr",
        )
        for count, look in ((8, 1), (10, 2), (12, 3)):
            found = warnings_of(arm("bn", FINE[:count]), arm("nobn", WORSE[:count]), history=history)
            assert any(line.startswith(expected.format(look)) for line in found) == (look > 1)

    def test_more_replicates_than_declared(self, warnings_of, arm):
        expected = "max_replicates=8 was declared at the first verdict: no verdict with more replicates"
        assert expected in warnings_of(arm("bn", FINE), arm("nobn", WORSE), history=History(8))
        assert expected not in warnings_of(arm("bn", FINE[:8]), arm("nobn", WORSE[:8]), history=History(8))


class TestDisagreements:
    """The validation split or the best epoch contradicts the test split."""

    BN, NOBN = [1.0 + k / 100 for k in range(8)], [2.0 + k / 100 for k in range(8)]

    @pytest.fixture
    def ends(self, arm, sweep):
        """Return a function that analyses bn (better on test) and nobn, given their validation and best epoch."""

        def found(validation, best, direction="min", ours=None, theirs=None):
            tests = (self.BN if ours is None else ours), (self.NOBN if theirs is None else theirs)
            arms = [
                arm(name, np.broadcast_to(end, 8), best=np.broadcast_to(own, 8), **{"test/loss": test})
                for name, end, own, test in zip(("bn", "nobn"), validation, best, tests, strict=True)
            ]
            return sweep(*arms, direction=direction)

        return found

    def test_agreement_is_not_warned(self, ends):
        assert ends((1.5, 2.5), (1.6, 2.6)).ends == []

    def test_noisier_best_epoch_is_warned(self, ends):
        """The arms are equal at the end; the noisier curve has the lower minimum."""
        noise = np.array([0.3, -0.1, 0.2, -0.3, 0.1, -0.2, 0.15, -0.15])
        end = 1 + noise
        found = ends((end, end[::-1]), (end - 0.6, end[::-1] - 0.1), ours=end, theirs=end[::-1])
        assert found.comparisons["verdict"].tolist() == ["no difference shown"]
        (line,) = found.ends
        assert line == (
            "unlike test/loss, the best validation epoch shows that bn is better than nobn: val/loss ratio 0.4, "
            "p = 0.0078 (uncorrected)"
        )
        assert line in found.warnings

    def test_opposite_validation_is_warned(self, ends):
        found = ends((3.0, 2.5), (1.6, 2.6))
        assert found.ends == [
            "unlike test/loss, the final validation shows that bn is worse than nobn: val/loss ratio 1.2, "
            "p = 0.0078 (uncorrected)"
        ]

    def test_opposite_estimate_without_significance(self, ends):
        validation = [2.0] * 6 + [3.0] * 2
        assert ends((validation, 2.4), (1.0, 2.0)).ends == []
        found = ends(([2.0] * 5 + [3.0] * 3, 2.4), (1.0, 2.0))
        assert found.ends == [
            "unlike test/loss, the final validation suggests without significance that bn is worse than nobn: "
            "val/loss ratio 1.02, p = 0.65 (uncorrected)"
        ]

    def test_maximized_metric_flips_signs(self, ends):
        assert ends((1.5, 2.5), (1.5, 2.5), direction="max").ends == []
        assert len(ends((2.5, 1.5), (1.5, 2.5), direction="max").ends) == 1

    def test_no_estimate_above_29_percent_diverged(self, ends):
        lost = [INF] * 3 + [1.0] * 5
        test = [INF] * 3 + [3.0, 2.9, 2.8, 0.2, 0.1]
        found = ends((lost, 0.5), (1.0, 1.0), ours=test, theirs=[1.0] * 8)
        assert found.ends == [
            "unlike test/loss, the final validation shows that bn is worse than nobn: val/loss, p = 0.0078 "
            "(uncorrected)",
        ]

    def test_unknown_or_other_metric_is_not_warned(self, ends, sweep, arm):
        assert sweep(arm("bn", self.BN), arm("nobn", self.NOBN)).ends == []
        acc = [Metric("test/acc", "max", GENERALIZATION)]
        arms = arm("bn", [1.0] * 8, **{"test/acc": 0.1}), arm("nobn", [2.0] * 8, **{"test/acc": 0.9})
        assert sweep(*arms, metrics=acc).ends == []
        train = [Metric("test/loss", "min", OPTIMIZATION)]
        assert sweep(arm("bn", [1.0] * 8, **{"test/loss": 3.0}), arm("nobn", [2.0] * 8), metrics=train).ends == []


def test_unequal_grids_of_splits_are_warned(warnings_of, arm):
    grid = [arm("bn", FINE, lr=lr, scope="split") for lr in ("0.1", "0.2")]
    line = "arms have different numbers of settings"
    assert any(line in text for text in warnings_of(*grid, arm("nobn", WORSE, lr="0.1", scope="split")))
    both = [arm("nobn", WORSE, lr=lr, scope="split") for lr in ("0.1", "0.2")]
    assert not any(line in text for text in warnings_of(*grid, *both))
    assert not any(
        line in text
        for text in warnings_of(*(arm("bn", FINE, lr=lr) for lr in ("0.1", "0.2")), arm("nobn", WORSE))
    )
