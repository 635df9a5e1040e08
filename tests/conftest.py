"""What all tests share."""

import logging
import os
import runpy
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

ROOT = Path(__file__).parent.parent
# The tests run in several processes, which share the cores; see `normlab.cli.run_cli`. Children inherit it.
os.environ.setdefault("GOMP_SPINCOUNT", "0")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compute on one thread: for nets of this size a second one only costs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class Outcome:
    """What a command line left: its exit code, and what it said."""

    code: int
    out: str
    err: str


@pytest.fixture
def run_train(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path) -> Iterator:
    """Return a function that runs ``train.py`` in this process, from an empty folder, as the shell would."""
    monkeypatch.chdir(tmp_path)
    # The command line sets it for itself; a process that a later test starts must not inherit it.
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        code = 0
        try:
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
            # What the interpreter does with the message of an exit.
            print(end.code if isinstance(end.code, str) else "", file=sys.stderr)
        finally:
            GlobalHydra.instance().clear()
            HydraConfig.instance().cfg = None
        said = capsys.readouterr()
        return Outcome(code, said.out, said.err)

    yield run
    for handler in root.handlers:
        handler.close()
    root.handlers[:], root.level = handlers, level
