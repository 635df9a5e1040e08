"""Tables and files of an evaluation."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

BN = [f"m/model=bn,seed={seed}" for seed in (0, 1, 10)]
NOBN = "m/model=nobn,seed=0"


def test_table_has_row_per_run_and_means_per_configuration(trained, evaluated):
    trained(*BN, NOBN)
    content, out = evaluated("run=m/*")
    frame = pd.read_csv("m/eval/eval.csv")
    names = [Path(folder).name for folder in (*BN, NOBN)]
    assert frame["run"].tolist() == names
    assert [line.split()[0] for line in out.splitlines()[1:5]] == names
    losses = frame["test/loss"][:3].to_numpy()
    bn, nobn = content["configurations"]
    assert (bn["configuration"], bn["runs"], nobn["runs"]) == ("model=bn", 3, 1)
    assert bn["mean"]["test/loss"] == pytest.approx(losses.mean())
    assert bn["standard_error"]["test/loss"] == pytest.approx(np.std(losses, ddof=1) / 3**0.5)
    assert nobn["standard_error"]["test/loss"] == "nan"
    assert f"{losses.mean():.0f} ± {np.std(losses, ddof=1) / 3**0.5:.0f}" in out
    assert "mean ± standard error over the runs of a configuration" in out


def test_repeated_runs_count_once(trained, evaluated):
    trained(*BN[:2])
    shutil.copytree(BN[0], "m/again")
    content, _ = evaluated("run=m/*")
    assert len(content["runs"]) == 3
    assert [row["runs"] for row in content["configurations"]] == [2]


def test_single_run_has_no_means(trained, evaluated):
    trained(BN[0])
    content, out = evaluated(f"run={BN[0]}")
    assert "±" not in out
    assert out.splitlines()[-1] == f"files: {BN[0]}/eval: eval.csv, eval.json"
    assert "test/mse" not in out
    assert "test/mse" in content["runs"][0]["metrics"]


def test_nothing_is_overwritten_or_trained(trained, evaluated, digests, monkeypatch):
    trained(BN[0])
    before = digests()
    monkeypatch.setattr("pytorch_lightning.Trainer.fit", None)
    monkeypatch.setattr("torch.Tensor.backward", None)
    for words in ([], [], ["statistics=batch"], ["statistics=batch", "checkpoint=last"]):
        evaluated(f"run={BN[0]}", *words)
    after = digests()
    assert {path: after[path] for path in before} == before
    new = {path.parent.name for path in after.keys() - before.keys()}
    assert new == {"eval", "eval-2", "eval-statistics=batch", "eval-statistics=batch,checkpoint=last"}


def test_results_of_an_evaluation_are_no_runs_of_the_sweep(run_train, trained, evaluated):
    words = ["-m", "seed=0,1", "trainer.max_epochs=1", "logger=csv", "hydra.sweep.dir=sweep"]
    assert run_train(*words).code == 0
    evaluated("run=sweep/*")
    evaluated("run=sweep/seed=0")
    assert run_train(*words).code == 0
    assert pd.read_csv("sweep/summary.csv")["folder"].tolist() == ["seed=0", "seed=1"]
