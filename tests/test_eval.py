"""``eval.py`` as a command."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.thorough
def test_command_prints_table_and_files(run_train):
    assert run_train("trainer.max_epochs=1", "logger=csv", "hydra.run.dir='outputs/model=bn,seed=0'").code == 0
    words = ["run=outputs/model=bn,seed=0", "data=fitness", "statistics=batch"]
    command = [sys.executable, str(ROOT / "eval.py"), *words]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (outcome.returncode, outcome.stderr) == (0, "")
    first, second, *_, last = outcome.stdout.splitlines()
    assert first.split()[:4] == ["run", "epoch", "train_eval/loss", "val/loss"]
    assert second.startswith("outputs/model=bn,seed=0")
    assert last == "files: outputs/model=bn,seed=0/eval-data=fitness,statistics=batch: eval.csv, eval.json"
