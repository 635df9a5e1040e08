"""A sweep of several grids."""

from pathlib import Path

import pandas as pd
import pytest

EXPERIMENT = """# @package _global_
trainer: {max_epochs: 1}
hydra:
  mode: MULTIRUN
  sweeper:
    params:
      model: bn,nobn
    grids:
      - {net.hidden: "[8]", optimizer.lr: "0.1,0.01"}
      - {net.hidden: "[4,4]", optimizer.lr: 0.5}
"""


@pytest.fixture
def sweep(run_train, tmp_path):
    """Return what sweeps an experiment of somebody's, and returns what was trained."""
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(EXPERIMENT)

    def swept(*arguments: str) -> list[tuple]:
        mine = f"hydra.searchpath=[file://{folder.parent}]"
        outcome = run_train("experiment=mine", mine, "hydra.sweep.dir=sweep", "logger=csv", *arguments)
        assert outcome.code == 0, outcome.err
        runs = pd.read_csv("sweep/summary.csv")
        keys = [key for key in ("model", "net.hidden", "optimizer.lr", "seed") if key in runs]
        return sorted(tuple(row) for row in runs[keys].astype(str).to_numpy().tolist())

    return swept


def test_grids_are_joined_and_each_is_combined_with_the_params(sweep):
    hidden = [("[4, 4]", "0.5"), ("[8]", "0.01"), ("[8]", "0.1")]
    assert sweep() == sorted((model, *values, "0") for model in ("bn", "nobn") for values in hidden)
    assert (Path("sweep") / "model=bn,net.hidden=[8],optimizer.lr=0.1").is_dir()


def test_what_is_typed_stands_in_every_grid_and_equal_jobs_are_trained_once(sweep):
    assert sweep("optimizer.lr=0.2", "seed=0,1", "model=bn") == [
        ("[4, 4]", "0"),
        ("[4, 4]", "1"),
        ("[8]", "0"),
        ("[8]", "1"),
    ]
    assert len(list(Path("sweep").glob("*/result.json"))) == 4


def test_a_grid_is_checked_like_the_rest(run_train, sweep, tmp_path):
    path = tmp_path / "conf" / "experiment" / "mine.yaml"
    path.write_text(EXPERIMENT.replace("optimizer.lr: 0.5", "optimizer.lr: -1"))
    outcome = run_train("experiment=mine", f"hydra.searchpath=[file://{path.parents[1]}]")
    assert outcome.code == 1
    assert "optimizer.lr must be a finite number > 0, got -1" in outcome.err
    assert not Path("outputs").exists()


def said(outcome) -> list[str]:
    """What was printed of seeds, and which line it is before."""
    lines = (outcome.out + outcome.err).splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith(("seeds: ", "1 seed")))
    assert "population" in lines[place + 1] or "one by one" in lines[place + 1]
    return lines[place]


def test_before_training_it_says_what_the_seeds_are_for(run_train):
    grid = ("-m", "model=bn,nobn", "trainer.max_epochs=1", "logger=csv", "hydra.sweep.dir=sweep")
    short = run_train(*grid, "optimizer.lr=0.1,0.01", "seed=range(5)")
    line = "seeds: 4 choose the learning rate, 1 report; a verdict needs 8 that report: seed=range(12)"
    assert said(short) == line
    assert "too few seeds for a verdict, 1 paired seed of 8" in short.out + short.err


def test_runs_that_are_there_already_count_with_the_jobs(run_train):
    grid = ("-m", "model=bn,nobn", "trainer.max_epochs=1", "logger=csv", "hydra.sweep.dir=sweep")
    assert said(run_train(*grid, "seed=range(4)")).startswith("seeds: 4 report; a verdict needs 8")
    assert said(run_train(*grid, "seed=range(4,8)")) == "seeds: 8 report"
