"""``hydra/sweeper=optuna`` searches over populations, resumes, and records the best trial."""

import math
import os
import re
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from pytorch_lightning import Callback

from hydra_plugins.normlab.search_space import Dimension, dimension_of
from normlab.results.reading import read_curves
from normlab.results.result import Result, Status
from normlab.results.sweep import Record, read_sweep

pytest.importorskip("optuna")
SEARCH = ["-m", "hydra/sweeper=optuna", "trainer.max_epochs=2", "hydra.sweep.dir=sweep"]
RATE = "optimizer.lr=tag(log,interval(0.0001,0.1))"
SEEDED = ["hydra.sweeper.sampler.seed=1", "hydra.sweeper.n_jobs=3"]


def runs(folder: str) -> dict[str, float]:
    """Return the objective of each run by the name of its folder."""
    paths = Path(folder).glob("*/result.json")
    return {path.parent.name: Result.read(path.parent).objective.value for path in sorted(paths)}


def recorded(folder: str) -> Any:
    """Return the recorded outcome of a study."""
    return OmegaConf.load(Path(folder) / "optimization_results.yaml")


def dimension(word: str) -> Dimension:
    """Return the dimension of a typed override."""
    return dimension_of(OverridesParser.create().parse_override(word))


@pytest.mark.parametrize(
    ("word", "value", "expected"),
    [
        ("a.b=interval(0.5,2)", 1.25, "a.b=1.25"),
        ("+a.b=interval(1,4)", 3, "+a.b=3"),
        ("a=range(0.5,2,0.5)", 1.5, "a=1.5"),
        ("a=range(9,0,-3)", 6, "a=6"),
        ("a=choice(x,'y z',[1,2])", "[1,2]", "a=[1,2]"),
        ("a=1,2.5,null", None, "a=null"),
        ("a=true,1", "1", "a=1"),
    ],
)
def test_values_are_written_as_typed(word, value, expected):
    space = dimension(word)
    assert space.word(value) == expected
    assert space.distribution()._contains(space.distribution().to_internal_repr(value))


@pytest.mark.parametrize(
    ("word", "sampled", "expected"),
    [
        ("a=interval(0.5,2)", 1.2345678901, 1.23457),
        ("a=tag(log,interval(0.0001,0.1))", 0.000123456789, 0.000123457),
        ("a=interval(0,0.1234567)", 0.1234567, 0.1234567),  # rounded, it would be above the end
        ("a=interval(1,10000000)", 1234567, 1234567),
        ("a=range(0,1,0.1)", 0.30000000000000004, 0.3),
        ("a=1,2.5,null", None, None),
    ],
)
def test_sampled_values_are_rounded_within_the_interval(word, sampled, expected):
    assert dimension(word).trained(sampled) == expected


def test_range_excludes_its_end():
    assert dimension("a=range(5)").distribution().high == 4
    assert dimension("a=range(9,0,-3)").extremes == [3, 9]


@pytest.mark.slow
def test_batches_are_populations(run_train):
    outcome = run_train(*SEARCH, RATE, "hydra.sweeper.n_trials=6", "hydra.sweeper.n_jobs=3")
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("3 runs in 1 population\n") == 2
    assert pd.read_csv("sweep/summary.csv")["status"].tolist() == ["finished"] * 6
    best, values = recorded("sweep"), runs("sweep")
    assert best.best_value == min(values.values()) == values[best.best_run]
    assert best.best_params["optimizer.lr"] == Result.read(Path("sweep") / best.best_run).config["optimizer"]["lr"]
    rate = best.best_params["optimizer.lr"]
    assert rate == float(f"{rate:.6g}")
    assert f"best trial: {best.best_trial}, val/loss={best.best_value:.4g}   optimizer.lr={rate}\n" in outcome.out
    assert Path("sweep/report/index.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "more"), [("tpe", ["hydra.launcher.n_jobs=2"]), ("random", [])])
def test_resumed_study_equals_uninterrupted_one(run_train, sampler, more):
    words = [*SEARCH, RATE, "model=bn,nobn", f"hydra/sweeper/sampler={sampler}", *SEEDED]
    words += ["hydra.sweeper.sampler.n_startup_trials=3"] if sampler == "tpe" else []
    assert run_train(*words, "hydra.sweeper.n_trials=3").code == 0
    before = {path: path.stat().st_mtime_ns for path in Path("sweep").glob("*/result.json")}
    assert run_train(*words, "hydra.sweeper.n_trials=6").code == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    again = run_train(*words, "hydra.sweeper.n_trials=6")
    assert again.code == 0
    assert "6 finished" in again.out
    assert "trials 1 to" not in again.out
    words[words.index("hydra.sweep.dir=sweep")] = "hydra.sweep.dir=whole"
    assert run_train(*words, "hydra.sweeper.n_trials=6", *more).code == 0
    assert runs("whole") == pytest.approx(runs("sweep"), rel=1e-5)
    assert recorded("whole").best_params == recorded("sweep").best_params


STOP = """
from pytorch_lightning import Callback

class StopOnce(Callback):
    def on_train_epoch_end(self, trainer, module):
        import os, pathlib
        if trainer.current_epoch == 1 and not pathlib.Path("stopped").exists():
            pathlib.Path("stopped").touch()
            os._exit(9)
"""


@pytest.mark.slow
def test_killed_batch_is_trained_again(warm_python, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    (tmp_path / "stop.py").write_text(STOP)
    words = [*SEARCH, RATE, *SEEDED, "hydra.sweeper.n_trials=3", "+callbacks.extra.stop._target_=stop.StopOnce"]
    command = [Path(__file__).parents[2] / "train.py", *words]
    assert warm_python.run(command, tmp_path, environment).returncode == 9
    assert runs("sweep") == {}
    done = warm_python.run(command, tmp_path, environment)
    assert done.returncode == 0, done.stderr
    assert "training 3 trials again that had not ended" in done.stdout
    assert [name.partition("_")[0] for name in runs("sweep")] == ["0", "1", "2"]
    assert recorded("sweep").trials == {"finished": 3, "diverged": 0, "pruned": 0, "failed": 0}


@pytest.mark.slow
def test_grid_trains_each_point_once(run_train):
    words = ["hydra/sweeper/sampler=grid", "model=nobn,bn", "seed=range(11)", "hydra.sweeper.n_jobs=22"]
    outcome = run_train(*SEARCH, *words)
    assert outcome.code == 0, outcome.err
    assert "22 runs in 2 populations" in outcome.out
    points = [f"model={model},seed={seed}" for model in ("nobn", "bn") for seed in range(11)]
    assert set(runs("sweep")) == {f"{number}_{point}" for number, point in enumerate(points)}


@pytest.mark.slow
def test_number_of_trials_limits_grid(run_train):
    words = ["hydra/sweeper/sampler=grid", "seed=range(4)"]
    assert run_train(*SEARCH, *words, "hydra.sweeper.n_trials=2").code == 0
    assert set(runs("sweep")) == {"0_seed=0", "1_seed=1"}
    assert run_train(*SEARCH, *words, "hydra.sweeper.n_trials=9").code == 0
    assert set(runs("sweep")) == {f"{k}_seed={k}" for k in range(4)}


@pytest.mark.slow
def test_repeated_trial_is_not_trained_again(run_train):
    words = ["seed=range(2)", "hydra/sweeper/sampler=random", *SEEDED, "hydra.sweeper.n_trials=6"]
    outcome = run_train(*SEARCH, *words, "hydra/launcher=basic")
    assert outcome.code == 0, outcome.err
    assert len(runs("sweep")) == 2
    assert outcome.out.count("whose result it gets") == 4
    assert recorded("sweep").trials.finished == 6


@pytest.mark.slow
def test_diverged_trials_count_as_worst(run_train):
    words = ["optimizer.lr=0.01,1e30,1e35", "hydra/sweeper/sampler=grid", "model=nobn"]
    outcome = run_train(*SEARCH, *words)
    assert outcome.code == 0, outcome.err
    assert recorded("sweep").trials == {"finished": 1, "diverged": 2, "pruned": 0, "failed": 0}
    assert recorded("sweep").best_params == {"optimizer.lr": 0.01}


@pytest.mark.slow
def test_study_without_finite_objective_has_no_best_trial(run_train):
    words = ["optimizer.lr=1e30,1e35", "hydra.sweeper.n_trials=2", "model=nobn", *SEEDED]
    outcome = run_train(*SEARCH, *words)
    assert outcome.code == 0, outcome.err
    assert "no trial has a finite val/loss" in outcome.out
    assert recorded("sweep").best_value is None


class Bad(Callback):
    """Fails while there is a file of the name ``bad``."""

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        if Path("bad").exists():
            raise RuntimeError("no luck")


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_failed_trials_stay_open_or_count(run_train, monkeypatch, rate):
    module = ModuleType("usercode")
    module.Bad = Bad
    monkeypatch.setitem(sys.modules, "usercode", module)
    Path("bad").touch()
    words = [
        *SEARCH,
        "optimizer.lr=0.01,0.02",
        "hydra/sweeper/sampler=grid",
        "+callbacks.extra.bad._target_=usercode.Bad",
    ]
    words += [f"hydra.sweeper.max_failure_rate={rate}"]
    outcome = run_train(*words)
    assert outcome.code == (1 if rate == 0 else 0)
    assert "no luck" in outcome.err if rate == 0 else "trial 0 failed: no luck" in outcome.out + outcome.err
    assert recorded("sweep").trials.failed == (0 if rate == 0 else 2)
    Path("bad").unlink()
    assert run_train(*words).code == 0
    assert recorded("sweep").trials.finished == (2 if rate == 0 else 0)


@pytest.mark.slow
def test_study_in_a_database_continues_in_another_folder(run_train, monkeypatch):
    """The trials that an earlier command left are trained in the new folder."""
    module = ModuleType("usercode")
    module.Bad = Bad
    monkeypatch.setitem(sys.modules, "usercode", module)
    words = [*SEARCH[:-1], RATE, "hydra.sweeper.storage=sqlite:///study.db", *SEEDED]
    words += ["+callbacks.extra.bad._target_=usercode.Bad"]
    assert run_train(*words, "hydra.sweeper.n_trials=2", "hydra.sweep.dir=one").code == 0
    Path("bad").touch()
    assert run_train(*words, "hydra.sweeper.n_trials=3", "hydra.sweep.dir=two").code == 1
    Path("bad").unlink()
    assert run_train(*words, "hydra.sweeper.n_trials=4", "hydra.sweep.dir=three").code == 0
    numbers = {folder: {name[0] for name in runs(folder)} for folder in ("one", "three")}
    assert numbers == {"one": {"0", "1"}, "three": {"2", "3"}}
    assert recorded("three").trials.finished == 4
    assert run_train(*words[:-1], "model=nobn", "hydra.sweeper.n_trials=1", "hydra.sweep.dir=other").code == 0
    assert recorded("other").trials.finished == 1


@pytest.mark.slow
def test_keys_of_some_arms_are_dropped_for_others(run_train):
    words = ["model=nobn,bn", "model.norm.eps=0.1,0.2", "hydra/sweeper/sampler=grid"]
    outcome = run_train(*SEARCH, *words)
    assert outcome.code == 0, outcome.err
    assert "model.norm.eps does not apply to model=nobn" in outcome.out
    assert list(runs("sweep")) == [
        "0_model=nobn",
        "2_model=bn,model.norm.eps=0.1",
        "3_model=bn,model.norm.eps=0.2",
    ]


GRID, MEDIAN = "seed=0,1 hydra/sweeper/sampler=grid", f"{RATE} hydra/sweeper/pruner=median"
ERRORS = {
    f"{RATE} hydra.sweeper.n_trials=0": "hydra.sweeper.n_trials must be null or at least 1, got 0",
    f"{RATE} hydra.sweeper.n_jobs=0": "hydra.sweeper.n_jobs must be at least 1, got 0",
    f"{RATE} hydra.sweeper.max_failure_rate=2": "hydra.sweeper.max_failure_rate must be between 0 and 1, got 2.0",
    f"{RATE} hydra/sweeper/sampler=grid": "the grid sampler takes ranges and values, got an interval; write range",
    f"{RATE} hydra/sweeper/sampler=cmaes": "hydra/sweeper/sampler=cmaes: no such option; did you mean",
    f"{RATE} hydra.sweeper.sampler.seed=-1": "hydra.sweeper.sampler.seed must be null or at least 0, got -1",
    f"{RATE} hydra.sweeper.direction=maximize": "hydra.sweeper.direction must be minimize, that of",
    f"{RATE} hydra.sweeper.direction=up": "hydra.sweeper.direction must be minimize or maximize, got up",
    f"{RATE} hydra.sweep.subdir=x": "hydra.sweep.subdir has no effect with hydra/sweeper=optuna",
    f"{RATE} hydra.sweeper.storage=foo://x": "hydra.sweeper.storage must be a database's URL or a file, got foo://x",
    "seed=0": "hydra/sweeper=optuna needs something to search",
    "optimizer.lr=interval(0.2,0.1)": "optimizer.lr must be an interval from low to high",
    "optimizer.lr=tag(log,interval(0,1))": "optimizer.lr must be above 0 on a logarithmic scale",
    "optimizer.lr=tag(foo,interval(0.1,1))": "the tag of a search space must be log, got foo",
    "seed=tag(log,range(1,9,2))": "a range with a logarithmic scale must have integers and step 1",
    "model=tag(log,choice(bn,nobn))": "a list has no logarithmic scale; leave out the tag",
    "optimizer.lr=interval(-1.0,0.1)": "optimizer.lr must be a finite number > 0, got -1.0",
    f"{RATE} hydra.sweeper.sampler.kind=cmaes": "hydra/sweeper/sampler must be tpe or random or grid, got cmaes",
    f"{RATE} +hydra.sweeper.sampler.foo=1": "hydra.sweeper.sampler.foo: TPESampler takes no such argument",
    f"{RATE} hydra.sweeper.max_batch_size=3": "no such key; hydra/sweeper=basic, hydra/sweeper=normlab have it",
    f"{RATE} hydra.sweeper.foo=3": "hydra.sweeper.foo: no such key; hydra.sweeper has sampler, pruner, ",
    f"{GRID} +hydra.sweeper.sampler.seed=3": "sampler.seed: hydra/sweeper/sampler=grid takes no such argument",
    f"{GRID} hydra.sweeper.sampler.seed=3": "hydra.sweeper.sampler.seed: no such key; "
    "hydra/sweeper/sampler=tpe, hydra/sweeper/sampler=random have it",
    f"{RATE} hydra/sweeper/pruner=hyperband": "hydra/sweeper/pruner=hyperband: no such option; did you mean",
    f"{MEDIAN} hydra.sweeper.pruner.n_startup_trials=0": "n_startup_trials must be at least 1, got 0",
    f"{MEDIAN} hydra.sweeper.pruner.n_warmup_epochs=1": "at most trainer.max_epochs - 2 = 0, got 1",
    f"{RATE} claim=rank": "hydra.sweeper.grids, which claims and some experiments set, has no effect on a search",
    "optimized_metric=val/loss,train/loss": "optimized_metric must be the same in all trials, whose objectives",
    "optimizer.lrr=0.1,0.2": "optimizer.lrr: no such key; did you mean optimizer.lr?",
}


@pytest.mark.parametrize("words", ERRORS)
def test_bad_search_is_refused_in_one_line(run_train, words):
    outcome = run_train(*SEARCH, *words.split())
    assert outcome.code == 1
    message = outcome.err.strip().splitlines()[-1]
    assert re.fullmatch(f"error: .*{re.escape(ERRORS[words])}.*", message)
    assert runs("sweep") == {}


def test_interval_needs_the_optuna_sweeper(run_train):
    outcome = run_train("-m", RATE)
    assert outcome.code == 1
    assert (
        outcome.err.strip()
        == f"error: {RATE}: an interval needs a search; add hydra/sweeper=optuna, or write values or range"
    )


@pytest.mark.parametrize(
    ("word", "key"),
    {
        "hydra/sweeper/sampler=tpe": "hydra/sweeper/sampler",
        "hydra.sweeper.n_trials=3": "hydra.sweeper.n_trials",
        "hydra.sweeper.sampler.seed=1": "hydra.sweeper.sampler.seed",
        "+hydra.sweeper.sampler.seed=1": "hydra.sweeper.sampler",
    }.items(),
)
def test_options_of_a_search_need_its_sweeper(run_train, word, key):
    outcome = run_train("-m", "seed=0,1", word)
    assert outcome.err.strip() == f"error: {key}: an option of a search; add hydra/sweeper=optuna"


def test_joblib_is_refused_with_its_remedy(run_train):
    outcome = run_train("-m", "hydra/launcher=joblib", "seed=0,1")
    assert outcome.code == 1
    assert outcome.err.strip().startswith(
        "error: hydra/launcher=joblib: no such option; add hydra.launcher.n_jobs=2"
    )


@pytest.mark.slow
def test_other_command_in_a_study_is_refused(run_train):
    words = [*SEARCH, RATE, "hydra/sweeper/sampler=random"]
    assert run_train(*words, "hydra.sweeper.n_trials=1").code == 0
    outcome = run_train(*words, "model=nobn")
    assert outcome.code == 1
    assert "study search was begun with other overrides: trainer.max_epochs=2, got model=nobn" in outcome.err
    outcome = run_train(*words, "retrain=true")
    assert "retrain=true has no effect on a study's finished trials" in outcome.err
    outcome = run_train(*[word for word in words if word != RATE], "optimizer.lr=1,2")
    assert outcome.code == 1
    assert "holds a study with another search space" in outcome.err
    assert math.isfinite(recorded("sweep").best_value)


PRUNED = ["hydra/sweeper/pruner=median", "hydra.sweeper.pruner.n_startup_trials=3"]


@pytest.mark.thorough
@pytest.mark.parametrize(
    "more",
    [
        ["hydra.sweeper.n_jobs=3"],
        ["hydra.sweeper.n_jobs=12", "hydra.launcher.n_jobs=2", "model=bn,nobn", "records=packed"],
        ["hydra.sweeper.n_jobs=3", "hydra/launcher=basic"],
        ["hydra.sweeper.n_jobs=3", "module=lightning"],
    ],
    ids=["batches", "workers", "basic", "lightning"],
)
def test_pruning_changes_no_bit_of_the_survivors(run_train, more):
    rates = "optimizer.lr=0.05,0.04,0.03,0.0001,0.0002,0.06"
    words = ["-m", "hydra/sweeper=optuna", "hydra/sweeper/sampler=grid", "trainer.max_epochs=6", rates, *more]
    assert run_train(*words, "hydra.sweep.dir=whole").code == 0
    outcome = run_train(*words, *PRUNED, "hydra.sweep.dir=pruned")
    assert outcome.code == 0, outcome.err
    statuses = Counter(record.result.status for record in read_sweep(Path("pruned")))
    assert set(statuses) == {Status.PRUNED, Status.FINISHED}
    assert recorded("pruned").trials.pruned == statuses[Status.PRUNED]
    for ours in read_sweep(Path("pruned")):
        whole = Record.read(Path("whole") / ours.folder.name)
        if ours.result.status == Status.FINISHED:
            for part in ("best", "last", "test", "final"):
                assert getattr(ours.result, part) == getattr(whole.result, part)
            pd.testing.assert_frame_equal(*(curve_of(record) for record in (ours, whole)), check_exact=True)
        else:
            assert ours.result.epochs < 6
            assert ours.result.test == {}
            assert ours.result.objective.value == ours.result.best.metrics["val/loss"]
    assert "pruned runs, excluded" in Path("pruned/report/index.html").read_text()
    again = run_train(*words, *PRUNED, "hydra.sweep.dir=pruned")
    assert "trials 1 to" not in again.out


def curve_of(record: Record) -> pd.DataFrame:
    """Return the learning curves of a run without its times."""
    return read_curves([record]).drop(columns=["wall_time", "time"], errors="ignore")


def test_pruning_by_hand_is_refused(run_train):
    outcome = run_train("+callbacks.pruning={n_startup_trials:1,n_warmup_epochs:0}")
    assert outcome.code == 1
    assert "has no effect outside a search; add hydra/sweeper=optuna hydra/sweeper/pruner=median" in outcome.err
