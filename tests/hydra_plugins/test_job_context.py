"""Interpolations of Hydra's values: ``${hydra:job.num}``, ``${hydra:runtime.output_dir}``."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from hydra_plugins.normlab.composer import hydra_values
from normlab.results.result import Result

TRAIN = Path(__file__).parents[2] / "train.py"
EXPERIMENT = """# @package _global_
trainer: {max_epochs: 1}
data:
  seed: ${hydra:job.num}
callbacks:
  extra:
    checkpoints:
      _target_: pytorch_lightning.callbacks.ModelCheckpoint
      dirpath: ${hydra:runtime.output_dir}/mine
"""


@pytest.fixture
def mine(tmp_path):
    """Return arguments that choose an experiment with Hydra's values."""
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(EXPERIMENT)
    return ["--config-dir", str(folder.parent), "experiment=mine", "logger=csv"]


def check_resolved(sweep: Path) -> None:
    """Check that each run resolved its own job number and output folder."""
    results = {path.parent: Result.read(path.parent) for path in sweep.rglob("result.json")}
    assert sorted(result.config["data"]["seed"] for result in results.values()) == [0, 1]
    for folder, result in results.items():
        assert result.config["callbacks"]["extra"]["checkpoints"]["dirpath"] == str(folder.absolute() / "mine")
        assert list((folder / "mine").glob("*.ckpt"))


@pytest.mark.parametrize("how", [[], ["hydra/launcher=basic"], ["hydra/sweeper=basic"]], ids=str)
def test_sweep_resolves_hydra_values_for_each_job(run_train, mine, how):
    outcome = run_train(*mine, "-m", "seed=0,1", "hydra.sweep.dir=sweep", *how)
    assert outcome.code == 0, outcome.err
    check_resolved(Path("sweep"))


@pytest.mark.thorough
def test_worker_processes_get_resolved_hydra_values(warm_python, tmp_path, mine):
    words = ["-m", "seed=0,1", "hydra.sweep.dir=sweep", "hydra.launcher.n_jobs=2"]
    done = warm_python.run([TRAIN, *mine, *words], tmp_path)
    assert done.returncode == 0, done.stderr
    check_resolved(tmp_path / "sweep")


def test_single_run_resolves_only_hydra_values(run_train, mine):
    numbered = run_train(*mine, "hydra.job.num=7", "hydra.run.dir=out/${hydra:job.name}")
    assert numbered.code == 0, numbered.err
    folder = Path("out/train")
    assert Result.read(folder).config["data"]["seed"] == 7
    assert list((folder / "mine").glob("*.ckpt"))
    outcome = run_train("data.seed=${seed}", "trainer.max_epochs=1", "hydra.run.dir=plain")
    assert outcome.code == 0, outcome.err
    assert OmegaConf.to_container(OmegaConf.load("plain/.hydra/config.yaml"))["data"]["seed"] == "${seed}"
    assert Result.read(Path("plain")).overrides[0] == "data.seed=${seed}"


@pytest.mark.parametrize("how", [[], ["hydra/launcher=basic"]], ids=str)
def test_job_number_is_recorded_resolved(run_train, how):
    few = ["trainer.max_epochs=1", "logger=csv", "hydra.sweep.dir=sweep"]
    outcome = run_train("-m", "seed=0,1", "data.seed=${hydra:job.num}", *few, *how)
    assert outcome.code == 0, outcome.err
    assert "data.seed=1" in Result.read(Path("sweep/seed=1")).overrides


@pytest.mark.parametrize("subdir", ["${hydra.job.num}", "${hydra:job.num}"])
def test_jobs_are_named_by_their_number(run_train, subdir):
    outcome = run_train(
        "-m",
        "seed=0,1",
        "trainer.max_epochs=1",
        "logger=csv",
        "hydra.sweep.dir=sweep",
        f"hydra.sweep.subdir={subdir}",
    )
    assert outcome.code == 0, outcome.err
    assert sorted(path.parent.name for path in Path("sweep").glob("*/result.json")) == ["0", "1"]


@pytest.mark.parametrize("how", [[], ["-m", "seed=0,1"], ["-m", "seed=0,1", "hydra/launcher=basic"]], ids=str)
def test_null_output_subdir_writes_no_yaml(run_train, how):
    outcome = run_train(*how, "trainer.max_epochs=1", "logger=csv", "hydra.output_subdir=null")
    assert outcome.code == 0, outcome.err
    assert not list(Path().rglob(".hydra"))
    assert len(list(Path().rglob("result.json"))) == (2 if how else 1)


@pytest.mark.parametrize("how", [[], ["-m"], ["-m", "hydra/launcher=basic"]], ids=str)
def test_job_environment_is_set_in_dry_run_and_training(run_train, mine, tmp_path, how):
    seed = "${oc.decode:${oc.env:NORMLAB_TEST_SEED}}"
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(f"# @package _global_\ndata: {{seed: '{seed}'}}\n")
    variable = "+hydra.job.env_set.NORMLAB_TEST_SEED='5'"
    outcome = run_train(*mine, *how, variable, "trainer.max_epochs=1")
    assert outcome.code == 0, outcome.err
    (path,) = Path().rglob("result.json")
    assert Result.read(path.parent).config["data"]["seed"] == 5


def test_hydra_values_skips_other_interpolations():
    config = OmegaConf.create(
        {"a": "${b}", "b": 1, "c": ["x${ hydra:job.num}", {"d": "${hydra:job.name}"}], "e": None, "f": "???"}
    )
    assert [key for _, key in hydra_values(config)] == [0, "d"]
