import builtins
import logging
import math

import numpy as np
import pytest

from normlab.errors import ConfigError
from normlab.results.packed import (
    PACKED_FOLDER,
    PackedRow,
    import_pyarrow,
    packed_run,
    read_pack,
    stored_result,
    write_pack,
)
from normlab.results.reading import read_arrays, read_curves, read_probes
from normlab.results.result import Objective, Result, Status
from normlab.results.series import (
    ARRAYS,
    CURVES_FILE,
    PROBES_FILE,
    Point,
    ProbeRecord,
    append_curves,
    append_probes,
    arrays_content,
    rows_of_points,
    rows_of_records,
    write_arrays,
)
from normlab.results.sweep import read_sweep, run_folders

pytest.importorskip("pyarrow")


def result_of(name: str, status: Status = Status.FINISHED, ended: str = "", value: float = 0.5) -> Result:
    objective = Objective("val/loss", "min", value)
    return Result(name, status, {"seed": 0}, {"model": "bn"}, ["model=bn"], objective, ended=ended)


def row_of(name: str, **options) -> PackedRow:
    return PackedRow(name, result_of(name, **options).text())


def points_of(k: int) -> list[Point]:
    values = [0.1 * k, math.nan, math.inf, 1 / 3]
    return [Point(e, 5 * e, 0.0, {"val/loss": value, "mine": -value}) for e, value in enumerate(values, start=1)]


def records_of(k: int) -> list[ProbeRecord]:
    numbers, arrays = {"trace": 0.5 * k, "hidden1/std": 2.0}, {"spectrum": np.arange(3.0) + k}
    return [ProbeRecord(1, 5, 0.0, "curvature", "batch", numbers, arrays)]


def write_folder(sweep, k: int) -> None:
    folder = sweep / f"seed={k}"
    folder.mkdir(parents=True)
    append_curves(folder, points_of(k))
    append_probes(folder, records_of(k))
    write_arrays(folder, records_of(k))
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "config.yaml").write_text(f"seed: {k}\ndata: ${{seed}}\n")
    result_of(folder.name, value=0.1 * k).write(folder)


def packed_row(k: int) -> PackedRow:
    series = {CURVES_FILE: rows_of_points(points_of(k)), PROBES_FILE: rows_of_records(records_of(k))}
    hydra = {"config": f"seed: {k}\ndata: ${{seed}}\n"}
    text = result_of(f"seed={k}", value=0.1 * k).text()
    return PackedRow(f"seed={k}", text, hydra, series, {ARRAYS: arrays_content(records_of(k))})


@pytest.fixture
def sweeps(tmp_path):
    """Return a sweep in folders, the same packed in two files, and with one run in a folder."""
    for k in range(5):
        write_folder(tmp_path / "folders", k)
    for members in ((4, 0, 2), (3, 1)):
        write_pack(tmp_path / "packed", [packed_row(k) for k in members])
    write_pack(tmp_path / "mixed", [packed_row(k) for k in (1, 0, 4, 2)])
    write_folder(tmp_path / "mixed", 3)
    return [tmp_path / name for name in ("folders", "packed", "mixed")]


def test_packed_runs_equal_runs_in_folders(sweeps):
    expected, *others = ([*read_sweep(sweep)] for sweep in sweeps)
    for sweep, records in zip(sweeps[1:], others, strict=True):
        assert [record.folder for record in records] == [sweep / f"seed={k}" for k in range(5)]
        assert [record.result for record in records] == [record.result for record in expected]
        assert [record.unresolved() for record in records] == [record.unresolved() for record in expected]
        for read in (read_curves, read_probes):
            one, other = read(records), read(expected)
            assert one.to_dict("list").keys() == other.to_dict("list").keys()
            for name in one:
                np.testing.assert_array_equal(one[name].to_numpy(), other[name].to_numpy())
        for record, other in zip(records, expected, strict=True):
            arrays, of_folder = read_arrays(record), read_arrays(other)
            assert arrays.keys() == of_folder.keys()
            for key, array in arrays.items():
                np.testing.assert_array_equal(array, of_folder[key])


def test_runs_have_no_folder(sweeps):
    _, packed, _ = sweeps
    assert [path.name for path in packed.iterdir()] == [PACKED_FOLDER]
    assert sorted(run_folders(packed)) == [packed / f"seed={k}" for k in range(5)]
    assert sorted(run_folders(packed.parent)) == sorted(sweep / f"seed={k}" for sweep in sweeps for k in range(5))


@pytest.mark.parametrize("name", ["val/a,b", 'val/"quoted"', "val/two\nlines", "val/NA", "val/é", "val/", "mine"])
def test_metric_names_round_trip(tmp_path, name):
    points = [Point(1, 10, 0.0, {name: 0.5, "val/loss": 0.25})]
    write_pack(tmp_path, [PackedRow("a", result_of("a").text(), series={CURVES_FILE: rows_of_points(points)})])
    assert read_curves(read_sweep(tmp_path))["metric"].tolist() == [name, "val/loss"]


def test_runs_without_series_have_no_rows(tmp_path):
    write_pack(tmp_path, [row_of("a"), row_of("b")])
    records = read_sweep(tmp_path)
    assert len(read_curves(records)) == len(read_probes(records)) == 0
    assert read_arrays(records[0]) == {}
    assert records[0].unresolved() == {}


def test_stored_result_is_found_by_its_folder(sweeps, tmp_path):
    for sweep in sweeps:
        stored = stored_result(sweep / "seed=3")
        assert stored is not None
        assert stored.objective.value == pytest.approx(0.3)
        assert stored_result(sweep / "seed=9") is None
    assert stored_result(tmp_path / "none" / "seed=3") is None


def test_run_in_a_nested_folder(tmp_path):
    write_pack(tmp_path, [row_of("model=bn/seed=0")])
    assert [record.folder for record in read_sweep(tmp_path)] == [tmp_path / "model=bn" / "seed=0"]
    assert packed_run(tmp_path / "model=bn" / "seed=0") is not None


def test_run_that_trained_again_counts_as_the_later_file_says(tmp_path):
    first = write_pack(tmp_path, [row_of("a", status=Status.FAILED), row_of("b", ended="2026-01-02")])
    second = write_pack(tmp_path, [row_of("a", value=0.25), row_of("c")])
    assert first.exists()
    assert {r.folder.name: r.result.objective.value for r in read_sweep(tmp_path)} == {
        "a": 0.25,
        "b": 0.5,
        "c": 0.5,
    }
    # The later file counts even if the clock went backwards.
    write_pack(tmp_path, [row_of("b", ended="2026-01-01", value=0.125)])
    assert stored_result(tmp_path / "b").objective.value == 0.125
    third = write_pack(tmp_path, [row_of(name, value=1.0) for name in "abc"])
    assert not first.exists(), "all its runs are in a later file"
    assert not second.exists()
    assert [*third.parent.iterdir()] == [third]


def test_finished_run_counts_rather_than_a_failed_one(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    result_of("a", status=Status.FAILED, ended="2026-01-02").write(folder)
    write_pack(tmp_path, [row_of("a", ended="2026-01-01")])
    (record,) = read_sweep(tmp_path)
    assert (record.result.status, record.packed is None) == (Status.FINISHED, False)
    result_of("a", ended="2026-01-03", value=0.25).write(folder)
    (record,) = read_sweep(tmp_path)
    assert (record.result.objective.value, record.packed) == (0.25, None)


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    middle = content.index(b"PAR1", 4) // 2 if content.count(b"PAR1") > 1 else len(content) // 8
    return content[:40] + bytes(byte ^ 0xFF for byte in content[40:middle]) + content[middle:]


@pytest.mark.parametrize("damage", [truncated, flipped, lambda _: b"", lambda _: b"no parquet"])
def test_damaged_file_has_no_runs(tmp_path, caplog, damage):
    path = write_pack(tmp_path, [row_of("a"), row_of("b")])
    write_pack(tmp_path, [row_of("c")])
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(damage(content))
    assert [record.folder.name for record in read_sweep(tmp_path)] == ["c"]
    assert stored_result(tmp_path / "a") is None
    (line,) = caplog.messages
    assert line.startswith(f"{path} is damaged: ")
    assert line.endswith("its runs count as missing, and the repeated command trains them again")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_foreign_file_has_no_runs(tmp_path, caplog):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / PACKED_FOLDER).mkdir()
    pq.write_table(pa.table({"x": [1, 2]}), tmp_path / PACKED_FOLDER / "mine.parquet")
    assert read_sweep(tmp_path) == []
    assert "mine.parquet is damaged: it lacks the column folder" in caplog.text


def test_damaged_result_counts_as_failed(tmp_path, caplog):
    write_pack(tmp_path, [PackedRow("a", '{"name":', {"overrides": "- model=bn\n", "config": "seed: 3\n"})])
    (record,) = read_sweep(tmp_path)
    assert record.result.status == Status.FAILED
    assert record.result.config["seed"] == 3
    assert record.result.overrides == ["model=bn"]
    assert "the result of a in" in caplog.text


def test_failed_write_leaves_the_earlier_file(tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    path = write_pack(tmp_path, [row_of("a")])
    before = path.read_bytes()

    def fails(table, where, **options):
        where.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(pq, "write_table", fails)
    with pytest.raises(OSError, match="no space left"):
        write_pack(tmp_path, [row_of("a", value=1.0)])
    assert path.read_bytes() == before
    assert [*path.parent.iterdir()] == [path]


def test_pyarrow_is_named_if_it_is_missing(tmp_path, monkeypatch):
    path = write_pack(tmp_path, [row_of("a")])
    real = builtins.__import__

    def without_pyarrow(name, *arguments):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without_pyarrow)
    read_pack.cache_clear()
    for reason, call in (
        ("records=packed", lambda: import_pyarrow("records=packed")),
        (path, lambda: read_sweep(tmp_path)),
    ):
        with pytest.raises(ConfigError) as raised:
            call()
        assert str(raised.value) == f"{reason} needs pyarrow; install it: pip install 'normlab[packed]'"
