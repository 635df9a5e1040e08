"""Jobs of a cluster that are late, lost or fail, on a cluster whose jobs this test runs itself."""

import logging
import time
from collections.abc import Collection, Sequence
from pathlib import Path

import pytest
from tests.execution.test_grouping import runs_of

from normlab.execution.executors import plan_groups, train_groups
from normlab.execution.job_training import JobExecutor
from normlab.execution.state import SubmittedJob, SweepState
from normlab.execution.task import GroupTask
from normlab.results.result import Result, Status


class Cluster(JobExecutor):
    """Runs its jobs when it is asked for the second time which are left.

    Args:
        lost: number of jobs, from the first one, that vanish without a result.
    """

    name = "test"
    poll_seconds, late_seconds = 0.01, 0.05

    def __init__(self, lost: int = 0, retries: int = 3) -> None:
        super().__init__(retries, {})
        self.lost, self.queue = lost, dict[str, GroupTask]()
        self.submitted: list[str] = []

    def submit(self, tasks: Sequence[GroupTask], names: Sequence[str], folder: Path) -> list[str]:
        jobs = [f"job{len(self.submitted) + k}" for k in range(len(tasks))]
        self.submitted += jobs
        self.queue |= dict(zip(jobs, tasks, strict=True))
        return jobs

    def known(self, jobs: Collection[str]) -> set[str] | None:
        left = set(self.queue).intersection(jobs)
        for job in sorted(left)[:1]:
            task = self.queue.pop(job)
            if self.lost > 0:
                self.lost -= 1
            else:
                task()
        return left

    def interrupt(self, jobs: Sequence[str]) -> None:
        logging.getLogger("normlab").info("interrupted: %s", " ".join(jobs))


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Four short runs; a job would change the working directory."""
    monkeypatch.chdir(tmp_path)
    return runs_of(tmp_path, range(4), "trainer.max_epochs=2")


def outcomes(runs, cluster: Cluster) -> dict[int, object]:
    """Train runs as two jobs, and return the outcomes by run."""
    groups = plan_groups(runs, set(), 2, cluster)
    return {
        index: value
        for group, values in train_groups(groups, cluster)
        for index, value in zip(groups[group].indices, values, strict=True)
    }


def test_outcomes_are_read_from_files(runs):
    cluster = Cluster()
    values = outcomes(runs, cluster)
    assert cluster.submitted == ["job0", "job1"]
    results = [Result.read(run.folder) for run in runs]
    assert [result.status for result in results] == [Status.FINISHED] * 4
    assert [values[k] for k in range(4)] == [result.objective.value for result in results]
    jobs = SweepState(runs[0].sweep).jobs().values()
    assert sorted(job.job for job in jobs) == ["job0", "job1"]


def test_lost_jobs_are_submitted_again(runs, caplog):
    cluster = Cluster(lost=2)
    with caplog.at_level(logging.WARNING, logger="normlab"):
        values = outcomes(runs, cluster)
    assert cluster.submitted == ["job0", "job1", "job2", "job3"]
    assert all(isinstance(value, float) for value in values.values())
    assert any("submitted again: job0" in record.getMessage() for record in caplog.records)


def test_job_that_is_always_lost_fails(runs):
    values = outcomes(runs, Cluster(lost=100, retries=1))
    assert "its job ended 2 times without results" in str(values[0])
    assert [Result.read(run.folder).status for run in runs] == [Status.FAILED] * 4


def test_results_that_appear_late_are_waited_for(runs, monkeypatch):
    cluster, slow = Cluster(), {"until": 0.0}
    known = cluster.known

    def hide_then_show(jobs: Collection[str]) -> set[str] | None:
        left = known(jobs)
        for run in runs:  # another node does not see them yet
            path = run.folder / "result.json"
            if path.exists() and not slow["until"]:
                slow["until"] = time.monotonic() + 0.02
            hidden = path.with_name("hidden")
            if time.monotonic() < slow["until"] and path.exists():
                path.rename(hidden)
            elif hidden.exists():
                hidden.rename(path)
        return left

    monkeypatch.setattr(cluster, "known", hide_then_show)
    values = outcomes(runs, cluster)
    assert all(isinstance(value, float) for value in values.values())
    assert len(cluster.submitted) == 2


def test_running_job_of_an_earlier_driver_is_not_submitted_again(runs):
    cluster = Cluster()
    groups = plan_groups(runs, set(), 2, cluster)
    state, task = SweepState(runs[0].sweep), cluster.task(groups[0], "token")
    cluster.queue["early"] = task
    state.record([SubmittedJob(groups[0].id, "early", "token", "test")])
    cluster.known = lambda jobs: set(jobs) & {"early"}  # type: ignore[method-assign]
    assert cluster.running(state) == {groups[0].id}
    del cluster.known
    values = outcomes(runs, cluster)
    assert len(values) == 4
    assert cluster.submitted == ["job0"], "only the other group"


def test_failed_job_records_its_error(runs, monkeypatch):
    monkeypatch.setattr("normlab.execution.group_training.train", lambda *arguments: 1 / 0)
    values = outcomes(runs, Cluster())
    assert str(values[0]) == "division by zero"
    result = Result.read(runs[0].folder)
    assert (result.status, result.error) == (Status.FAILED, "division by zero")
    assert "ZeroDivisionError" in (runs[0].folder / "error.txt").read_text()


def test_ctrl_c_leaves_jobs_alone(runs, caplog):
    cluster = Cluster()
    cluster.ends_at_ctrl_c = False

    def press(jobs: Collection[str]) -> set[str]:
        raise KeyboardInterrupt

    cluster.known = press  # type: ignore[method-assign]
    groups = plan_groups(runs, set(), 2, Cluster())
    with pytest.raises(KeyboardInterrupt), caplog.at_level(logging.INFO, logger="normlab"):
        list(train_groups(groups, cluster))
    assert "interrupted: job0 job1" in caplog.messages
    assert not any((run.folder / "result.json").exists() for run in runs)
