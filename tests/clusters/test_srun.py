"""``train.py`` in the processes of ``srun -n 4``: one trains."""

import subprocess
import sys
from pathlib import Path

import pytest

from normlab.results.result import Result, Status

pytestmark = pytest.mark.slow

TRAIN = str(Path(__file__).parents[2] / "train.py")
GOES_ON = 'from normlab.srun import exit_unless_first_task; exit_unless_first_task(); print("goes on")'
SHORT = ["trainer.max_epochs=1", "logger=csv"]


def srun(slurm, folder, *options):
    """Run ``train.py`` in this folder with four processes; return its lines on stderr."""
    command = ["srun", "-n", "4", sys.executable, TRAIN, *SHORT, *options]
    environment = slurm.full_environment()
    done = subprocess.run(
        command, cwd=folder, env=environment, timeout=120, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return sorted(done.stderr.splitlines())


def assert_three_end(lines):
    """Check that processes 1 to 3 said why they end, and nothing else was written to stderr."""
    assert len(lines) == 3
    assert all(f"process {number} ends here" in line for number, line in enumerate(lines, start=1))


def test_one_process_trains_a_run(slurm, tmp_path):
    assert_three_end(srun(slurm, tmp_path))
    (result,) = tmp_path.rglob("result.json")
    assert Result.read(result.parent).status is Status.FINISHED
    assert len(list(tmp_path.glob("outputs/*/*"))) == 1


def test_one_process_trains_a_sweep(slurm, tmp_path):
    assert_three_end(srun(slurm, tmp_path, "-m", "model=bn,nobn", "hydra.sweep.dir=sweep"))
    assert len(list(tmp_path.rglob("result.json"))) == 2
    assert not (tmp_path / "outputs").exists()


def test_a_batch_script_of_several_tasks_goes_on(slurm, tmp_path):
    script = tmp_path / "job.sh"
    script.write_text(f"#!/bin/bash\n{sys.executable} -c '{GOES_ON}'\n")
    job = slurm.run("sbatch", "--parsable", "--ntasks=4", "--output=out.txt", str(script), cwd=tmp_path)
    assert slurm.wait_for(job) == "COMPLETED"
    assert (tmp_path / "out.txt").read_text() == "goes on\n"
