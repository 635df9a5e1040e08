"""The command ``normlab`` as typed: subcommands, options of a project, completion, and its errors."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from normlab import __main__ as command
from normlab.results.result import Result

SHORT = ["trainer.max_epochs=2", "logger=csv"]
NORM = """\
norm:
  _target_: mine.Plain
  _partial_: true
norm2d: ${model.norm}
weight: null
"""
MODULE = """\
from torch import nn


class Plain(nn.Identity):
    def __init__(self, num_features):
        super().__init__()
"""


@pytest.fixture
def normlab(run_script: Callable, monkeypatch, capsys) -> Callable:
    """Return a function that runs ``normlab`` with arguments in this process, in an empty folder."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    yield lambda *arguments: run_script("src/normlab/__main__.py", *arguments)
    sys.modules.pop("mine", None)


@pytest.fixture
def project(tmp_path) -> Path:
    """Write an option and a module of a project into the working directory."""
    for name, text in (("conf/model/mine.yaml", NORM), ("mine.py", MODULE)):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_usage_lists_commands(normlab):
    outcomes = [normlab(), normlab("--help")]
    assert outcomes[0] == outcomes[1]
    assert outcomes[0].code == 0
    assert all(f"  normlab {name} " in outcomes[0].out for name in command.COMMANDS)
    assert normlab("--version").out == "normlab 0.1.0\n"


def test_unknown_command_is_an_error(normlab):
    outcome = normlab("trian")
    assert outcome.code == 1
    assert outcome.err == (
        "error: trian: no such command; did you mean train? There are train, report, status, eval, claims, new\n"
    )


def test_train_equals_script(normlab, run_train):
    folders = ["hydra.sweep.dir=command", "hydra.sweep.dir=script"]
    assert normlab("train", "-m", "model=bn,nobn", *SHORT, folders[0]).code == 0
    assert run_train("-m", "model=bn,nobn", *SHORT, folders[1]).code == 0
    for name in ("model=bn", "model=nobn"):
        results = [Result.read(Path(folder, name)) for folder in ("command", "script")]
        assert results[0].config == results[1].config
        assert results[0].last == results[1].last
        assert results[0].command == ["normlab", "train"]
    page = Path("command/report/index.html").read_text()
    assert "normlab train -m model=bn,nobn" in page


def test_other_commands_read_the_sweep(normlab):
    assert normlab("train", "-m", "model=bn,nobn", *SHORT, "hydra.sweep.dir=sweep").code == 0
    assert json.loads(normlab("status", "sweep", "--json").out)["runs"]["finished"] == 2
    assert normlab("report", "sweep", "--out", "page").out == "page/index.html\n"
    assert normlab("eval", "run=sweep/model=bn").code == 0
    assert Path("sweep/model=bn/eval/eval.json").exists()


def test_options_of_project_join(normlab, project):
    outcome = normlab("train", "-m", "model=nobn,mine", *SHORT, "hydra.sweep.dir=sweep")
    assert (outcome.code, outcome.err) == (0, "")
    plain, mine = (Result.read(Path("sweep", f"model={name}")) for name in ("nobn", "mine"))
    assert mine.config["model"]["norm"]["_target_"] == "mine.Plain"
    assert mine.last == plain.last
    assert normlab("eval", "run=sweep/model=nobn", "model=mine").code == 0
    assert "model=mine" not in normlab("train", "model=min", *SHORT).out


def test_misspelled_option_of_project(normlab, project):
    outcome = normlab("train", "model=mien", *SHORT)
    assert outcome.err.startswith("error: model=mien: no such option; did you mean mine? ")


@pytest.mark.parametrize("given", [[], ["--config-dir", "conf"]])
def test_option_with_a_taken_name_is_an_error(normlab, project, given):
    taken = Path("conf/model/bn.yaml")
    taken.write_text(NORM)
    outcome = normlab("train", *given, "model=mine", *SHORT)
    assert outcome.err == (
        "error: conf/model/bn.yaml: normlab has an option of this name, which Hydra would use instead; rename the "
        "file, or start in another folder\n"
    )
    assert not Path("outputs").exists()


def test_help_and_errors_name_the_command(normlab):
    assert "normlab train -m model=bn,nobn      a sweep" in normlab("train", "--help").out
    assert normlab("train", "model=bn,nobn").err == (
        "error: model=bn,nobn: several values make a sweep, which needs -m: normlab train -m model=bn,nobn\n"
    )
    assert "  normlab eval run=outputs/mine/model=bn,seed=0\n" in normlab("eval", "--help").out


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("normlab st", "train report status eval claims new"),
        ("normlab train model=b", "model=bn model=bn_formula model=bn_torch model=brn"),
    ],
)
def test_completion(normlab, monkeypatch, line, expected):
    monkeypatch.setenv("COMP_LINE", line)
    assert normlab("-sc", "query=bash").out.strip() == expected


def test_claims_of_package_and_project_into_closed_pipe(project):
    line = f"{sys.executable} -m normlab claims --list --with model=mine | head -n 1"
    done = subprocess.run(line, shell=True, cwd=project, capture_output=True, text=True, check=True)
    assert done.stdout.split()[1:3] == ["not", "run,"]
    assert done.stderr == ""
