"""A resumed sweep finds the runs in its folder by their configuration."""

from pathlib import Path

import pandas as pd
import pytest

from normlab.results.folder import choose_folders
from normlab.results.result import Result

SWEEP = ["-m", "model=bn,nobn", "trainer.max_epochs=1", "logger=csv", "hydra.sweep.dir=sweep"]


@pytest.mark.parametrize(
    ("names", "prints", "earlier", "folders"),
    [
        (["a", "b"], ["1", "2"], {}, ["a", "b"]),
        (["a", "b"], ["1", "2"], {"1": ["old"]}, ["old", "b"]),
        (["a", "b"], ["1", "2"], {"1": ["old", "a"]}, ["a", "b"]),
        (["a", "b"], ["1", "1"], {"1": ["b"]}, ["a", "b"]),
        (["a", "b"], ["1", "1"], {"1": ["old"]}, ["old", "b"]),
    ],
)
def test_folder_is_assigned_to_one_job(names, prints, earlier, folders):
    assert choose_folders(names, prints, earlier) == folders


def test_default_seed_is_not_retrained_if_renamed(run_train):
    assert run_train(*SWEEP).code == 0
    before = {path: path.stat().st_mtime_ns for path in Path("sweep").glob("*/result.json")}
    outcome = run_train(*SWEEP, "seed=0,1")
    assert outcome.code == 0, outcome.err
    folders = sorted(path.parent.name for path in Path("sweep").glob("*/result.json"))
    assert folders == ["model=bn", "model=bn,seed=1", "model=nobn", "model=nobn,seed=1"]
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())
    assert pd.read_csv("sweep/table.csv")["runs"].tolist() == [2, 2]
    assert "over 2 seeds" in outcome.out


def test_verdict_options_retrain_nothing(run_train):
    verdict = ["baseline=nobn", "margin=0.05", "pairs=true", "max_replicates=40"]
    assert run_train(*SWEEP).code == 0
    before = {path: path.stat().st_mtime_ns for path in Path("sweep").glob("*/result.json")}
    outcome = run_train(*SWEEP, *verdict)
    assert outcome.code == 0, outcome.err
    assert {path: path.stat().st_mtime_ns for path in Path("sweep").glob("*/result.json")} == before
    assert pd.read_csv("sweep/table.csv")["model"].tolist() == ["bn", "nobn"]
    outcome = run_train(*SWEEP, *verdict, "seed=0,1")
    assert outcome.code == 0, outcome.err
    assert pd.read_csv("sweep/table.csv")["runs"].tolist() == [2, 2]
    assert "not set on the command line" not in outcome.out
    assert Result.read(Path("sweep/model=bn,seed=1")).config["max_replicates"] == 40


def test_killed_run_is_retrained_in_its_folder(run_train):
    assert run_train(*SWEEP, "data.seed=${seed}").code == 0
    Path("sweep/model=bn/result.json").unlink()
    outcome = run_train(*SWEEP, "seed=0,1", "data.seed=${seed}")
    assert outcome.code == 0, outcome.err
    assert Result.read(Path("sweep/model=bn")).config["data"]["seed"] == 0
    assert not Path("sweep/model=bn,seed=0").exists()


def test_explicit_subdir_overrides_earlier_folders(run_train):
    assert run_train(*SWEEP).code == 0
    outcome = run_train(*SWEEP, "seed=0,1", "hydra.sweep.subdir=${hydra.job.num}")
    assert outcome.code == 0, outcome.err
    assert {path.parent.name for path in Path("sweep").glob("*/result.json")} >= {"0", "1", "2", "3"}
