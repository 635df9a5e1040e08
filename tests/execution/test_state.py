"""The folder ``.normlab``: plan, jobs, progress and locks of a sweep."""

import json
import multiprocessing
import os
import signal
import time

import pytest

from normlab.execution.state import Heartbeat, PlannedPopulation, SubmittedJob, SweepState
from normlab.results.folder import population_id


def population(*runs: str) -> PlannedPopulation:
    return PlannedPopulation(population_id(runs), list(runs), 1, 10 * len(runs), 3.0)


def test_plan_keeps_other_populations_and_replaces_those_that_share_a_run(tmp_path):
    state = SweepState(tmp_path)
    one, two, again = population("a", "b"), population("c"), population("b")
    state.plan([one, two])
    assert state.populations() == [one, two]
    state.plan([again])
    assert state.populations() == [two, again]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"populations": [{"id": 1}]}', '{"populations": null}'])
def test_damaged_plan_counts_as_none(tmp_path, text):
    state = SweepState(tmp_path)
    state.plan([population("a")])
    (tmp_path / ".normlab" / "populations.json").write_text(text)
    assert state.populations() == []


def test_last_job_of_a_population_counts(tmp_path):
    state = SweepState(tmp_path)
    state.plan([])
    assert state.jobs() == {}
    first, second, other = (
        SubmittedJob(p, j, f"{p}-{j}", "slurm") for p, j in (("x", "1"), ("x", "2"), ("y", "3"))
    )
    state.record([first, other])
    state.record([second])
    assert state.jobs() == {"x": second, "y": other}
    with (tmp_path / ".normlab" / "jobs.jsonl").open("a") as file:
        file.write('{"population": "x", "jo')
    assert state.jobs() == {"x": second, "y": other}, "the line of a driver that was killed"


def test_heartbeat_writes_progress_and_end(tmp_path, monkeypatch):
    monkeypatch.setattr("normlab.execution.state.BEAT_SECONDS", 0.01)
    state, done = SweepState(tmp_path), [3]
    state.plan([])
    with Heartbeat(state.progress_file("x"), lambda: done[0], "token"):
        first = state.progress("x")
        assert (first.epochs, first.token, first.process, first.ended) == (3, "token", os.getpid(), False)
        done[0] = 7
        deadline = time.monotonic() + 10
        while state.progress("x").epochs != 7:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert state.progress("x").ended
    with pytest.raises(RuntimeError, match="stop"), Heartbeat(state.progress_file("y"), lambda: 0):
        raise RuntimeError("stop")
    assert not state.progress("y").ended
    assert state.progress("z") is None


def hold(folder, name, connection) -> None:
    """Hold a lock until this process is killed."""
    with SweepState(folder).locked(name, lambda holder: None):
        connection.send(os.getpid())
        time.sleep(60)


def test_lock_names_its_holder_and_ends_with_its_process(tmp_path):
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=hold, args=(tmp_path, "driver", theirs))
    process.start()
    pid, state, holders = ours.recv(), SweepState(tmp_path), []

    def refuse(holder: str) -> None:
        holders.append(holder)
        raise BlockingIOError

    assert state.is_locked("driver")
    with pytest.raises(BlockingIOError), state.locked("driver", refuse):
        pass
    assert holders[0].startswith(f"process {pid} on ")
    os.kill(pid, signal.SIGKILL)
    process.join()
    assert not state.is_locked("driver")
    with state.locked("driver", refuse):
        assert json.loads((tmp_path / ".normlab" / "driver.json").read_text())["process"] == os.getpid()
    assert len(holders) == 1


def test_lock_waits_for_its_holder(tmp_path):
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=hold, args=(tmp_path, "x", theirs))
    process.start()
    pid, waited = ours.recv(), []

    def note(holder: str) -> None:
        waited.append(holder)
        os.kill(pid, signal.SIGKILL)

    with SweepState(tmp_path).locked("x", note):
        assert len(waited) == 1
    process.join()
