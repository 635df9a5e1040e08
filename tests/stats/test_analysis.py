"""Properties of the whole analysis: invariance, degenerate sweeps, and small simulations."""

import math
from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from normlab.stats.analysis import analyze
from normlab.stats.design import GENERALIZATION, OPTIMIZATION, Metric, design_of
from normlab.stats.grid import grid_of
from normlab.stats.looks import History
from normlab.stats.multiple_comparisons import comparisons_of
from normlab.stats.sentences import interaction_sentence, sentence
from normlab.stats.tuning import choose_settings

INF = math.inf
KEYS = ("model", "optimizer.lr", "data.batch_size")
TABLES = (*("settings", "arms", "comparisons", "interactions", "targets", "time_ratios", "ranges", "batch_sizes"),)
METRICS = [
    Metric("test/loss", "min", GENERALIZATION),
    Metric("test/acc", "max", GENERALIZATION),
    Metric("train_eval/loss", "min", OPTIMIZATION),
]
LOSSES = ("validation", "test/loss", "train_eval/loss", "best")
NO_CURVES = pd.DataFrame({"run": [], "step": [], "seconds": [], "value": []})
FEW = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=["seed", "draw", "split"])
def mixed(request, frame):
    """Three arms at two learning rates and batch sizes with curves; some runs diverged or failed."""
    draws = np.random.default_rng(3)
    grid = product(("bn", "ln", "nobn"), ("0.1", "0.2"), ("8", "16"), range(16))
    runs = frame([dict(zip([*KEYS, "data.seed", "seed"], (*row[:3], "0", row[3]), strict=True)) for row in grid])
    runs = runs.assign(status="finished", scope=request.param, train_rows=142.0, test_rows=36.0)
    for name in LOSSES:
        runs[name] = np.exp(draws.normal(size=len(runs)))
    runs["test/acc"] = draws.uniform(size=len(runs)).round(2)
    runs["untrained"] = (draws.uniform(size=len(runs)) < 0.1).astype(float)
    lost, failed = draws.choice(len(runs), size=(2, 8), replace=False)
    for rows, status, worst in ((lost, "diverged", INF), (failed, "failed", math.nan)):
        runs.loc[rows, ["status"]] = status
        runs.loc[rows, list(LOSSES)] = worst
        runs.loc[rows, "test/acc"] = -worst
    steps = np.arange(10, 110, 10)
    values = runs["validation"].to_numpy()[:, None] * (1 + 9 * np.exp(-steps / 30))
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


class TestInvariance:
    @given(random=st.randoms(use_true_random=False))
    @FEW
    def test_run_order(self, sweep, mixed, random):
        runs, curves = mixed
        order = list(runs.index)
        random.shuffle(order)
        there = sweep(runs, curves=curves, metrics=METRICS, resamples=100)
        shuffled = curves.sample(frac=1.0, random_state=random.randrange(9))
        same(there, sweep(runs.loc[order], curves=shuffled, metrics=METRICS, resamples=100))

    @given(names=st.permutations(["bn", "ln", "nobn"]))
    @FEW
    def test_arm_names(self, sweep, mixed, names):
        runs, _ = mixed
        called = dict(zip(["bn", "ln", "nobn"], names, strict=True))
        there = sweep(runs, metrics=METRICS, baseline="nobn").comparisons
        renamed = runs.assign(model=runs["model"].map(called))
        back = sweep(renamed, metrics=METRICS, baseline=called["nobn"]).comparisons
        back = back.assign(arm=back["arm"].map({new: old for old, new in called.items()}), baseline="nobn")
        order = ["metric", "panel", "arm"]
        pd.testing.assert_frame_equal(
            back.drop(columns="key").sort_values(order, ignore_index=True),
            there.drop(columns="key").sort_values(order, ignore_index=True),
        )

    def test_constant_added_to_seeds(self, sweep, mixed):
        runs, _ = mixed
        there, back = (sweep(own).comparisons for own in (runs, runs.assign(seed=runs["seed"] + 100)))
        pd.testing.assert_frame_equal(there.drop(columns="seeds"), back.drop(columns="seeds"))

    def test_repeated_runs(self, sweep, mixed):
        runs, _ = mixed
        twice = pd.concat([runs, runs], ignore_index=True)
        pd.testing.assert_frame_equal(
            sweep(runs, metrics=METRICS).comparisons, sweep(twice, metrics=METRICS).comparisons
        )

    def test_resampling_does_not_change_verdicts(self, sweep, mixed):
        runs, curves = mixed
        full, other, bare = (
            sweep(runs, curves=curves, seed=s, resamples=r) for s, r in ((0, 300), (1, 300), (0, 0))
        )
        for found in (other, bare):
            pd.testing.assert_frame_equal(found.comparisons, full.comparisons)
            pd.testing.assert_series_equal(found.arms["iqm"], full.arms["iqm"])
        assert bare.arms["iqm_low"].isna().all()
        assert not full.arms["iqm_low"].isna().all()

    def test_negated_metric_mirrors_results(self, sweep, mixed):
        runs, curves = mixed
        runs = runs.assign(**{"test/loss": runs["test/loss"] - 1})
        there = sweep(runs, curves=curves)
        turned = runs.assign(**{"test/loss": -runs["test/loss"], "validation": -runs["validation"]})
        back = sweep(turned, curves=curves.assign(value=-curves["value"]), direction="max")
        for column in ("p", "p_near_best", "better", "side", "verdict", "failed"):
            pd.testing.assert_series_equal(back.comparisons[column], there.comparisons[column])
        for ours, theirs in (("", ""), ("_low", "_high")):
            np.testing.assert_allclose(
                back.comparisons[f"estimate{ours}"], -there.comparisons[f"estimate{theirs}"]
            )
        np.testing.assert_array_equal(back.settings["chosen"], there.settings["chosen"])
        np.testing.assert_array_equal(back.time_ratios["steps_ratio"], there.time_ratios["steps_ratio"])

    def test_swapped_baseline_inverts_ratios(self, sweep, mixed):
        runs, curves = mixed
        there, back = (sweep(runs, curves=curves, baseline=name, resamples=300) for name in ("nobn", "bn"))
        for table, name in (("comparisons", "estimate"), ("time_ratios", "steps_ratio")):
            one, other = (getattr(own, table).set_index(["panel", "arm"]) for own in (there, back))
            for panel in ("data.batch_size=8", "data.batch_size=16"):
                ours, theirs = one.loc[(panel, "bn")], other.loc[(panel, "nobn")]
                with np.errstate(divide="ignore"):
                    ends = [1 / np.float64(theirs[f"{name}{end}"]) for end in ("", "_high", "_low")]
                assert [ours[f"{name}{end}"] for end in ("", "_low", "_high")] == pytest.approx(ends, nan_ok=True)
                if table == "comparisons":
                    assert ours["p_near_best"] == theirs["p_near_best"]
                    assert ours["failure_p"] == theirs["failure_p"]

    def test_all_pairs_include_baseline_comparisons(self, sweep, mixed):
        runs, _ = mixed
        alone, pairs = (sweep(runs, pairs=own).comparisons for own in (False, True))
        both = pairs[pairs["baseline"] == "nobn"].reset_index(drop=True)
        columns = ["panel", "arm", "estimate", "p", "p_near_best", "failure_p"]
        pd.testing.assert_frame_equal(both[columns], alone[columns])
        assert len(pairs) == 6


class TestDegenerateSweeps:
    @pytest.mark.parametrize("values", [[1.0], [INF], [None], [1.0, None], [INF] * 9, [None] * 9, [0.0] * 9])
    @pytest.mark.parametrize("models", [["bn"], ["bn", "nobn"], ["bn", "nobn", "ln"]])
    @pytest.mark.parametrize("rates", [["0.1"], ["0.1", "0.2"]])
    @pytest.mark.parametrize("scope", ["draw", "split"])
    def test_degenerate_sweep_is_analyzed(self, sweep, arm, values, models, rates, scope):
        arms = (arm(model, values, lr=lr, scope=scope) for model in models for lr in rates)
        found = sweep(*arms, history=History(), margin=0.05)
        assert len(found.arms) == len(models)
        assert len(found.comparisons) == len(models) - 1
        for row in found.comparisons.to_dict("records"):
            assert not row["declared"]
            assert sentence(row, found.grid, found.tuning)
        assert found.warnings or values == [0.0] * 9

    def test_no_runs(self, frame):
        runs = frame([])
        design = design_of(runs, [], METRICS[:1], Metric("val/loss", "min"))
        found = analyze(runs, NO_CURVES, design, np.random.default_rng(0))
        assert found.warnings == ["no runs"]
        assert all(len(getattr(found, name)) == 0 for name in TABLES)

    def test_metric_missing_in_some_runs(self, sweep, arm):
        values = [math.nan, *np.linspace(1, 2, 11)]
        found = sweep(arm("bn", values, status="finished"), arm("nobn", np.linspace(2, 3, 12)))
        assert found.comparisons["replicates"].tolist() == [11]
        assert found.comparisons["verdict"].tolist() == ["better"]
        assert "finished runs without val/loss, excluded: 1" in found.warnings

    def test_every_comparison_has_a_sentence(self, sweep, mixed):
        runs, curves = mixed
        found = sweep(runs, curves=curves, metrics=METRICS, pairs=True, margin=0.05, history=History())
        texts = [sentence(row, found.grid, found.tuning) for row in found.comparisons.to_dict("records")]
        texts += [interaction_sentence(row) for row in found.interactions.to_dict("records")]
        assert len(texts) == 3 * 2 * 3 + 3
        assert all("nan" not in text and "inf" not in text for text in [*texts, *found.warnings])


def declared(rates, scope, kind, shift, sweeps, seed):
    """Return the shares of simulated sweeps in which the second arm is declared better, and worse."""
    generator = np.random.default_rng(seed)
    rows = [(f"arm{k}", f"{2**j}", s) for k, count in enumerate(rates) for j in range(count) for s in range(12)]
    runs = pd.DataFrame(rows, columns=["model", "optimizer.lr", "seed"]).assign(status="finished", scope=scope)
    away, sides = shift * (runs["model"] != "arm0").to_numpy(dtype=float), []
    for _ in range(sweeps):
        shared = generator.normal(size=12)[runs["seed"]]
        for name in ("validation", "test/loss"):
            runs[name] = kind(np.sqrt(0.5) * (shared + generator.normal(size=len(runs)))) + away
        design = design_of(runs, ["model", "optimizer.lr"], METRICS[:1], Metric("val/loss", "min"))
        grid = grid_of(runs, design)
        found = comparisons_of(grid, choose_settings(grid), None)
        sides.append(sum(row["side"] * row["declared"] for row in found[:1]))
    return np.mean(np.array(sides) < 0), np.mean(np.array(sides) > 0)


@pytest.mark.parametrize("scope", ["draw", "split"])
@pytest.mark.parametrize("rates", [(3, 3), (1, 8)])
def test_equal_arms_are_seldom_declared_different(rates, scope):
    # A chance of 5 % exceeds 16 of 150 in 1 of 500 tests.
    assert sum(declared(rates, scope, np.exp, 0.0, 150, seed=0)) <= 16 / 150


def test_difference_of_1_5_sd_is_mostly_declared():
    # Differences have the variance 2·(1 − 0.5) = 1; a chance of 80 % is below 64 of 100 in 1 of 10,000 tests.
    assert declared((1, 1), "draw", lambda z: z, 1.5, 100, seed=1)[1] >= 0.64
