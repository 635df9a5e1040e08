"""``loss=`` as a user types it: files of runs, populations, old records."""

import json

import pytest

from normlab.results.result import Result

SHORT = (
    "trainer.max_epochs=2",
    "logger=csv",
    "data.train=60",
    "data.val=20",
    "data.test=20",
    "data.batch_size=30",
)
PLAIN = """
def trimmed(outputs, targets, most):
    errors = (outputs - targets).abs()
    return errors.mean() if errors.detach().mean().item() < most else errors.square().mean()
"""


def results_of(folder) -> dict[str, Result]:
    return {path.parent.name: Result.read(path.parent) for path in folder.glob("**/result.json")}


@pytest.mark.parametrize(
    "words",
    [
        ["loss=huber", "loss.delta=2"],
        ["loss=cross_entropy", "loss.label_smoothing=0.1", "data=digits"],
        ["loss._target_=torch.nn.SmoothL1Loss", "loss.beta=2"],
        ["loss._target_=torch.nn.functional.l1_loss"],
        ["loss._target_=torch.nn.CrossEntropyLoss", "loss.weight=[1,2,1,1,1,1,1,1,1,1]", "data=digits"],
    ],
)
def test_run_trains_with_the_typed_loss(run_train, tmp_path, words):
    outcome = run_train(*words, *SHORT, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    result = Result.read(tmp_path / "run")
    assert set(result.last.metrics) >= {"train/loss", "val/loss"}
    assert result.chance is not None


def test_mse_equals_the_tasks_loss(run_train, tmp_path):
    for name in ("default", "mse"):
        assert run_train(f"loss={name}", *SHORT, "trainer.precision=64-true", f"hydra.run.dir={name}").code == 0
    ours, theirs = (Result.read(tmp_path / name) for name in ("default", "mse"))
    assert ours.last.metrics == pytest.approx(theirs.last.metrics, rel=1e-12)
    assert ours.chance == pytest.approx(theirs.chance, rel=1e-6)


def test_loss_that_cannot_be_vmapped_trains_members_in_turn(run_train, tmp_path, monkeypatch):
    (tmp_path / "mylosses.py").write_text(PLAIN)
    monkeypatch.syspath_prepend(tmp_path)
    words = ["loss._target_=mylosses.trimmed", "loss.most=5", *SHORT, "trainer.precision=64-true"]
    outcome = run_train("-m", *words, "seed=0,1", "hydra.sweep.dir=sweep")
    assert outcome.code == 0, outcome.err
    assert "loss: mylosses.trimmed is evaluated for one member after another: " in outcome.out + outcome.err
    assert "2 runs in 1 population" in outcome.out + outcome.err
    assert run_train(*words, "seed=1", "hydra.run.dir=alone").code == 0
    together = results_of(tmp_path / "sweep")["seed=1"]
    assert together.last.metrics == pytest.approx(Result.read(tmp_path / "alone").last.metrics, rel=1e-9)


@pytest.mark.parametrize(("name", "before"), [("default", None), ("squared_error", "squared_error")])
def test_old_record_equals_the_new_configuration(run_train, tmp_path, name, before):
    assert run_train(f"loss={name}", *SHORT, "hydra.run.dir=run").code == 0
    path = tmp_path / "run" / "result.json"
    record = json.loads(path.read_text())
    new = Result.read(tmp_path / "run")
    record["config"]["loss"], record["overrides"] = before, []
    del record["choices"]["loss"]
    path.write_text(json.dumps(record))
    old = Result.read(tmp_path / "run")
    assert (old.config, old.choices) == (new.config, new.choices)
    again = run_train(f"loss={name}", *SHORT, "hydra.run.dir=run")
    assert again.code == 0
    assert "is done already" in again.out + again.err
