"""``normlab status`` tells the progress of a sweep from its files."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from normlab.execution.state import PlannedPopulation, SweepState, TrainingProgress
from normlab.results.folder import population_id
from normlab.results.result import Objective, Result, Status
from normlab.status import main, read_progress


def add_run(folder: Path, name: str, status: Status | None) -> None:
    """Write the folder of a run, with a result unless the status is None."""
    (folder / name / ".hydra").mkdir(parents=True)
    if status is not None:
        Result(name, status, {}, {}, [], Objective("val/loss", "min", 0.0)).write(folder / name)


def add_progress(state: SweepState, population: PlannedPopulation, epochs: int, ended: bool, age: float) -> None:
    """Write the progress of a population, as if it had been written a number of seconds ago."""
    path = state.progress_file(population.id)
    path.write_text(json.dumps(vars(TrainingProgress("", epochs, "host", 1, 0.0, ended))))
    os.utime(path, (time.time() - age, time.time() - age))


@pytest.fixture
def sweep(tmp_path):
    """A sweep of five populations with two runs each: finished, running, queued, interrupted, failed."""
    state = SweepState(tmp_path)
    names = [[f"{kind}{k}" for k in range(2)] for kind in ("done", "running", "queued", "gone", "failed")]
    populations = [PlannedPopulation(population_id(runs), runs, 1, 200, 10.0) for runs in names]
    (tmp_path / ".normlab").mkdir()
    state.plan(populations)
    started = time.time() - 60
    os.utime(tmp_path / ".normlab" / "populations.json", (started, started))
    add_run(tmp_path, "done0", Status.FINISHED)
    add_run(tmp_path, "done1", Status.DIVERGED)
    for name in ("running0", "running1", "gone0", "gone1"):
        add_run(tmp_path, name, None)
    for name in names[4]:
        add_run(tmp_path, name, Status.FAILED)
    for population, epochs, ended, age in zip(
        [populations[k] for k in (0, 1, 3, 4)],
        (200, 100, 50, 20),
        (True, False, False, True),
        (50, 1, 600, 9),
        strict=True,
    ):
        add_progress(state, population, epochs, ended, age)
    return tmp_path


def test_runs_are_counted_by_status(sweep):
    progress = read_progress(sweep)
    counts = {kind: count for kind, count in progress.runs.items() if count}
    assert counts == {"finished": 1, "diverged": 1, "running": 2, "queued": 2, "interrupted": 2, "failed": 2}
    assert sorted(progress.failed) == ["failed0", "failed1"]
    assert progress.silent_seconds == pytest.approx(600, abs=5)
    assert progress.per_minute == pytest.approx(2, rel=0.05), "two runs in a minute"
    # 10 s of work and half of 10 s took a minute; 5 + 10 + 7.5 s are left.
    assert progress.seconds_left == pytest.approx(22.5 * 60 / 15, rel=0.05)


def test_text_says_what_is_to_be_known(sweep, capsys):
    main([str(sweep)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{sweep}: 10 runs"
    assert lines[1].split() == ["done", "2,", "1", "of", "them", "diverged"]
    assert lines[2].split() == ["running", "2", "in", "1", "population"]
    assert "last heard of 10 min ago" in lines[4]
    assert "2 runs per minute" in lines
    assert "about 90 s left" in lines or "about 2 min left" in lines
    assert lines[-1] == "driver: none on this machine"


def test_population_whose_process_has_ended_is_interrupted_at_once(sweep):
    """On this machine its lock is released when the process ends, however that happens."""
    state = SweepState(sweep)
    running = next(each for each in state.populations() if each.runs[0] == "running0")
    values = vars(TrainingProgress("", 5, socket.gethostname(), 1, 0.0))
    state.progress_file(running.id).write_text(json.dumps(values))
    assert read_progress(sweep).runs["interrupted"] == 4
    with state.locked(running.id, lambda holder: None):
        assert read_progress(sweep).runs["interrupted"] == 2


def test_json_has_the_numbers(sweep, capsys):
    main([str(sweep), "--json"])
    assert json.loads(capsys.readouterr().out)["runs"]["running"] == 2


def test_sweep_without_a_plan_is_counted_by_its_folders(tmp_path):
    add_run(tmp_path, "a", Status.FINISHED)
    add_run(tmp_path, "b", None)
    counts = {kind: count for kind, count in read_progress(tmp_path).runs.items() if count}
    assert counts == {"finished": 1, "unfinished": 1}


@pytest.mark.parametrize(("create", "error"), [(False, "no such folder"), (True, "holds no sweep")])
def test_other_folder_is_refused(tmp_path, create, error):
    folder = tmp_path / "x"
    if create:
        folder.mkdir()
    with pytest.raises(SystemExit, match=error):
        main([str(folder)])


def test_torch_is_not_imported():
    code = "import sys, normlab.status; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_ten_thousand_runs_take_three_seconds(tmp_path):
    text = json.dumps({"name": "x", "status": "finished", "config": {"key": "value" * 1000}}, indent=2)
    for name in map(str, range(10_000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(text)
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "normlab.status", str(tmp_path)], check=True, capture_output=True)
    assert time.perf_counter() - started < 6, "twice the target, as the tests run beside others"
