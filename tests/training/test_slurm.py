"""A run on a machine of a SLURM cluster, inside and outside of a job."""

import os

import pandas as pd
import pytest


@pytest.mark.filterwarnings("error:The .srun. command is available")
def test_slurm_changes_nothing(run_train, tmp_path, monkeypatch):
    run_train("trainer.max_epochs=1", "logger=csv", "hydra.run.dir=laptop")
    srun = tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text("#!/bin/sh\n")
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", str(srun.parent), prepend=os.pathsep)
    login_node = run_train("trainer.max_epochs=1", "logger=csv", "hydra.run.dir=login_node")
    for name, value in {"NTASKS": "4", "JOB_ID": "7", "PROCID": "0", "LOCALID": "0", "JOB_NAME": "train"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    job = run_train("trainer.max_epochs=1", "logger=csv", "hydra.run.dir=job")
    assert (login_node.code, login_node.err) == (job.code, job.err) == (0, "")
    laptop, *others = (pd.read_csv(f"{folder}/curves.csv") for folder in ("laptop", "login_node", "job"))
    assert all(curves.equals(laptop) for curves in others)
