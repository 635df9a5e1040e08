"""Few file descriptors, thousands of open ones, a clock that goes backwards, files that appear late."""

import os
import resource
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from run_files import require_same_sweep, run_folders

from normlab.execution.state import DRIVER, SweepState
from normlab.report import finalize_sweep
from normlab.results.sweep import read_sweep
from normlab.status import main as status

pytestmark = pytest.mark.slow
SWEEP = ["-m", "trainer.max_epochs=2", "net.hidden=[8]", "logger.flush_seconds=0", "hydra.sweep.dir=sweep"]
FEW, MANY = 128, 5000


@contextmanager
def descriptor_limit(limit: int) -> Iterator[None]:
    """Context manager that sets the limit of open file descriptors; skips the test where it may not be raised."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard not in (-1, resource.RLIM_INFINITY) and limit > hard:
        pytest.skip(f"only {hard} file descriptors may be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_descriptors() -> int:
    """Return the number of open file descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


def test_more_runs_than_file_descriptors(run_train):
    with descriptor_limit(FEW):
        outcome = run_train(*SWEEP, f"seed=range({FEW + 32})", "hydra.launcher.chunk=1000")
    assert (outcome.code, outcome.err) == (0, "")
    assert f"{FEW + 32} runs in 1 population" in outcome.out
    assert len(run_folders(Path("sweep"))) == FEW + 32


@pytest.mark.thorough
def test_thousands_of_open_descriptors(run_train):
    null = os.open(os.devnull, os.O_RDONLY)
    with descriptor_limit(MANY + 1000):
        opened = [os.dup(null) for _ in range(MANY)]
        try:
            outcome = run_train(*SWEEP, "model=bn,nobn", "hydra.launcher.n_jobs=2")
        finally:
            for descriptor in (*opened, null):
                os.close(descriptor)
    assert (outcome.code, outcome.err) == (0, "")
    assert run_folders(Path("sweep")) == ["model=bn", "model=nobn"]


@pytest.mark.thorough
@pytest.mark.parametrize("module", ["population", "lightning"])
def test_runs_one_after_the_other_close_their_files(run_train, module):
    words = [*SWEEP, "hydra.launcher.chunk=1", f"module={module}"]
    assert run_train(*words, "seed=0,1").code == 0
    before = open_descriptors()
    assert run_train(*words, "seed=range(4)").code == 0
    assert open_descriptors() <= before + 1


@pytest.mark.thorough
def test_clock_that_goes_backwards(run_train, monkeypatch, capsys):
    words = [*SWEEP, "model=bn,nobn", "seed=range(2)"]
    assert run_train(*words).code == 0
    Path("sweep").rename("undisturbed")
    real, calls = time.time, []

    def set_back() -> float:
        calls.append(None)
        return real() - 3600 * (len(calls) // 20)

    monkeypatch.setattr(time, "time", set_back)
    outcome = run_train(*words)
    assert (outcome.code, outcome.err) == (0, "")
    assert len(calls) > 100, "the clock went back several times"
    require_same_sweep(Path("sweep"), Path("undisturbed"))
    assert "is done already" in run_train(*words).out
    status(["sweep"])
    assert "done              4" in capsys.readouterr().out


def test_second_command_over_the_same_folder(run_train):
    words = [*SWEEP, "model=bn,nobn"]
    assert run_train(*words).code == 0
    before = {path: path.read_bytes() for path in Path("sweep").glob("model=*/*") if path.is_file()}
    with SweepState(Path("sweep")).locked(DRIVER, pytest.fail):
        outcome = run_train(*words, "seed=0,1")
    assert outcome.code == 1
    assert f"sweep: process {os.getpid()} on " in outcome.err
    assert {path: path.read_bytes() for path in Path("sweep").glob("model=*/*") if path.is_file()} == before


def test_files_that_another_node_sees_late(run_train, capsys):
    assert run_train(*SWEEP, "model=bn,nobn").code == 0
    Path("late").mkdir()
    run, late = Path("sweep/model=bn"), Path("late/model=bn")
    shutil.copytree("sweep/model=nobn", "late/model=nobn")
    late.mkdir()
    assert [record.folder.name for record in read_sweep(Path("late"))] == ["model=nobn"]
    (late / ".hydra").mkdir()
    for name in ("config.yaml", "overrides.yaml", "hydra.yaml"):
        shutil.copy(run / ".hydra" / name, late / ".hydra")
        (record, _) = read_sweep(Path("late"))
        assert record.result.status == "failed"
        assert "it was killed or is still running" in record.result.error
    shutil.copy(run / "result.json", late)
    assert finalize_sweep(Path("late")) is not None
    assert "late/model=bn/curves.csv is incomplete: it ends before epoch 1 of 2" in capsys.readouterr().out
    shutil.copytree(run, late, dirs_exist_ok=True)
    assert finalize_sweep(Path("late")) is not None
    assert "incomplete" not in capsys.readouterr().out
    require_same_sweep(Path("late"), Path("sweep"))
