"""The SLURM cluster of the tests: what the tests of sweeps on it rely on."""

import re
import time

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def submit(slurm, tmp_path):
    """Return a function that submits a bash script and returns the job's id."""

    def submit(script, *options):
        path = tmp_path / "job.sh"
        path.write_text(f"#!/bin/bash\n{script}\n")
        return slurm.run("sbatch", "--parsable", "--output=%A_%a.out", *options, str(path), cwd=tmp_path)

    return submit


def test_a_script_runs(slurm, submit, tmp_path):
    job = submit("echo ran on $SLURMD_NODENAME with $SLURM_CPUS_ON_NODE CPUs", "--cpus-per-task=3")
    assert slurm.wait_for(job) == "COMPLETED"
    (output,) = tmp_path.glob("*.out")
    assert output.read_text() == "ran on node1 with 3 CPUs\n"


def test_a_failing_script_is_reported(slurm, submit):
    assert slurm.wait_for(submit("exit 3")) == "FAILED"


def test_jobs_of_an_array_run_together(slurm, submit, tmp_path):
    started = time.monotonic()
    job = submit("sleep 1; echo $SLURM_ARRAY_TASK_ID", "--array=0-3")
    assert [slurm.wait_for(f"{job}_{index}") for index in range(4)] == ["COMPLETED"] * 4
    assert time.monotonic() - started < 10
    assert sorted(path.read_text() for path in tmp_path.glob("*.out")) == [f"{index}\n" for index in range(4)]


def test_the_parallelism_of_an_array_is_limited(slurm, submit):
    job = submit("sleep 60", "--array=0-3%2")
    slurm.wait_for(f"{job}_1", "RUNNING")
    assert sorted(slurm.states()[f"{job}_{index}"] for index in range(4)) == ["PENDING"] * 2 + ["RUNNING"] * 2


@pytest.mark.parametrize("in_step", [False, True])
def test_a_signal_reaches_a_job(slurm, submit, tmp_path, in_step):
    code = "trap 'echo caught; exit 0' USR1; touch ready; while true; do sleep 0.1; done"
    (tmp_path / "work.sh").write_text(code)
    job = submit("srun bash work.sh" if in_step else code)
    wait_for_file(tmp_path / "ready")
    slurm.run("scancel", "--signal=USR1", *([] if in_step else ["--batch"]), job)
    assert slurm.wait_for(job) == "COMPLETED"
    assert "caught" in next(tmp_path.glob("*.out")).read_text()


def test_a_job_that_is_requeued_starts_again(slurm, submit, tmp_path):
    script = 'echo $SLURM_RESTART_COUNT >> starts; touch ready; [ -n "$SLURM_RESTART_COUNT" ] || sleep 60'
    job = submit(script, "--requeue")
    wait_for_file(tmp_path / "ready")
    started = time.monotonic()
    slurm.run("scontrol", "requeue", job)
    assert slurm.wait_for(job) == "COMPLETED"
    assert time.monotonic() - started < 15
    assert (tmp_path / "starts").read_text() == "\n1\n"


def test_jobs_of_a_test_are_gone_after_it(slurm, submit):
    job = submit("sleep 60")
    slurm.wait_for(job, "RUNNING")
    slurm.cancel_jobs()
    assert slurm.wait_for(job) == "CANCELLED"


def test_the_daemons_use_no_port_of_another_slurm(slurm):
    text = slurm.config.read_text()
    assert not {"6817", "6818"} & set(re.findall(r"Port=(\d+)", text))


def wait_for_file(path, seconds=15):
    """Wait until a file exists."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} was not written"
        time.sleep(0.02)
