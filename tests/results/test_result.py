import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from normlab.config.schema import POPULATION
from normlab.results.result import (
    RESULT_FILE,
    EpochMetrics,
    Objective,
    Result,
    Status,
    read_numbers,
    to_jsonable,
    write_atomically,
)

NUMBERS = st.floats() | st.integers(-(2**53), 2**53)
TREES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text().filter(lambda word: word not in ("inf", "-inf", "nan")),
    lambda tree: st.lists(tree, max_size=3) | st.dictionaries(st.text(), tree, max_size=3),
    max_leaves=10,
)


def a_result(**changes) -> Result:
    result = Result(
        name="model=bn,seed=0",
        status=Status.FINISHED,
        config={
            "seed": 0,
            "replicate": "data",
            "module": {"_target_": POPULATION},
            "trainable": "all",
            "optimizer": {"lr": 1e-2, "betas": [0.9, 0.999]},
            "trainer": {"gradient_clip_val": None},
        },
        choices={"model": "bn"},
        overrides=["model=bn", "seed=0"],
        objective=Objective("val/loss", "min", 0.1),
        best=EpochMetrics(3, 12, {"val/loss": 0.1, "val/r2": 1 / 3}),
        last=EpochMetrics(10, 40, {"val/loss": 0.2, "val/r2": -math.inf}),
        test={"test/loss": 0.15},
        final={"train_eval/loss": 0.05, "val/loss": 0.2, "test/loss": math.inf},
        epochs=10,
        steps=40,
        seconds=1.5,
        started="2026-01-01T00:00:00+00:00",
        ended="2026-01-01T00:00:02+00:00",
        data={"seed": 2**62 + 1, "generated": True, "train": 600, "val": 200, "test": 0},
        environment={"versions": {"torch": "2.13.0"}, "commit": None, "dirty": None},
    )
    return replace(result, **changes)


@pytest.mark.parametrize("status", list(Status))
def test_result_round_trips(tmp_path, status):
    result = a_result(status=status, error="it broke" if status == Status.FAILED else None)
    result.write(tmp_path)

    assert Result.read(tmp_path) == result
    assert type(Result.read(tmp_path).status) is Status


def test_result_of_unstarted_run_round_trips(tmp_path):
    result = Result("run", Status.STOPPED, {}, {}, [], Objective("val/loss", "min", math.inf))
    result.write(tmp_path)

    assert Result.read(tmp_path) == result


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 0.1 + 0.2, 5e-324, 1.7976931348623157e308, -0.0])
def test_numbers_round_trip_bit_for_bit(tmp_path, value):
    moment = EpochMetrics(1, 2, {"val/loss": value})
    a_result(
        objective=Objective("val/loss", "min", value), best=moment, last=moment, test={"test/loss": value}
    ).write(tmp_path)

    read = Result.read(tmp_path)
    numbers = [
        read.objective.value,
        read.best.metrics["val/loss"],
        read.last.metrics["val/loss"],
        read.test["test/loss"],
    ]
    assert [number.hex() for number in numbers] == [float(value).hex()] * 4


@given(tree=TREES)
def test_to_jsonable_round_trips_through_strict_json(tree):
    text = json.dumps(to_jsonable(tree), allow_nan=False)

    assert repr(read_numbers(json.loads(text))) == repr(tree)


def test_result_file_is_strict_json(tmp_path):
    a_result(objective=Objective("val/loss", "min", math.nan), config={"x": [math.inf]}).write(tmp_path)

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    content = json.loads((tmp_path / RESULT_FILE).read_text(), parse_constant=refuse)
    assert content["status"] == "finished"
    assert content["objective"]["value"] == "nan"
    assert content["config"] == {"x": ["inf"]}


def test_finished_diverged_and_pruned_are_done():
    assert {status: status.done for status in Status} == {
        "finished": True,
        "diverged": True,
        "stopped": False,
        "pruned": True,
        "failed": False,
    }


def test_missing_result_is_none(tmp_path):
    assert Result.read(tmp_path) is None
    assert Result.read(tmp_path / "missing") is None


WHOLE = json.dumps(to_jsonable(asdict(a_result())))
WITHOUT = {
    key: {k: v for k, v in json.loads(WHOLE).items() if k != key} for key in ("status", "objective", "name")
}


@pytest.mark.parametrize(
    "text",
    [
        "",
        WHOLE[: len(WHOLE) // 2],
        "[]",
        "null",
        "3",
        *(json.dumps(content) for content in WITHOUT.values()),
        WHOLE.replace('"finished"', '"done"'),
        WHOLE.replace('"direction": "min"', '"direction": "min", "what": 1'),
        '{"status": "finished"}',
    ],
)
def test_damaged_result_raises_with_path(tmp_path, text):
    (tmp_path / RESULT_FILE).write_text(text)

    with pytest.raises(ValueError, match="is damaged") as error:
        Result.read(tmp_path)
    assert str(tmp_path / RESULT_FILE) in str(error.value)


def test_binary_result_raises(tmp_path):
    (tmp_path / RESULT_FILE).write_bytes(b"\xff\xfe\x00")

    with pytest.raises(ValueError, match=r"result\.json is damaged"):
        Result.read(tmp_path)


def test_old_record_has_replicate_seed_and_no_data(tmp_path):
    content = json.loads(WHOLE)
    del content["data"], content["config"]["replicate"]
    (tmp_path / RESULT_FILE).write_text(json.dumps(content))
    result = Result.read(tmp_path)

    assert result.config == a_result().config | {"replicate": "seed"}
    assert result.data == {}


def test_unknown_field_is_ignored(tmp_path):
    (tmp_path / RESULT_FILE).write_text(json.dumps(json.loads(WHOLE) | {"new": 1}))

    assert Result.read(tmp_path) == a_result()
    assert [path.name for path in tmp_path.iterdir()] == [RESULT_FILE]


def test_old_record_has_no_final_values(tmp_path):
    content = json.loads(WHOLE)
    del content["final"], content["data"], content["config"]["replicate"]
    (tmp_path / RESULT_FILE).write_text(json.dumps(content))

    result = Result.read(tmp_path)
    assert (result.final, result.data, result.config["replicate"]) == ({}, {}, "seed")


@pytest.mark.parametrize("stage", ["write_bytes", "replace"])
def test_crash_while_writing_keeps_the_old_file(tmp_path, monkeypatch, stage):
    a_result().write(tmp_path)
    write = Path.write_bytes

    def crash(path: Path, content: bytes) -> None:
        if stage == "write_bytes":
            write(path, content[:10])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, stage, crash)
    with pytest.raises(OSError, match="no space"):
        a_result(name="another").write(tmp_path)
    monkeypatch.undo()

    assert Result.read(tmp_path) == a_result()
    assert [path.name for path in tmp_path.iterdir()] == [RESULT_FILE]


def test_write_atomically_leaves_one_file(tmp_path):
    write_atomically(tmp_path / "x.json", "a long first text")
    write_atomically(tmp_path / "x.json", "short")

    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
    assert (tmp_path / "x.json").read_text() == "short"
