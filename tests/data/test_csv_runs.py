from pathlib import Path

import pandas as pd
import pytest
import torch


@pytest.fixture
def hundred(tmp_path: Path) -> Path:
    """Path of a CSV file with a hundred samples and a learnable target."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100, 2, generator=generator).double().numpy()
    frame = pd.DataFrame({"a": x[:, 0], "b": 1000 * x[:, 1], "y": 50 + 10 * x[:, 0]})
    frame["kind"] = ["low" if value > 0 else "high" for value in x[:, 0]]
    (tmp_path / "work").mkdir()
    path = tmp_path / "hundred.csv"
    frame.to_csv(path, index=False)
    return path


@pytest.fixture
def run_csv(run_train, hundred, monkeypatch):
    """Return a function that trains with data=csv from an empty folder next to the file."""
    monkeypatch.chdir(hundred.parent / "work")
    return lambda *arguments: run_train(*arguments, "data=csv", "trainer.max_epochs=1")


def drop_columns(path: Path, *columns: str) -> None:
    pd.read_csv(path).drop(columns=list(columns)).to_csv(path, index=False)


def test_regression_loss_is_in_units_of_target_variance(run_csv, hundred):
    drop_columns(hundred, "kind")
    outcome = run_csv("data.path=../hundred.csv", "data.target_column=y", "data.standardize_target=true")

    assert outcome.code == 0, outcome.err
    assert "data: target y taken as a regression target" in outcome.out + outcome.err
    (curves,) = Path().rglob("curves.csv")
    curve = pd.read_csv(curves)
    assert 0.01 < curve[curve["metric"] == "loss"]["value"].iloc[0] < 3


def test_float64_training_keeps_all_digits(run_csv, hundred):
    frame = pd.read_csv(hundred).drop(columns="kind")
    losses = []
    for offset in (0, 2**40):
        frame.assign(a=frame.index + offset).to_csv(hundred, index=False)
        path = f"data.path={hundred}"
        outcome = run_csv(path, "data.target_column=y", "trainer.precision=64-true", f"hydra.run.dir={offset}")
        assert outcome.code == 0, outcome.err
        curve = pd.read_csv(f"{offset}/curves.csv")
        losses.append(curve[curve["metric"] == "loss"]["value"].tolist())

    assert losses[0] == losses[1]


def test_text_target_trains_with_job_chdir(run_csv, hundred):
    outcome = run_csv("data.path=../hundred.csv", "data.target_column=kind", "hydra.job.chdir=true")

    assert outcome.code == 0, outcome.err
    assert "data: target kind taken as 2 classes (high, low)\n" in outcome.out + outcome.err
    (curves,) = Path().rglob("curves.csv")
    assert "acc" in set(pd.read_csv(curves)["metric"])


def test_sweep_over_targets_has_one_run_per_target(run_csv, hundred):
    outcome = run_csv("-m", f"data.path={hundred}", "data.target_column=y,a", "data.task=regression", "model=nobn")
    assert outcome.code == 0, outcome.err
    assert "data: 1 column one-hot encoded (kind: 2 classes)\n" in outcome.out + outcome.err
    assert len(list(Path().rglob("result.json"))) == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    {
        "": "data.path must be a file, as in data.path=people.csv, got null",
        "data.path=../hundred.csv": "data.target_column must be a column of hundred.csv (a, b, y, kind), got null",
        "data.path=../hundert.csv data.target_column=y": "data.path=../hundert.csv: there is no file /",
        "data.path=../hundred.csv data.target_column=Y": "hundred.csv has no such column; did you mean ",
        "data.path=../hundred.csv data.target_column=kind data.train=61": "at most 100 samples, got 61 + 20 + 20",
        "data.path=../hundred.csv data.target_column=kind data.task=regression": "row 2, column kind: high is not",
        "data.path=../hundred.csv data.target_column=kind data.standardize_target=true": (
            "data.standardize_target must be false for classes, got true"
        ),
        "data.path=../hundred.csv data.target_column=kind data.task=words": "data.task must be auto, regression",
        "data.path=../hundred.csv data.target=kind": "data.target: no such key; data=fitness has it",
    }.items(),
)
def test_error_is_one_line_and_writes_no_files(run_csv, overrides, message):
    outcome = run_csv(*overrides.split())

    (line,) = outcome.err.strip().splitlines()
    assert outcome.code == 1
    assert line.startswith("error: ")
    assert message in line
    assert not outcome.out
    assert not list(Path().iterdir())
