import json
from copy import deepcopy
from pathlib import Path

import pytest

from normlab.results.result import Objective, Result, Status
from normlab.results.sweep import (
    TIMING_FILE,
    Record,
    TimedConfiguration,
    Timing,
    read_timing,
    representatives,
    step_seconds,
)

CONFIG = {
    "seed": 0,
    "target": None,
    "data": {"seed": 42, "batch_size": 60},
    "model": {"norm": {"_target_": "normlab.norms.BatchNorm1d", "eps": 1e-5}},
    "optimizer": {
        "lr": 0.01,
        "betas": [0.9, 0.999],
        "weight_decay": 0.0,
        "_target_": "normlab.population.optim.Adam",
    },
    "scheduler": {"gamma": 0.1},
}


def result_of(status: Status = Status.FINISHED, sources: dict[str, str] | None = None, **values) -> Result:
    """Return a result whose configuration has other values, by dotted key with ``__`` for the dot."""
    config = deepcopy(CONFIG)
    for key, value in values.items():
        group, _, name = key.partition("__")
        (config[group] if name else config)[name or group] = value
    return Result("run", status, config, {"model": "bn"}, [], Objective("", "", 0.0), sources=sources or {})


def timing_of(*results: Result) -> Timing:
    arms = [
        TimedConfiguration(
            f"run {k}", result.config, result.choices, result.sources, 1, False, 5, [k + 0.1, k + 0.2]
        )
        for k, result in enumerate(results)
    ]
    return Timing("2026-01-01T00:00:00+00:00", arms, {"machine": {"cores": 2}})


def test_timing_round_trips(tmp_path):
    timing = timing_of(result_of(), result_of(data__batch_size=30))
    timing.write(tmp_path)
    assert read_timing(tmp_path) == timing
    assert [path.name for path in tmp_path.iterdir()] == [TIMING_FILE]


def test_missing_timing_is_none(tmp_path):
    assert read_timing(tmp_path) is None


@pytest.mark.parametrize("text", ["{", "[]", '{"arms": []}', '{"started": "", "arms": [{"run": "a"}]}'])
def test_damaged_timing_is_logged(tmp_path, caplog, text):
    (tmp_path / TIMING_FILE).write_text(text)
    assert read_timing(tmp_path) is None
    assert f"{tmp_path / TIMING_FILE} is damaged: " in caplog.text


def test_unknown_timing_fields_are_ignored(tmp_path):
    timing = timing_of(result_of())
    timing.write(tmp_path)
    values = json.loads((tmp_path / TIMING_FILE).read_text())
    values["arms"][0]["more"] = values["more"] = 1
    (tmp_path / TIMING_FILE).write_text(json.dumps(values))
    assert read_timing(tmp_path) == timing


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 7},
        {"target": 3.0},
        {"data__seed": 1},
        {"optimizer__lr": 1},
        {"optimizer__betas": [0.5, 0.9]},
        {"scheduler__gamma": 0.5},
        {"status": Status.DIVERGED},
    ],
    ids=str,
)
def test_runs_of_equal_cost_share_times(other):
    timing = timing_of(result_of(data__batch_size=30), result_of())
    assert step_seconds(timing, result_of(**other)) == [1.1, 1.2]


@pytest.mark.parametrize(
    "other",
    [
        {"data__batch_size": 61},
        {"model__norm": None},
        {"model__norm": {"_target_": "normlab.norms.BatchNorm1d", "eps": 1e-3}},
        {"optimizer__weight_decay": 0.1},
        {"optimizer__betas": [0.0, 0.999]},
        {"optimizer___target_": "normlab.population.optim.AdamW"},
        {"optimizer__nesterov": True},
        {"scheduler": {}},
        {"sources": {"net._target_": "another hash"}},
    ],
    ids=str,
)
def test_run_of_other_cost_has_no_times(other):
    assert step_seconds(timing_of(result_of()), result_of(**other)) is None


def test_representatives_prefer_finished_runs():
    runs = {
        "a": result_of(Status.FAILED),
        "b": result_of(Status.DIVERGED, seed=1),
        "c": result_of(seed=2),
        "d": result_of(seed=3),
        "e": result_of(Status.DIVERGED, data__batch_size=30),
        "f": result_of(Status.STOPPED, data__batch_size=20),
    }
    found = representatives(Record(Path(name), result) for name, result in runs.items())
    assert [record.folder.name for record in found] == ["c", "e"]
