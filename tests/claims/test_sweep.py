"""Numbers of trained runs by metric, arm and panel, from their records."""

import math

import pytest

from normlab.claims import Answer, Better, ReportSweep
from normlab.errors import ConfigError
from normlab.report.report_data import ReportOptions, build_report_data
from normlab.results.result import Status
from normlab.results.sweep import read_sweep

INF = math.inf
SEEDS = range(12)


@pytest.fixture
def numbers(tmp_path):
    """Return a function that reads the runs of the test and returns their numbers."""

    def read():
        return ReportSweep(build_report_data(read_sweep(tmp_path / "sweep"), ReportOptions()))

    return read


@pytest.fixture
def tuned(make_run, numbers):
    """Numbers of bn and nobn with two learning rates: 0.01 is the better one of both arms."""
    for seed in SEEDS:
        for lr, extra in (("0.01", 0.0), ("0.1", 1.0)):
            for model, level in (("bn", 1.0), ("nobn", 2.0)):
                make_run(f"model={model} optimizer.lr={lr} seed={seed}", (5.0, level + extra + 0.01 * seed))
    return numbers()


class TestValues:
    def test_reported_replicates_at_the_tuned_setting(self, tuned):
        """The first four seeds tune; the test loss of a made run is twice its last validation loss."""
        values = tuned.values("test/loss", "bn", {})
        assert values.to_dict() == pytest.approx({seed: 2 * (1 + 0.01 * seed) for seed in range(4, 12)})

    def test_given_setting_of_a_tuned_key(self, tuned):
        values = tuned.values("test/loss", "bn", {"optimizer.lr": 0.1})
        assert values[4] == pytest.approx(2 * 2.04)
        assert tuned.near_best("test/loss", "bn", {"optimizer.lr": 0.1}) == []

    def test_metric_outside_the_compared_ones(self, tuned):
        assert tuned.values("val/loss", "nobn", {})[5] == pytest.approx(2.05)

    def test_steps_to_a_target(self, tuned):
        """Made runs take five steps an epoch: bn is at most 1.1 after the second epoch, nobn never."""
        bn, nobn = (tuned.values("steps/val/loss/1.1", arm, {}) for arm in ("bn", "nobn"))
        assert bn.to_dict() == {seed: 10.0 if seed <= 10 else INF for seed in range(4, 12)}
        assert set(nobn) == {INF}
        assert tuned.metric("steps/val/loss/1.1").direction == "min"

    def test_criterion(self, tuned):
        verdict = Better(arm="bn", baseline="nobn", metric="test/loss")(tuned)
        assert (verdict.answer, verdict.n, verdict.p) == (Answer.HOLDS, 8, 2 / 256)
        row = tuned.data.analysis.comparisons.iloc[0]
        assert verdict.p == row["p_near_best"]
        assert tuple(verdict.interval) == pytest.approx(tuple(row[["estimate", "estimate_low", "estimate_high"]]))

    def test_seeds_that_tune_and_report_give_no_values(self, make_run, numbers):
        for seed in range(3):
            for lr in ("0.01", "0.1"):
                for model in ("bn", "nobn"):
                    make_run(f"model={model} optimizer.lr={lr} seed={seed}")
        verdict = Better(arm="bn", baseline="nobn", metric="test/loss")(numbers())
        assert (verdict.answer, verdict.n) == (Answer.UNDECIDED, 0)

    def test_diverged_run_is_infinite(self, make_run, numbers):
        for seed in range(3):
            make_run(f"model=bn seed={seed}", status=Status.DIVERGED if seed == 1 else Status.FINISHED)
            make_run(f"model=nobn seed={seed}")
        sweep = numbers()
        assert sweep.values("test/loss", "bn", {}).tolist() == [6.0, INF, 6.0]
        assert sweep.values("steps/val/loss/2", "bn", {}).tolist() == [10.0, INF, 10.0]

    def test_near_best_settings(self, make_run, numbers):
        """Two rates of bn that the tuning seeds cannot tell apart."""
        for seed in SEEDS:
            for lr, loss in (("0.01", 1.0 + 0.1 * (seed % 2)), ("0.1", 1.0 + 0.1 * (1 - seed % 2))):
                make_run(f"model=bn optimizer.lr={lr} seed={seed}", (5.0, loss))
                make_run(f"model=nobn optimizer.lr={lr} seed={seed}", (5.0, loss + 1 + float(lr)))
        sweep = numbers()
        (rival,) = sweep.near_best("test/loss", "bn", {})
        chosen = sweep.values("test/loss", "bn", {})
        assert rival.tolist() == pytest.approx([2 * 2.1 - value for value in chosen])
        assert sweep.near_best("test/loss", "nobn", {}) == []

    def test_number_of_a_probe(self, make_run, numbers):
        for seed in range(3):
            make_run(f"model=bn seed={seed}", probes={"curvature/batch/sharpness": [8.0, 4.0, 1.0, seed + 0.5]})
            make_run(f"model=nobn seed={seed}")
        sweep, name = numbers(), "probe/curvature/batch/sharpness"
        assert sweep.values(name, "bn", {}).tolist() == [0.5, 1.5, 2.5]
        assert sweep.values(f"first/{name}", "bn", {}).tolist() == [8.0] * 3
        assert sweep.values(f"mean/{name}", "bn", {}).tolist() == [(13 + seed + 0.5) / 4 for seed in range(3)]
        assert sweep.values(f"last_third/{name}", "bn", {}).tolist() == [(1 + seed + 0.5) / 2 for seed in range(3)]
        assert sweep.values(f"at/1/{name}", "bn", {}).tolist() == [4.0] * 3
        with pytest.raises(ConfigError, match="got probe/curvature/batch/sharp, which no run has"):
            sweep.values("probe/curvature/batch/sharp", "bn", {})

    def test_reduced_curve(self, make_run, numbers):
        for seed in range(3):
            diverges = seed == 1
            make_run(
                f"model=bn seed={seed}", (4.0, 2.0, 3.0), status=Status.DIVERGED if diverges else Status.FINISHED
            )
        sweep = numbers()
        assert sweep.values("at/2/val/loss", "bn", {}).tolist() == [2.0] * 3
        assert sweep.values("at/3/val/loss", "bn", {}).tolist() == [3.0] * 3
        assert sweep.values("mean/val/loss", "bn", {}).tolist() == [3.0, INF, 3.0]

    def test_largest_rate_that_trains(self, make_run, numbers):
        """Rate 0.1 trains in seed 5 alone, 1.0 diverges; no rate of nobn trains."""
        for seed in SEEDS:
            for lr in ("0.01", "0.1", "1.0"):
                status = Status.DIVERGED if lr == "1.0" else Status.FINISHED
                loss = 0.4 if lr == "0.01" or (lr == "0.1" and seed == 5) else 0.6
                make_run(f"model=bn optimizer.lr={lr} seed={seed}", status=status, train_eval=loss, chance=1.0)
                make_run(f"model=nobn optimizer.lr={lr} seed={seed}", train_eval=0.6, chance=1.0)
        sweep = numbers()
        largest = sweep.values("largest/optimizer.lr", "bn", {})
        assert largest.to_dict() == {seed: 0.1 if seed == 5 else 0.01 for seed in range(4, 12)}
        assert set(sweep.values("largest/optimizer.lr", "nobn", {})) == {0.01}
        assert sweep.metric("largest/optimizer.lr").direction == "max"
        assert sweep.near_best("largest/optimizer.lr", "bn", {}) == []
        with pytest.raises(
            ConfigError, match="must be largest/<key> with a tuned key of the sweep, got largest/seed"
        ):
            sweep.values("largest/seed", "bn", {})


class TestPanels:
    @pytest.fixture
    def batches(self, make_run, numbers):
        for seed in range(3):
            for size in (4, 60):
                for model in ("bn", "nobn"):
                    make_run(f"model={model} data.batch_size={size} seed={seed}", (5.0, float(size + seed)))
        return numbers()

    def test_panel_by_its_settings(self, batches):
        assert batches.values("val/loss", "bn", {"data.batch_size": 4}).tolist() == [4.0, 5.0, 6.0]
        assert batches.values("val/loss", "bn", {"data.batch_size": "60"}).tolist() == [60.0, 61.0, 62.0]

    def test_ambiguous_panel(self, batches):
        with pytest.raises(
            ConfigError, match=r"panel must match one of the panels \(data.batch_size=4; data.b.*\), got {}"
        ):
            batches.values("val/loss", "bn", {})

    def test_misspelt_key(self, batches):
        with pytest.raises(ConfigError, match=r"got data.batchsize; did you mean data.batch_size\?"):
            batches.values("val/loss", "bn", {"data.batchsize": 4})

    def test_unknown_arm(self, batches):
        with pytest.raises(ConfigError, match="arm must be one of bn, nobn with runs in the panel, got ln"):
            batches.values("val/loss", "ln", {"data.batch_size": 4})

    def test_unknown_metric(self, batches):
        with pytest.raises(
            ConfigError, match="metric must be a metric of the runs, got test/acc, which no run has"
        ):
            batches.values("test/acc", "bn", {"data.batch_size": 4})
        with pytest.raises(ConfigError, match="metric must be steps/<metric>/<target>, such as"):
            batches.values("steps/val/loss", "bn", {"data.batch_size": 4})


@pytest.mark.parametrize(
    ("data", "expected"),
    [({"generated": False, "train": 60, "val": 20, "test": 20}, (60, 20)), ({"generated": True}, None)],
)
def test_overlapping_splits(make_run, numbers, data, expected):
    for seed in range(3):
        for model in ("bn", "nobn"):
            make_run(f"model={model} seed={seed}", data={"seed": seed, **data})
    sweep = numbers()
    assert sweep.rows("test/loss", {}) == expected
    assert sweep.rows("train_eval/loss", {}) is None


def test_directions(tuned):
    names = ("test/loss", "val/acc", "probe/curvature/batch/sharpness", "steps/val/acc/0.9")
    assert [tuned.metric(name).direction for name in names] == ["min", "max", "min", "min"]
    with pytest.raises(ConfigError, match=r"metric must be one of .* on a split, got val/mine"):
        tuned.metric("val/mine")
