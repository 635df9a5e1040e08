import math
from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from normlab.analysis.design import design_of
from normlab.analysis.findings import find
from normlab.analysis.words import sentence

INF = math.inf
ENDS = ("", "_high", "_low")
KEYS = ("model", "optimizer.lr", "data.batch_size")
TABLES = ("settings", "arms", "comparisons", "targets", "ranges", "batch_sizes")
NO_CURVES = pd.DataFrame({"run": [], "step": [], "seconds": [], "value": []})
FEW = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def mixed(frame):
    """Three arms at two learning rates and two batch sizes, some runs of which diverged or failed, and curves."""
    draws = np.random.default_rng(3)
    grid = product(("bn", "ln", "nobn"), ("0.1", "0.2"), ("8", "16"), range(16))
    runs = frame([dict(zip([*KEYS, "seed"], row, strict=True)) for row in grid]).assign(status="finished")
    runs["value"] = np.exp(draws.normal(size=len(runs)))
    lost, failed = draws.choice(len(runs), size=(2, 8), replace=False)
    runs.loc[lost, ["status", "value"]] = ["diverged", INF]
    runs.loc[failed, ["status", "value"]] = ["failed", math.nan]
    steps = np.arange(10, 110, 10)
    values = runs["value"].to_numpy()[:, None] * (1 + 9 * np.exp(-steps / 30))
    curves = pd.DataFrame(
        {
            "run": np.repeat(runs.index, len(steps)),
            "step": np.tile(steps, len(runs)),
            "seconds": np.tile(steps / 7, len(runs)),
            "value": values.ravel(),
        }
    )
    return runs, curves[np.isfinite(curves["value"])]


def same(one, other, skip=()):
    for name in TABLES:
        if name not in skip:
            pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name))
    assert one.warnings == other.warnings


class TestWhatDoesNotMatter:
    @given(random=st.randoms(use_true_random=False))
    @FEW
    def test_the_order_of_the_runs(self, sweep, mixed, random):
        runs, curves = mixed
        order = list(runs.index)
        random.shuffle(order)
        there = sweep(runs, curves=curves)
        same(there, sweep(runs.loc[order], curves=curves.sample(frac=1.0, random_state=random.randrange(9))))

    @given(names=st.permutations(["bn", "ln", "nobn"]))
    @FEW
    def test_the_names_of_the_arms(self, sweep, mixed, names):
        runs, curves = mixed
        called = dict(zip(["bn", "ln", "nobn"], names, strict=True))
        there = sweep(runs, curves=curves, baseline="nobn").comparisons
        renamed = runs.assign(model=runs["model"].map(called))
        back = sweep(renamed, curves=curves, baseline=called["nobn"]).comparisons
        back = back.assign(arm=back["arm"].map({new: old for old, new in called.items()}), baseline="nobn")
        pd.testing.assert_frame_equal(
            back.sort_values(["panel", "arm"], ignore_index=True),
            there.sort_values(["panel", "arm"], ignore_index=True),
        )

    def test_a_number_that_is_added_to_all_seeds_or_to_all_runs(self, sweep, mixed):
        runs, _ = mixed
        there = sweep(runs).comparisons
        back = sweep(runs.assign(seed=runs["seed"] + 100)).comparisons
        pd.testing.assert_frame_equal(there, back)
        higher = sweep(runs.assign(value=runs["value"] + 7)).comparisons
        for column in ("p", "p_rivals", "difference", "improvement", "verdict"):
            pd.testing.assert_series_equal(higher[column], there[column])

    def test_what_is_drawn_does_not_matter_to_what_is_declared(self, sweep, mixed):
        runs, curves = mixed
        full, other, bare = (
            sweep(runs, curves=curves, seed=s, resamples=r) for s, r in ((0, 300), (1, 300), (0, 0))
        )
        declared = [
            "p",
            "p_rivals",
            "p_holm",
            "declared",
            "verdict",
            "detectable",
            "difference",
            "ratio",
            "steps_ratio",
        ]
        for found in (other, bare):
            pd.testing.assert_frame_equal(found.comparisons[declared], full.comparisons[declared])
        assert bare.comparisons["ratio_low"].isna().all()

    def test_which_way_is_good_turns_everything_around(self, sweep, mixed):
        runs, curves = mixed
        there = sweep(runs, curves=curves)
        turned = sweep(
            runs.assign(value=-runs["value"]), curves=curves.assign(value=-curves["value"]), direction="max"
        )
        for column in ("p", "p_rivals", "improvement", "improvement_low", "steps_ratio", "verdict", "reached"):
            pd.testing.assert_series_equal(turned.comparisons[column], there.comparisons[column])
        np.testing.assert_allclose(turned.comparisons["difference"], -there.comparisons["difference"])
        np.testing.assert_array_equal(turned.settings["chosen"], there.settings["chosen"])

    def test_with_the_baseline_exchanged_ratios_are_inverted(self, sweep, mixed):
        runs, curves = mixed
        there = sweep(runs, curves=curves, baseline="nobn").comparisons.set_index(["panel", "arm"])
        back = sweep(runs, curves=curves, baseline="bn").comparisons.set_index(["panel", "arm"])
        for panel in ("data.batch_size=8", "data.batch_size=16"):
            ours, theirs = there.loc[(panel, "bn")], back.loc[(panel, "nobn")]
            assert ours["p_rivals"] == theirs["p_rivals"]
            for name in ("ratio", "steps_ratio", "seconds_ratio"):
                if not math.isnan(ours[name]):
                    ends = [1 / theirs[f"{name}{end}"] if theirs[f"{name}{end}"] else INF for end in ENDS]
                    assert [ours[f"{name}{end}"] for end in ("", "_low", "_high")] == pytest.approx(ends)


class TestLittleToGoOn:
    @pytest.mark.parametrize("values", [[1.0], [INF], [None], [1.0, None], [INF] * 9, [None] * 9, [0.0] * 9])
    @pytest.mark.parametrize("models", [["bn"], ["bn", "nobn"], ["bn", "nobn", "ln"]])
    @pytest.mark.parametrize("rates", [["0.1"], ["0.1", "0.2"]])
    def test_it_is_handled_and_said(self, sweep, arm, values, models, rates):
        found = sweep(*(arm(model, values, lr=lr) for model in models for lr in rates))
        assert len(found.arms) == (1 if len(models) == 1 else len(models))
        assert not found.comparisons["declared"].any()
        assert len(found.comparisons) == len(models) - 1
        assert all(sentence(row, found.design) for row in found.comparisons.to_dict("records"))
        assert found.warnings or values == [0.0] * 9

    def test_no_runs(self, frame):
        runs = frame([])
        found = find(runs, NO_CURVES, design_of(runs, [], "val/loss", "min"), np.random.default_rng(0))
        assert found.warnings == ["there are no runs"]
        assert all(len(getattr(found, name)) == 0 for name in TABLES)

    def test_the_metric_is_missing_in_some_runs(self, sweep, arm):
        values = [math.nan, *np.linspace(1, 2, 11)]
        found = sweep(arm("bn", values, status="finished"), arm("nobn", np.linspace(2, 3, 12)))
        assert found.comparisons["seeds"].tolist() == [11]
        assert found.comparisons["verdict"].tolist() == ["better"]
        assert "finished runs without val/loss, which count nowhere: 1" in found.warnings


def simulated(rates, kind, shift, sweeps, seed):
    """Return in which share of sweeps of arms with so many learning rates a difference is declared."""
    generator, declared = np.random.default_rng(seed), 0
    rows = [
        (f"arm{k}", f"{2**place}", s) for k, count in enumerate(rates) for place in range(count) for s in range(12)
    ]
    runs = pd.DataFrame(rows, columns=["model", "optimizer.lr", "seed"]).assign(status="finished")
    away = shift * (runs["model"] != "arm0").to_numpy(dtype=float)
    for _ in range(sweeps):
        shared = generator.normal(size=12)[runs["seed"]]
        values = kind(np.sqrt(0.5) * (shared + generator.normal(size=len(runs)))) + away
        sweep = runs.assign(value=values)
        design = design_of(sweep, ["model", "optimizer.lr"], "val/loss", "min")
        declared += find(sweep, NO_CURVES, design, generator, resamples=0).comparisons["declared"].any()
    return declared / sweeps


@pytest.mark.parametrize("rates", [(3, 3), (2, 2, 2, 2), (1, 8)])
def test_arms_that_are_the_same_are_seldom_called_different(rates):
    # A chance of 5 % exceeds 16 of 150 in 1 of 500 tests.
    assert simulated(rates, np.exp, 0.0, 150, seed=0) <= 16 / 150


def test_a_difference_of_one_and_a_half_standard_deviations_is_mostly_declared():
    # Differences have the variance 2·(1 − 0.5) = 1; a chance of 80 % is below 64 of 100 in 1 of 10,000 tests.
    assert simulated((3, 3), lambda z: z, 1.5, 100, seed=1) >= 0.64
