"""``hydra/launcher=slurm`` on a real SLURM."""

import json
import signal
from pathlib import Path

import pytest
from run_files import require_same_sweep
from tests.clusters.processes import wait_until
from tests.clusters.sweeps import run, start

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]
SWEEP = ["-m", "model=bn,nobn", "seed=range(6)", "data=digits"]
SLURM = ["hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.time=10"]


def submitted(sweep: Path) -> list[str]:
    """Return the ids of all jobs that were submitted for a sweep."""
    path = sweep / ".normlab" / "jobs.jsonl"
    return [json.loads(line)["job"] for line in path.read_text().splitlines()] if path.exists() else []


def is_training(sweep: Path) -> bool:
    """Return True if two populations of a sweep have trained an epoch."""
    found = [json.loads(path.read_text()) for path in (sweep / ".normlab").glob("*.progress")]
    return sum(progress["epochs"] > 0 for progress in found) == 2


def test_slurm_leaves_the_files_of_the_default_launcher(slurm, warm_python, tmp_path):
    short = [*SWEEP, "trainer.max_epochs=4", "trainer.threads=1"]
    out = run(warm_python, tmp_path, *short, *SLURM, "hydra.sweep.dir=cluster")
    assert "12 runs in 2 populations" in out
    assert "2 jobs of slurm, about 1 s each" in out
    assert len(submitted(tmp_path / "cluster")) == 2
    run(warm_python, tmp_path, *short, "hydra.sweep.dir=here")
    require_same_sweep(tmp_path / "cluster", tmp_path / "here")
    out = run(warm_python, tmp_path, *short, *SLURM, "hydra.sweep.dir=cluster")
    assert "12 runs are done already" in out
    assert len(submitted(tmp_path / "cluster")) == 2, "nothing is submitted again"


@pytest.mark.thorough
def test_preempted_job_and_killed_driver_change_no_bit(slurm, warm_python, tmp_path):
    long = [*SWEEP, "trainer.max_epochs=150", "trainer.threads=1", "trainer.compile=false"]
    sweep = tmp_path / "cluster"
    driver = start(warm_python, tmp_path, *long, *SLURM, "hydra.sweep.dir=cluster")
    wait_until(lambda: is_training(sweep), 90, "both jobs train")
    first, second = submitted(sweep)
    slurm.run("scancel", "--signal=USR1", first)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    slurm.wait_for(first, "PENDING")
    slurm.run("scancel", second)
    out = run(warm_python, tmp_path, *long, *SLURM, "hydra.sweep.dir=cluster")
    assert "waiting for 1 job, submitted before" in out or "waiting for 2 jobs, submitted before" in out
    log = (sweep / ".normlab" / "jobs" / f"{first}_0_log.err").read_text()
    assert "goes on from epoch" in log
    assert len(set(submitted(sweep))) == 3, "the cancelled job was submitted again, the preempted one was not"
    run(warm_python, tmp_path, *long, "hydra.sweep.dir=here")
    require_same_sweep(sweep, tmp_path / "here")


@pytest.mark.thorough
def test_job_that_cannot_start_fails_with_its_log(slurm, warm_python, tmp_path):
    broken = ["hydra.launcher.setup=[exit 3]", "hydra.launcher.retries=0"]
    process = start(
        warm_python, tmp_path, *SWEEP, "trainer.max_epochs=1", *SLURM, *broken, "hydra.sweep.dir=cluster"
    )
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "its job ended once without results" in out + err
    assert "cluster/.normlab/jobs" in out + err


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("hydra.launcher.partition=absent", "sbatch failed: sbatch: error: "),
        ("hydra.launcher.partitoin=debug", "partitoin"),
        ("hydra.launcher.retries=-1", "hydra.launcher.retries must be at least 0, got -1"),
    ],
)
def test_wrong_setting_is_told_in_one_line(slurm, warm_python, tmp_path, setting, message):
    process = start(
        warm_python, tmp_path, *SWEEP, "trainer.max_epochs=1", *SLURM, setting, "hydra.sweep.dir=cluster"
    )
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    line = err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert message in line
