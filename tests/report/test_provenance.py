"""Commands of a report reproduce the losses of its runs and sweeps."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from normlab.report.provenance import entry_command, rerun_command, sweep_command
from normlab.results.result import Objective, Result, Status
from normlab.results.sweep import read_sweep

CONF = Path(__file__).parents[2] / "conf"
ENTRY = f"""
import hydra
from hydra.core.hydra_config import HydraConfig
from normlab.cli import run_cli


@hydra.main(version_base="1.3", config_path={str(CONF)!r}, config_name="train")
def main(config):
    from normlab.training.run import train
    from normlab.training.run_folders import Run

    return train([Run.composed(config, HydraConfig.get())])[0].objective.value


if __name__ == "__main__":
    run_cli(main)
"""
SHORT = "defaults: [train, _self_]\ntrainer: {max_epochs: 3}\noptimizer: {lr: 0.1}\n"
OWN = ["--config-dir", "drift", "--config-name", "short"]


@pytest.fixture
def lab(tmp_path):
    """Create a folder with entry scripts and a configuration file."""
    (tmp_path / "drift").mkdir()
    (tmp_path / "drift" / "short.yaml").write_text(SHORT)
    (tmp_path / "lab").mkdir()
    for name in ("mytrain.py", "lab/run.py"):
        (tmp_path / name).write_text(ENTRY)
    return tmp_path


def start(folder: Path, *words: str) -> None:
    """Run a Python command and require success."""
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("entry", "more"),
    [
        (["mytrain.py"], []),
        (["-m", "lab.run"], ["hydra.launcher.n_jobs=2"]),
        (["mytrain.py"], ["hydra.launcher.n_jobs=2"]),
    ],
    ids=str,
)
def test_rerun_command_reproduces_the_loss(lab, entry, more):
    start(lab, *entry, *OWN, "-m", "model=bn,nobn", "logger=csv", "hydra.sweep.dir=sweep", *more)
    records = read_sweep(lab / "sweep")
    assert len(records) == 2
    printed = shlex.split(rerun_command(records[0].result))
    assert printed[: len(entry) + 1] == ["python", *entry]
    start(lab, *printed[1:], "hydra.run.dir=again")
    repeated = Result.read(lab / "again")
    assert repeated.config == records[0].result.config
    assert repeated.objective.value == pytest.approx(records[0].result.objective.value, rel=1e-4)


@pytest.mark.thorough
def test_sweep_command_reproduces_the_losses(lab):
    start(lab, "mytrain.py", *OWN, "-m", "model=bn,nobn", "logger=csv", "hydra.sweep.dir=sweep")
    printed = shlex.split(sweep_command(lab / "sweep", entry_command(lab / "sweep", read_sweep(lab / "sweep"))))
    assert printed[:2] == ["python", "mytrain.py"]
    words = [word.replace("hydra.sweep.dir=sweep", "hydra.sweep.dir=again") for word in printed[1:]]
    start(lab, *words)
    losses = [
        [record.result.objective.value for record in read_sweep(lab / folder)] for folder in ("sweep", "again")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_default_entry_is_train_py():
    result = Result("", Status.FINISHED, {}, {}, ["model=bn", "experiment=x"], Objective("", "", 0.0))
    assert rerun_command(result) == "python train.py model=bn experiment=x hydra.mode=RUN"


def test_unknown_key_in_own_script_is_one_line(lab):
    done = subprocess.run(
        [sys.executable, "mytrain.py", "modle=bn"], cwd=lab, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, "error: modle: no such key; to add it write +modle=…\n")
