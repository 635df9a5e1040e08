"""The command that starts a run is stored and can reproduce it."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from normlab.results.provenance import VARIABLE, entry_point, remember_command, remembered_command


@pytest.mark.parametrize(
    ("file", "spec", "words"),
    [
        ("mytrain.py", None, ["python", "mytrain.py"]),
        ("sub/mytrain.py", None, ["python", "sub/mytrain.py"]),
        ("lab/run.py", "lab.run", ["python", "-m", "lab.run"]),
        ("lab/__main__.py", "lab.__main__", ["python", "-m", "lab"]),
        ("/opt/bin/normlab-train", None, ["normlab-train"]),
    ],
)
def test_entry_point_is_script_module_or_command(monkeypatch, file, spec, words):
    monkeypatch.setattr(sys, "argv", [file])
    found = SimpleNamespace(name=spec, origin=str(Path(file).absolute())) if spec else None
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=found))
    assert entry_point() == words


@pytest.mark.parametrize(
    ("arguments", "config_options"),
    [
        (["model=bn"], []),
        (
            ["-m", "--config-dir=drift", "--config-name", "short", "model=bn"],
            ["--config-name", "short", "--config-dir", "drift"],
        ),
        (["-cp", "conf", "seed=1", "-m"], ["--config-path", "conf"]),
        (["seed=1", "hydra.searchpath=[file://lab]", "hydra.run.dir=x"], ["hydra.searchpath=[file://lab]"]),
    ],
)
def test_command_keeps_config_options(monkeypatch, arguments, config_options):
    monkeypatch.setenv(VARIABLE, "[]")
    monkeypatch.setattr(sys, "argv", ["mytrain.py", *arguments])
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=None))
    remember_command()
    assert remembered_command() == ["python", "mytrain.py", *config_options]


def test_command_is_empty_if_not_stored(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert remembered_command() == []
