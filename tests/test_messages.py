"""Configuration errors name the fault, its location and the remedy."""

from pathlib import Path

import pytest

SHORT = ["trainer.max_epochs=1", "logger=csv"]
NORM = "norm:\n  _target_: torch.nn.BatchNorm1d\n  _partial_: true\n  momentum: {}\nnorm2d: null\nweight: null\n"
LBFGS = "optimizer._target_=torch.optim.LBFGS"


@pytest.mark.parametrize("how", [["model=mine"], ["-m", "model=bn,mine"]], ids=str)
@pytest.mark.parametrize(
    ("text", "answer"),
    {
        "norm:\n  a: 1\n b: 2\n": "conf/model/mine.yaml, line 3: cannot be read as YAML: ",
        "norm: null\nnorm: null\n": "mine.yaml, line 2: cannot be read as YAML: found duplicate key norm",
        NORM.format("${optimizer.lrr}"): (
            "conf/model/mine.yaml, line 4: model.norm.momentum: ${optimizer.lrr} refers to a missing "
            "key, optimizer.lrr; did you mean ${optimizer.lr}?"
        ),
        NORM.format("${optimizer.lr"): "conf/model/mine.yaml, line 4: an interpolation is ${key}: ",
        NORM.format("${nope:1}"): "mine.yaml, line 4: model.norm.momentum: ${nope:1} cannot be resolved: ",
    }.items(),
)
def test_error_in_user_file_names_file_and_line(run_train, tmp_path, how, text, answer):
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "mine.yaml").write_text(text)
    outcome = run_train("--config-dir", "conf", *how, *SHORT)
    assert outcome.code == 1
    assert answer in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
    assert [path.name for path in Path().iterdir()] == ["conf"]


@pytest.mark.parametrize(
    ("word", "answer"),
    {
        "data.seed=${sed}": "data.seed: ${sed} refers to a missing key, sed; did you mean ${seed}",
        "data.seed=${hydra.job.num}": "error: data.seed: ${hydra.job.num} refers to a missing key, "
        "hydra.job.num; outside hydra.…, write Hydra's values as ${hydra:job.num}",
        "data.target_column=median value ($)": ("""is quoted twice: 'data.target_column="median value ($)"'"""),
        "callbacks.extra={x:1}": "callbacks.extra: its keys are fixed; to add one write +callbacks.extra=…",
        LBFGS: "optimizer._target_=torch.optim.LBFGS needs a closure, which a population lacks; use module="
        "lightning",
        "+optimizer.momentun=0.9": "remove the others: '~optimizer.momentun'",
        "optimizer.lr=null": "optimizer.lr must be a number, got None",
    }.items(),
)
def test_faulty_override_gives_the_remedy(run_train, word, answer):
    outcome = run_train(word, *SHORT)
    assert outcome.code == 1
    assert answer in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1


def test_suggested_quoting_works(run_train):
    rows = "\n".join(f"{i},{i % 7}.5" for i in range(30))
    Path("t.csv").write_text(f'x,"median value ($)"\n{rows}\n')
    table = ["data=csv", "data.path=t.csv", "data.train=20", "data.val=5", "data.test=5", "data.batch_size=10"]
    outcome = run_train(*table, 'data.target_column="median value ($)"', *SHORT)
    assert outcome.code == 0, outcome.err


LINEAR = """
import torch


class Needy(torch.optim.SGD):
    def __init__(self, params, lr):
        super().__init__(params, lr)
"""


@pytest.mark.parametrize(("target", "code"), [("torch.optim.Adam", 0), ("needy.Needy", 1)])
def test_lr_is_required_if_optimizer_has_no_default(run_train, tmp_path, monkeypatch, target, code):
    monkeypatch.syspath_prepend(tmp_path)
    Path("needy.py").write_text(LINEAR)
    Path("conf/optimizer").mkdir(parents=True)
    Path("conf/optimizer/mine.yaml").write_text(f"_target_: {target}\n_partial_: true\n")
    outcome = run_train("--config-dir", "conf", "optimizer=mine", *SHORT)
    assert outcome.code == code, outcome.err
    if code:
        assert "optimizer.lr is missing, but needy.Needy needs it; write +optimizer.lr=0.01" in outcome.err
        assert run_train("--config-dir", "conf", "optimizer=mine", "+optimizer.lr=0.01", *SHORT).code == 0
