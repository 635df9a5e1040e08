"""A disk that is full or becomes read-only during a sweep: loud, nothing damaged, and the same command goes on."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from run_files import require_same_files, require_same_sweep, run_folders

from normlab.results.events import BatchWriter
from normlab.results.result import Result, Status
from normlab.results.sweep import read_sweep
from normlab.training import packed_runs, run_series
from normlab.training.run_folders import RunFolders

pytestmark = pytest.mark.slow
SWEEP = ["-m", "model=bn,nobn", "trainer.max_epochs=3", "net.hidden=[8]", "logger.flush_seconds=0"]
SIZES = {"population": ["seed=range(3)"], "alone": [], "lightning": ["module=lightning"]}
MEGABYTES = 16
MOMENTS: dict[str, tuple[Any, str, int]] = {
    "events": (BatchWriter, "flush", 8),
    "curves": (run_series, "append_curves", 2),
    "checkpoint": (RunFolders, "save", 1),
    "result": (Result, "write", 1),
    "packed records": (packed_runs, "write_pack", 1),
}
"""What is written when the disk fails: a function, its name, and the number of calls before."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the folders of sweeps that were trained without a fault, by size; they are trained when needed."""
    return {size: tmp_path_factory.mktemp("undisturbed") / size for size in SIZES}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Return the folder of a small file system."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("a small disk needs the right to mount one")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> None:
    """Write until the disk is full."""
    with (disk / "ballast").open("wb", buffering=0) as file:
        for size in (2**16, 2**12):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


def free(disk: Path) -> None:
    """Remove what :func:`fill` wrote."""
    (disk / "ballast").unlink()


def make_read_only(disk: Path) -> None:
    """Mount the disk once more over itself, read-only, so that root cannot write to it either."""
    subprocess.run(["mount", "--bind", str(disk), str(disk)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(disk)], check=True)


def make_writable(disk: Path) -> None:
    """Unmount what :func:`make_read_only` mounted."""
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


FULL, READ_ONLY = "No space left on device", "Read-only file system"
FAULTS = {FULL: (fill, free), READ_ONLY: (make_read_only, make_writable)}


@pytest.fixture
def fail_at(monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Return a function that lets a fault occur at a moment of the training, once."""

    def fail_at(moment: str, fault: Callable[[], None]) -> None:
        owner, name, before = MOMENTS[moment]
        original, calls = getattr(owner, name), []

        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            calls.append(None)
            if len(calls) == before + 1:
                fault()
            return original(*arguments, **keywords)

        monkeypatch.setattr(owner, name, wrapped)

    return fail_at


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's writer has one
@pytest.mark.parametrize(
    ("moment", "size", "message"),
    [
        ("events", "population", FULL),
        ("curves", "population", FULL),
        ("checkpoint", "population", FULL),
        ("result", "population", FULL),
        ("checkpoint", "alone", FULL),
        ("result", "lightning", FULL),
        ("curves", "population", READ_ONLY),
    ],
)
def test_sweep_on_a_disk_that_fails(disk, run_train, fail_at, undisturbed, moment, size, message):
    fault, repair = FAULTS[message]
    words, expected = [*SWEEP, *SIZES[size]], undisturbed[size]
    if not expected.exists():
        assert run_train(*words, f"hydra.sweep.dir={expected}").code == 0
    fail_at(moment, lambda: fault(disk))
    outcome = run_train(*words, f"hydra.sweep.dir={disk}/sweep")
    assert outcome.code == 1
    error = outcome.err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert size != "population" or f"{message}: '{disk}/sweep/model=" in error
    assert "could not be summarized: " in outcome.out
    for run in run_folders(disk / "sweep"):
        if Result.read(disk / "sweep" / run).status.done:
            require_same_files(disk / "sweep" / run, expected / run)
    assert [path for path in disk.rglob(".*") if path.is_file()] == [], "temporary files"
    repair(disk)
    outcome = run_train(*words, f"hydra.sweep.dir={disk}/sweep")
    assert (outcome.code, outcome.err) == (0, "")
    require_same_sweep(disk / "sweep", expected)


def test_packed_records_on_a_full_disk(disk, run_train, fail_at):
    words = [*SWEEP, "seed=range(3)", "records=packed", f"hydra.sweep.dir={disk}/sweep"]
    fail_at("packed records", lambda: fill(disk))
    outcome = run_train(*words)
    assert outcome.code == 1
    assert FULL in outcome.err.splitlines()[-1]
    first = [record.result for record in read_sweep(disk / "sweep")]
    assert [result.status for result in first if result.status.done] == [Status.FINISHED] * 3
    free(disk)
    outcome = run_train(*words)
    assert (outcome.code, outcome.err) == (0, "")
    records = read_sweep(disk / "sweep")
    assert [record.result.status for record in records] == [Status.FINISHED] * 6
    assert [path.suffix for path in sorted((disk / "sweep" / "records").iterdir())] == [".parquet", ".pt"] * 2


def test_folder_that_cannot_be_written_to_is_refused_before_anything_trains(disk, run_train):
    make_read_only(disk)
    outcome = run_train(*SWEEP, f"hydra.sweep.dir={disk}/sweep")
    make_writable(disk)
    assert outcome.code == 1
    assert outcome.err == f"error: cannot write to the output folder {disk}/sweep: {READ_ONLY}\n"
    assert list(disk.iterdir()) == []
