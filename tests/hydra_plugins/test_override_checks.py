"""Overrides without effect are rejected with a remedy."""

from pathlib import Path

import pytest

SHORT = ["trainer.max_epochs=1", "logger=csv"]
MULTIRUN = "hydra: {mode: MULTIRUN, sweeper: {params: {seed: '0,1'}}}\n"

REJECTED = {
    "seed=0 seed=1": "seed is set twice, by seed=0 and seed=1; keep one of them",
    "-m seed=0,1 ++seed=5": "seed is set twice, by seed=0,1 and ++seed=5; keep one of them",
    "model=bn model=nobn": "model is set twice, by model=bn and model=nobn; keep one of them",
    "-m model=bn,nobn model=ln": "model is set twice, by model=bn,nobn and model=ln; keep one of them",
    "model=[bn,nobn]": "a run has one model; choose one, or train each in a sweep: -m model=bn,nobn",
    "-m model=[bn,nobn]": "a run has one model; choose one, or train each in a sweep: -m model=bn,nobn",
    "-m model=bn,nobn,bn": "model=bn,nobn,bn has bn twice; write each value once",
    "-m seed=1,1": "seed=1,1 has 1 twice; write each value once",
    "-m optimizer.lr=1,1.0": "optimizer.lr=1,1.0 has 1 twice; write each value once",
    "-m hydra/sweeper=optuna model=bn,bn": "model=bn,bn has bn twice; write each value once",
    "-m optimizer=[adam,sgd],sgd": "a run has one optimizer; choose one",
    "hydra.sweep.dir=x": "hydra.sweep.dir=x has no effect in a single run, whose folder is hydra.run.dir",
    "hydra.sweep.subdir=x": "hydra.sweep.subdir=x has no effect in a single run",
    "hydra.launcher.n_jobs=2": "hydra.launcher.n_jobs=2 has no effect in a single run; a sweep needs -m",
    "hydra/launcher=basic": "hydra/launcher=basic has no effect in a single run; a sweep needs -m",
    "hydra/sweeper=basic": "hydra/sweeper=basic has no effect in a single run; a sweep needs -m",
    "-m hydra.run.dir=x": "hydra.run.dir=x has no effect in a sweep, whose folder is hydra.sweep.dir",
    "-m hydra.run={dir:x}": "hydra.run={dir:x} has no effect in a sweep, whose folder is hydra.sweep.dir",
    "-m hydra.job.num=7": "hydra.job.num=7 has no effect in a sweep, where Hydra numbers the jobs",
    "-m hydra.mode=RUN": "hydra.mode=RUN has no effect with -m; leave out one of the two",
    "hydra.runtime.output_dir=x": "hydra.runtime.output_dir=x has no effect because Hydra sets it",
    "+hydra.foo=1": "hydra.foo: Hydra has no such key; did you mean hydra.job?",
    "+hydra.job.nun=1": "hydra.job.nun: Hydra has no such key; did you mean hydra.job.num?",
    "-m hydra.job.chdir=true": "share a process, got True; add hydra/launcher=basic",
    "-m hydra/job_logging=none": "has no effect with hydra/launcher=population, which writes train.log itself",
    "-m +hydra.launcher.foo=2": "hydra/launcher=population takes no such argument; it takes chunk, n_jobs",
    "-m hydra/launcher=basic +hydra.launcher.n_jobs=2": "hydra/launcher=basic takes no such argument",
    "-m +hydra.sweeper.foo=2": "takes no such argument; it takes max_batch_size, params, grids",
    "-m hydra.sweeper.foo=2": "hydra.sweeper.foo: no such key; hydra.sweeper has max_batch_size, params, grids",
    "-m hydra.sweeper.n_trails=2": "hydra.sweeper.n_trails: no such key; did you mean hydra.sweeper.n_trials?",
    "-m hydra.sweeper.params.seed=2": "a key below null cannot be set; values of a sweep are typed as KEY=A,B",
    "-m hydra.sweeper.max_batch_size=0": "hydra.sweeper.max_batch_size must be null or at least 1, got 0",
    "++loss=huber": "++loss=huber: a group is chosen without ++; write loss=huber",
    "-m ++loss=huber": "++loss=huber: a group is chosen without ++; write loss=huber",
    "~target": "~target: target is null, which cannot be removed; write target=… to set it",
    "loss=[mse,huber]": "loss=[mse,huber]: a run has one loss; choose one, or train each in a sweep",
    "+seed=3": "+seed: the key is there already; write seed=… without +",
    "+model=nobn": "model is chosen already; to choose another option write model=… without +",
    "++model=nobn": "++model=nobn: a group is chosen without ++; write model=nobn",
    "~model": "model is missing, but every run needs it",
    "~statistics": "statistics is missing, but every run needs it",
}


@pytest.mark.parametrize(("words", "answer"), REJECTED.items(), ids=REJECTED)
def test_override_without_effect_raises(run_train, words, answer):
    outcome = run_train(*words.split(" "), *SHORT)
    assert outcome.code == 1
    assert answer in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    "words",
    ["seed=1 seed=1", "~statistics +statistics=batch", "probes=[line,activations]", "-m hydra.verbose=true"],
)
def test_override_with_effect_is_accepted(run_train, words):
    outcome = run_train(*words.split(" "), *SHORT)
    assert outcome.code == 0, outcome.err


@pytest.fixture
def write(tmp_path):
    """Return a function that writes experiment files and returns the arguments that select their folder."""

    def written(**files: str) -> list[str]:
        folder = tmp_path / "conf" / "experiment"
        folder.mkdir(parents=True)
        for name, text in files.items():
            (folder / f"{name}.yaml").write_text(f"# @package _global_\n{text}")
        return ["--config-dir", str(folder.parent)]

    return written


def test_experiment_chooses_launcher_in_defaults(run_train, write):
    mine = write(mine="defaults:\n  - override /hydra/launcher: basic\n")
    outcome = run_train(*mine, "-m", "experiment=mine", *SHORT)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("Launching 1 jobs locally")
    outcome = run_train(*mine, "-m", "experiment=mine", "hydra/launcher=population", *SHORT)
    assert outcome.out.startswith("1 run, one by one")


@pytest.mark.parametrize(
    "target",
    [
        "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
        "hydra_plugins.normlab.launcher.RayLauncher",
    ],
)
def test_replaced_launcher_target_raises(run_train, write, target):
    mine = write(mine=f"hydra: {{launcher: {{_target_: {target}}}}}\n")
    outcome = run_train(*mine, "-m", "experiment=mine", *SHORT)
    assert outcome.code == 1
    assert "hydra.launcher._target_ must be that of hydra/launcher=population" in outcome.err
    assert "- override /hydra/launcher: …" in outcome.err


def test_value_that_an_experiment_sweeps_twice_raises(run_train, write):
    mine = write(mine=MULTIRUN.replace("0,1", "0,1,0"))
    outcome = run_train(*mine, "experiment=mine", *SHORT)
    assert outcome.err.strip() == "error: seed=0,1,0 has 0 twice; write each value once"


def test_sweeping_over_a_sweep_experiment_raises(run_train, write):
    mine = write(one=MULTIRUN, two="seed: 3\n", three="seed: 4\n")
    outcome = run_train(*mine, "-m", "experiment=one,two", *SHORT)
    assert outcome.code == 1
    assert "experiment=one sets hydra.sweeper, which has no effect for single jobs of a sweep" in outcome.err
    outcome = run_train(*mine, "-m", "experiment=two,three", *SHORT)
    assert outcome.code == 0, outcome.err


def test_population_calls_hydras_job_end_callbacks(run_train):
    target = "+hydra.callbacks.mine._target_=hydra.experimental.callbacks"
    outcome = run_train("-m", "seed=0,1", f"{target}.LogJobReturnCallback", *SHORT)
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("Succeeded with return value: ") == 2
    outcome = run_train("-m", "seed=0,1", f"{target}.PickleJobInfoCallback", *SHORT)
    assert outcome.code == 1
    assert "PickleJobInfoCallback.on_job_start needs jobs that start one by one" in outcome.err
    assert "add hydra/launcher=basic" in outcome.err
