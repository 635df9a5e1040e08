"""The fixtures that all tests share."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

CASES = """
import pytest
few = pytest.mark.parametrize("case", range(5))
many = pytest.mark.parametrize("case", range(40))

@many
def test_fast(case): ...

@many
@pytest.mark.sampled(3)
def test_sampled(case): ...

@many
@pytest.mark.slow
def test_slow(case): ...

@few
@pytest.mark.slow
def test_few(case): ...

@few
@pytest.mark.thorough
def test_thorough(case): ...
"""
SLEEP = "import time; time.sleep(600)"
CODE = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEP!r}])"
LEFT: list[subprocess.Popen] = []


@pytest.mark.skipif(not list(Path("/proc/self/task").glob("*/children")), reason="needs /proc")
class TestNoProcessLeft:
    def test_a_process_is_left(self):
        LEFT.append(subprocess.Popen([sys.executable, "-c", CODE]))

    def test_it_is_gone(self):
        if not LEFT:
            pytest.skip("the test before ran in another process")
        assert LEFT.pop().wait(30) == -9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chosen", "counts"),
    [
        ("not slow", {"fast": 40, "sampled": 3}),
        ("not thorough", {"fast": 40, "sampled": 3, "slow": 4, "few": 1}),
        ("", {"fast": 40, "sampled": 40, "slow": 40, "few": 5, "thorough": 5}),
    ],
)
def test_large_parametrized_tests_are_sampled(tmp_path, chosen, counts):
    (tmp_path / "conftest.py").write_text("from tests.conftest import pytest_collection_modifyitems")
    (tmp_path / "test_cases.py").write_text(CASES)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow\n  thorough\n  sampled(n)\n")
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "-m", chosen]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    names = [line.partition("::test_")[2].partition("[")[0] for line in done.stdout.splitlines() if "::" in line]
    assert {name: names.count(name) for name in names} == counts


STATE = """
import atexit, json, os, signal, sys, threading
atexit.register(print, "exit", flush=True)
normlab = [name for name in sys.modules if name.partition(".")[0] in ("normlab", "hydra_plugins")]
handlers = [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)]
print(json.dumps([__name__, __file__, sys.argv, os.getcwd(), sys.path, dict(os.environ), handlers, normlab]))
print(threading.active_count(), sys.stdin.read(), os.isatty(1), os.getsid(0) == os.getpid())
sys.exit("an error")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["folder/state.py", "a=1"], ["-m", "folder.state", "b"]], ids=["script", "module"]
)
def test_warm_python_runs_as_a_new_one(warm_python, tmp_path, words):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/state.py").write_text(STATE)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path / "more"), "LC_ALL": "C.UTF-8"}
    pipes = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "start_new_session": True}
    # In the background Ctrl-C is ignored, which a new process inherits.
    ctrl_c = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    command = [sys.executable, *words]
    new = subprocess.run(command, cwd=tmp_path, env=environment, preexec_fn=ctrl_c, check=False, **pipes)
    warm = warm_python.run(words, tmp_path, environment)
    assert (warm.returncode, warm.stderr) == (new.returncode, new.stderr) == (1, "an error\n")
    states = [json.loads(done.stdout.splitlines()[0]) for done in (warm, new)]
    assert states[0] == states[1]
    assert warm.stdout.splitlines()[1:] == new.stdout.splitlines()[1:] == ["1  False True", "exit"]


@pytest.mark.slow
def test_signals_reach_a_warm_python(warm_python, tmp_path):
    (tmp_path / "sleep.py").write_text("import pathlib, time; pathlib.Path('ready').touch(); time.sleep(600)")
    for number in (signal.SIGKILL, signal.SIGTERM):
        process = warm_python.start(["sleep.py"], tmp_path)
        while not (tmp_path / "ready").exists():
            assert process.poll() is None
            time.sleep(0.01)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        process.send_signal(number)
        assert process.wait(60) == -number
        (tmp_path / "ready").unlink()
