"""``train.py`` as a command: output, folders, terminal and Ctrl-C."""

import os
import pty
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.warm_python import WarmPython

from normlab.results.result import Result, Status

pytestmark = pytest.mark.slow

TRAIN = Path(__file__).parents[1] / "train.py"


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    """Start the command in this folder."""
    command = [sys.executable, str(TRAIN), *arguments]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # If the tests run in the background, Ctrl-C is ignored, which child processes inherit.
    return subprocess.Popen(command, cwd=folder, preexec_fn=reset_sigint_handler, **pipes)


def reset_sigint_handler() -> None:
    """Install Python's default Ctrl-C handler."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run(python: WarmPython, folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Run the command; return its exit code, stdout and stderr."""
    done = python.run([TRAIN, *arguments], folder)
    return done.returncode, done.stdout, done.stderr


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    """Return a run's curve, read by TensorBoard."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


@pytest.mark.thorough
def test_simultaneous_sweeps_use_separate_folders(tmp_path):
    sweeps = [start(tmp_path, "-m", "model=bn,nobn", "trainer.max_epochs=4") for _ in range(2)]
    for sweep in sweeps:
        out, err = sweep.communicate(timeout=120)
        assert sweep.returncode == 0, err
        assert err == "", "a bar or a warning in a pipe"
        assert "one seed supports no claim" in out
        assert "tensorboard --logdir outputs/" in out
    folders = list(tmp_path.glob("outputs/*/*-sweep*"))
    assert len(folders) == 2
    for folder in folders:
        assert len(pd.read_csv(folder / "summary.csv")) == len(pd.read_csv(folder / "table.csv")) == 2
        assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
        assert (folder / "curves.svg").exists()
        for arm in ("model=bn", "model=nobn"):
            check_run(folder / arm)


def check_run(folder: Path) -> None:
    """Check the files of a run with four epochs of five steps."""
    result = Result.read(folder)
    assert result is not None
    assert (result.status, result.steps, result.environment["versions"]["python"]) == (
        Status.FINISHED,
        20,
        sys.version.split()[0],
    )
    curve = pd.read_csv(folder / "curves.csv")
    losses = curve[(curve["split"] == "val") & (curve["metric"] == "loss")]
    points = scalars(folder, "val/loss")
    assert [step for step, _ in points] == losses["step"].tolist() == [5, 10, 15, 20]
    assert [value for _, value in points] == pytest.approx(losses["value"].tolist(), rel=1e-6)
    for tag in ("train/loss", "train/lr", "~val_activation/hidden1/after_std", "~test/loss"):
        assert scalars(folder, tag), tag


@pytest.mark.thorough
def test_terminal_shows_progress_bar_and_output_folder(tmp_path):
    control, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    command = [sys.executable, str(TRAIN), "trainer.max_epochs=300"]
    process = subprocess.Popen(command, cwd=tmp_path, stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    output = b""
    while True:
        try:
            part = os.read(control, 65536)
        except OSError:  # on Linux, reading a closed terminal raises an error
            break
        output += part
    os.close(control)
    assert process.wait(timeout=60) == 0
    assert b"300" in output
    assert b"epoch/s" in output
    assert output.decode().strip().splitlines()[-1].startswith("files: outputs/")


@pytest.mark.thorough
def test_ctrl_c_stops_a_sweep_and_keeps_results(warm_python, tmp_path):
    arguments = ["-m", "model=bn,nobn", "hydra.sweep.dir=sweep", "trainer.max_epochs=200000"]
    process = start(tmp_path, *arguments, "logger.flush_seconds=0")
    first = tmp_path / "sweep" / "model=bn"
    wait_for((first / "curves.csv").exists, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert err == ""
    assert "model=bn: stopped after" in out
    result = Result.read(first)
    assert result is not None
    assert result.status == Status.STOPPED
    recorded = pd.read_csv(first / "curves.csv").query("split == 'val'")["epoch"].max()
    assert result.epochs - recorded in (0, 1), "Ctrl-C may come between an epoch's training and its validation"
    assert (first / "checkpoints" / "best.pt").exists()
    assert (first / "checkpoints" / "last.pt").exists()
    runs = pd.read_csv(tmp_path / "sweep" / "summary.csv")
    assert runs["status"].tolist() == ["stopped", "stopped"], "also the run that had not begun"
    assert runs["epochs"].tolist() == [result.epochs, 0]
    code, _, err = run(warm_python, tmp_path, *arguments[:-1], "trainer.max_epochs=1")
    assert code == 1
    assert "sweep/model=bn holds a run of another configuration" in err


def wait_for(condition, process: subprocess.Popen) -> None:
    """Wait until a condition holds while a process runs, which may have to compile on a busy machine."""
    deadline = time.monotonic() + 180
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_repeated_command_trains_only_missing_runs(warm_python, tmp_path):
    arguments = ["-m", "model=bn,nobn", "trainer.max_epochs=2", "hydra.sweep.dir=sweep"]
    assert run(warm_python, tmp_path, *arguments)[0] == 0
    (tmp_path / "sweep" / "model=nobn" / "result.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("sweep/*/curves.csv")}
    code, out, _ = run(warm_python, tmp_path, *arguments)
    assert code == 0
    assert "model=bn is done already" in out
    assert "model=nobn is done already" not in out
    changed = {path.parent.name for path, at in before.items() if path.stat().st_mtime_ns != at}
    assert changed == {"model=nobn"}


def test_hydra_full_error_shows_traceback(warm_python, tmp_path):
    command = [sys.executable, str(TRAIN), "modl=bn"]
    environment = {**os.environ, "HYDRA_FULL_ERROR": "1"}
    full = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert full.returncode == 1
    assert "Traceback" in full.stderr
    code, out, err = run(warm_python, tmp_path, "modl=bn")
    assert (code, out, err) == (1, "", "error: modl: no such key; did you mean model?\n")
