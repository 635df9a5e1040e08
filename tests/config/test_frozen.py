"""Records with old keys and targets are read, and their runs are not retrained."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.utils import get_object

from normlab.config.frozen import MOVED_TARGETS, updated
from normlab.results.result import Result
from normlab.results.sweep import read_sweep

ROOT = Path(__file__).parents[2]
WORDS = ["optimizer=sgd", "scheduler=cosine", "stats_warmup_epochs=1", "trainer.max_epochs=2", "logger=csv"]


@pytest.mark.parametrize("target", MOVED_TARGETS.values())
def test_moved_target_exists(target):
    assert get_object(target)


def test_nested_targets_are_moved():
    old = {"probes": {"a": {"_target_": "normlab.probes.AliasedLipschitz"}}, "extra": [{"_target_": "mine"}]}
    new = {"a": {"_target_": "normlab.source_experiments.AliasedLipschitz"}}
    assert updated(old) == {"replicate": "seed", "probes": new, "extra": [{"_target_": "mine"}]}


@pytest.mark.slow
def test_run_recorded_with_old_names_is_not_retrained(tmp_path):
    def train():
        words = [sys.executable, "train.py", *WORDS, f"hydra.run.dir={tmp_path / 'run'}"]
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)

    train()
    path = tmp_path / "run" / "result.json"
    now = Result.read(path.parent)
    text = path.read_text().replace("stats_warmup_epochs", "warmup")
    path.write_text(text.replace("normlab.population.", "normlab.training."))
    config = json.loads(path.read_text())["config"]
    assert config["warmup"] == 1
    assert config["optimizer"]["_target_"] == "normlab.training.optim.SGD"

    [record] = read_sweep(tmp_path)
    assert (record.result.config, record.result.overrides) == (now.config, now.overrides)
    done = train()
    assert "is done already" in done.stdout + done.stderr
