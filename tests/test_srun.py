"""Which processes of ``srun -n 4`` go on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from normlab.claims import __main__ as claims
from normlab.srun import exit_unless_first_task

SCRIPTS = Path(__file__).parents[1]
STEP = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4"}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {**STEP, "SLURM_PROCID": "0"},
        {**STEP, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},  # what submitit starts in a job of 4 tasks
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"},  # a batch script of 4 tasks, without srun
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "2"},  # the same, with a variable left from elsewhere
    ],
)
def test_goes_on(environment):
    exit_unless_first_task(environment)


@pytest.mark.parametrize("unknown", [(), ("SLURM_STEP_NUM_TASKS",)])
def test_other_tasks_exit(capsys, monkeypatch, unknown):
    monkeypatch.setattr(sys, "argv", ["/somewhere/train.py"])
    environment = {name: value for name, value in STEP.items() if name not in unknown}
    with pytest.raises(SystemExit) as end:
        exit_unless_first_task({**environment, "SLURM_PROCID": "3"})
    assert end.value.code == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "srun started train.py 4 times: process 0 goes on alone, process 3 ends here; use srun -n 1"
    )


@pytest.mark.slow
@pytest.mark.parametrize("words", [["train.py"], ["train.py", "-m", "model=bn,nobn"]])
def test_exits_before_it_imports_torch(tmp_path, words):
    script, *arguments = words
    code = f"""
import atexit, runpy, sys
atexit.register(lambda: print("torch" in sys.modules))
sys.argv = {[script, *arguments]!r}
runpy.run_path({str(SCRIPTS / script)!r}, run_name="__main__")
"""
    environment = {**os.environ, **STEP, "SLURM_PROCID": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_claims_exit_as_well(capsys, monkeypatch):
    for name, value in {**STEP, "SLURM_PROCID": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as end:
        claims.main(["--list"])
    assert end.value.code == 0
    assert "process 1 ends here" in capsys.readouterr().err
