"""Overrides of keys that only some arms of a sweep have."""

from pathlib import Path

import pandas as pd
import pytest

from normlab.results.result import Result

SHORT = ["trainer.max_epochs=1", "logger=csv", "hydra.sweep.dir=sweep"]


def run_names() -> list[str]:
    """Return the folder names of the sweep's runs."""
    return sorted(path.parent.name for path in Path("sweep").glob("*/result.json"))


def test_override_is_dropped_from_arms_without_its_key(run_train):
    outcome = run_train("-m", "model=bn,nobn,dyt", "model.norm.momentum=0.05,0.1", *SHORT)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("model.norm.momentum does not apply to model=nobn, model=dyt\n")
    swept = ["model=bn,model.norm.momentum=0.05", "model=bn,model.norm.momentum=0.1"]
    assert run_names() == [*swept, "model=dyt", "model=nobn"]
    plain = Result.read(Path("sweep/model=nobn"))
    assert plain.overrides == ["model=nobn", "trainer.max_epochs=1", "logger=csv"]
    momenta = [Result.read(Path(f"sweep/{name}")).config["model"]["norm"]["momentum"] for name in swept]
    assert momenta == [0.05, 0.1]
    assert len(pd.read_csv("sweep/summary.csv")) == 4


def test_key_missing_only_from_the_default_is_set(run_train):
    outcome = run_train("-m", "model=gn,ws_gn", "model.norm.num_groups=8", *SHORT)
    assert outcome.code == 0, outcome.err
    assert "does not apply" not in outcome.out
    groups = [Result.read(Path(f"sweep/{name}")).config["model"]["norm"]["num_groups"] for name in run_names()]
    assert groups == [8, 8]


@pytest.mark.parametrize(
    ("words", "line", "trained"),
    [
        (["model=gn,nobn", "model.norm.num_groups=8"], "model.norm.num_groups does not apply to model=nobn", 2),
        (["model=bn,nobn", "~model.norm.momentum"], "model.norm.momentum does not apply to model=nobn", 2),
        (["model=bn,nobn", "+model.norm.affine=false"], "model.norm.affine does not apply to model=nobn", 2),
        (
            ["optimizer=adam,sgd", "optimizer.momentum=0.5,0.9"],
            "optimizer.momentum does not apply to optimizer=adam",
            3,
        ),
        (
            ["model=bn", "callbacks=default,early_stopping", "callbacks.early_stopping.patience=3"],
            "callbacks.early_stopping.patience does not apply to callbacks=default",
            2,
        ),
    ],
)
def test_inapplicable_override_is_logged(run_train, words, line, trained):
    outcome = run_train("-m", *words, *SHORT)
    assert outcome.code == 0, outcome.err
    assert line in outcome.out.splitlines()
    assert len(run_names()) == trained


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (
            ["model=bn,nobn", "model.norm.momentun=0.1"],
            "model.norm.momentun: no such key; did you mean model.norm.momentum?",
        ),
        (["model=gn,ws_gn", "model.norm.nun_groups=8"], "no such key; did you mean model.norm.num_groups?"),
        (["model=ln,nobn", "model.norm.num_groups=8"], "no such key; model=gn, model=ws_gn have it"),
        (["modl=bn"], "modl: no such key; did you mean model?"),
        (["experiment=overfit", "modl=bn"], "modl: no such key; did you mean model?"),
    ],
)
def test_key_missing_from_all_arms_raises_with_hint(run_train, words, answer):
    outcome = run_train("-m", *words, *SHORT)
    assert outcome.code == 1
    assert answer in outcome.err
    assert not Path("sweep").exists()


def test_single_run_sets_key_of_its_model(run_train):
    outcome = run_train("experiment=overfit", "model=gn", "model.norm.num_groups=8", *SHORT[:-1])
    assert outcome.code == 0, outcome.err
