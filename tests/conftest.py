"""Fixtures shared by all tests."""

import contextlib
import logging
import os
import runpy
import signal
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from tests.warm_python import WarmPython

ROOT = Path(__file__).parent.parent
# Test processes share the cores, so idle OpenMP threads must not spin; see `normlab.cli.run_cli`.
os.environ.setdefault("GOMP_SPINCOUNT", "0")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave most cases of large parametrized tests to ``make test-all``: mark them as thorough.

    A slow test keeps a tenth of its cases, and one with the marker ``sampled(n)`` keeps n. The choice is the same
    on all machines. Thorough tests are slow.
    """
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for group in cases.values():
        sampled, slow = group[0].get_closest_marker("sampled"), group[0].get_closest_marker("slow")
        kept = sampled.args[0] if sampled else max(1, len(group) // 10) if slow else len(group)
        for item in sorted(group, key=lambda each: zlib.crc32(each.nodeid.encode()))[kept:]:
            item.add_marker("thorough")
    for item in items:
        if item.get_closest_marker("thorough"):
            item.add_marker("slow")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Run torch on one thread, which is fastest for nets of this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def descendants(of: int) -> set[int]:
    """Return the process ids of all descendants of a process; empty on systems without ``/proc``."""
    found: set[int] = set()
    waiting = [of]
    while waiting:
        tasks = Path(f"/proc/{waiting.pop()}/task")
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a process or thread has just ended
            for path in tasks.glob("*/children"):
                own = set(map(int, path.read_text().split()))
                waiting += own - found
                found |= own
    return found


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    """Kill the processes that a test has started and left, such as a training if the test failed."""
    before = descendants(os.getpid())
    yield
    # Later tests need the tracker that multiprocessing starts once and warns of if it has died.
    tracker: Any = resource_tracker._resource_tracker
    for process in descendants(os.getpid()) - before - {tracker._pid}:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


@dataclass
class Outcome:
    """Exit code, stdout and stderr of a command."""

    code: int
    out: str
    err: str


@pytest.fixture
def run_script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path) -> Iterator:
    """Return a function that runs a script with arguments in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    # run_cli sets this variable; restoring it keeps it from subprocesses of later tests.
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    root, ctrl_c = logging.getLogger(), signal.getsignal(signal.SIGINT)
    handlers, level = root.handlers[:], root.level

    def run(script: str, *arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        code = 0
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
            # The interpreter prints the message of a SystemExit to stderr.
            print(end.code if isinstance(end.code, str) else "", file=sys.stderr)
        finally:
            GlobalHydra.instance().clear()
            HydraConfig.instance().cfg = None
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    yield run
    for handler in root.handlers:
        handler.close()
    root.handlers[:], root.level = handlers, level
    signal.signal(signal.SIGINT, ctrl_c)


@pytest.fixture
def run_train(run_script: Callable) -> Callable:
    """Return a function that runs ``train.py`` with arguments in this process, in an empty folder."""
    return partial(run_script, "train.py")


@pytest.fixture
def run_eval(run_script: Callable) -> Callable:
    """Return a function that runs ``eval.py`` with arguments in this process, in an empty folder."""
    return partial(run_script, "eval.py")


@pytest.fixture(scope="session")
def warm_python() -> Iterator[WarmPython]:
    """Return a server of Python processes that have imported torch."""
    with tempfile.TemporaryDirectory(prefix="warm-") as folder, WarmPython(Path(folder)) as server:
        yield server
