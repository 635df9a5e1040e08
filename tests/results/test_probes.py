import csv
import logging
import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from normlab.results.reading import read_arrays, read_probes
from normlab.results.series import (
    ARRAYS,
    PROBES_FILE,
    ProbeRecord,
    append_probes,
    headlines,
    write_arrays,
)
from normlab.results.sweep import Record

COLUMNS = ["run", "epoch", "step", "probe", "mode", "quantity", "value"]


def record_of(step=0, probe="curvature", mode="batch", **numbers) -> ProbeRecord:
    return ProbeRecord(
        step // 5, step, 0.5, probe, mode, {name.replace("__", "/"): x for name, x in numbers.items()}
    )


def with_arrays(step=0, probe="line", mode="batch", **arrays) -> ProbeRecord:
    return ProbeRecord(1, step, 0.0, probe, mode, {}, {name: np.array(values) for name, values in arrays.items()})


def runs(tmp_path, count):
    folders = [tmp_path / f"run{k}" for k in range(count)]
    for folder in folders:
        folder.mkdir()
    return [Record(folder, None) for folder in folders]


def rows_of(frame) -> list[tuple]:
    return list(frame.astype(object).itertuples(index=False, name=None))


def test_header_is_written_once(tmp_path):
    append_probes(tmp_path, [])
    append_probes(tmp_path, [record_of(5, trace=2.0, hidden1__q50=0.25)])
    append_probes(tmp_path, [record_of(10, mode="frozen", trace=-1.0)])

    assert (tmp_path / PROBES_FILE).read_text().splitlines() == [
        "epoch,step,probe,mode,quantity,value",
        "1,5,curvature,batch,trace,2.0",
        "1,5,curvature,batch,hidden1/q50,0.25",
        "2,10,curvature,frozen,trace,-1.0",
    ]


def test_names_with_comma_or_quote_round_trip(tmp_path):
    [run] = runs(tmp_path, 1)
    append_probes(run.folder, [ProbeRecord(1, 5, 0.0, "mine", "batch", {'a,"b"': 2.0, "c": 1.0})])

    assert read_probes([run])["quantity"].tolist() == ['a,"b"', "c"]


@given(values=st.lists(st.floats(), min_size=1, max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
def test_numbers_round_trip_bit_for_bit(tmp_path, values):
    (tmp_path / PROBES_FILE).unlink(missing_ok=True)
    append_probes(tmp_path, [record_of(step, trace=value) for step, value in enumerate(values)])

    with (tmp_path / PROBES_FILE).open(newline="") as file:
        written = [float(row["value"]) for row in csv.DictReader(file)]
    assert [value.hex() for value in written] == [value.hex() for value in values]


def test_tags_points_and_headlines():
    one = ProbeRecord(2, 7, 1.5, "curvature", "frozen", {"trace": 3.0, "out/x": 4.0}, headline=("trace",))
    later = ProbeRecord(3, 9, 1.5, "curvature", "frozen", {"trace": 5.0}, headline=("trace",))

    point = one.point()
    assert (point.epoch, point.step, point.time) == (2, 7, 1.5)
    assert point.metrics == {"probe/curvature/frozen/trace": 3.0, "probe/curvature/frozen/out/x": 4.0}
    assert headlines([one, later]) == {"probe/curvature/frozen/trace": 5.0}


def test_read_probes_keeps_order_of_records(tmp_path):
    records = runs(tmp_path, 4)
    append_probes(records[0].folder, [record_of(5, trace=2.0), record_of(10, trace=math.inf)])
    append_probes(records[1].folder, [])
    append_probes(records[3].folder, [record_of(5, mode="frozen", hidden1__q50=math.nan)])

    frame = read_probes(records)
    assert frame.columns.tolist() == COLUMNS
    read = rows_of(frame)
    assert read[:2] == [
        (0, 1, 5, "curvature", "batch", "trace", 2.0),
        (0, 2, 10, "curvature", "batch", "trace", math.inf),
    ]
    assert read[2][:-1] == (3, 1, 5, "curvature", "frozen", "hidden1/q50")
    assert math.isnan(read[2][-1])


@pytest.mark.parametrize("count", [0, 2])
def test_runs_without_probes_have_no_rows(tmp_path, count, caplog):
    frame = read_probes(runs(tmp_path, count))
    assert (frame.columns.tolist(), len(frame), caplog.text) == (COLUMNS, 0, "")


@pytest.mark.parametrize("content", ["epoch,step,probe,mode,quantity,value\n", "epoch,st", ""])
def test_file_without_complete_row_is_empty(tmp_path, content, caplog):
    records = runs(tmp_path, 2)
    (records[0].folder / PROBES_FILE).write_text(content)
    append_probes(records[1].folder, [record_of(5, trace=2.0)])
    assert read_probes(records)["run"].tolist() == [1]
    assert caplog.text == ""


def test_incomplete_last_row_is_dropped(tmp_path, caplog):
    records = runs(tmp_path, 1)
    append_probes(records[0].folder, [record_of(5, trace=2.0)])
    with (records[0].folder / PROBES_FILE).open("a") as file:
        file.write("2,10,curvature,batch,trace,1")
    assert read_probes(records)["value"].tolist() == [2.0]
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("damage", "warning"),
    [
        ("1,2,curvature,batch,trace,1.0,9.0\n", "probes.csv is damaged"),
        ("1,2,curvature\n", "probes.csv is damaged: could not convert string to float"),
        ("x,2,curvature,batch,trace,1.0\n", "probes.csv is damaged"),
        ("1,2,curvature,batch,trace,good\n", "probes.csv is damaged"),
        ("\n", "probes.csv is damaged: invalid literal for int"),
        ('1,2,"curvature,batch,trace,1.0\n', None),
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_damaged_file_is_logged_and_others_are_read(tmp_path, damage, warning, place, caplog):
    records = runs(tmp_path, 3)
    for k, record in enumerate(records):
        append_probes(record.folder, [record_of(5, trace=float(k))])
    with (records[place].folder / PROBES_FILE).open("a") as file:
        file.write(damage)
    whole = [k for k in range(3) if k != place or warning is None]
    values = read_probes(records).query("quantity == 'trace' and step == 5").groupby("run")["value"].first()
    assert values.to_dict() == {k: float(k) for k in whole}
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(messages) == (warning is not None)
    assert warning is None or warning in messages[0]
    assert all("the run has no probes" in message for message in messages)


def test_wrong_header_or_binary_file_is_damaged(tmp_path, caplog):
    records = runs(tmp_path, 3)
    (records[0].folder / PROBES_FILE).write_text("a,b\n1,2\n")
    (records[1].folder / PROBES_FILE).write_bytes(b"\xff\xfe\n")
    append_probes(records[2].folder, [record_of(5, trace=2.0)])
    assert read_probes(records)["run"].tolist() == [2]
    assert sum("is damaged" in record.getMessage() for record in caplog.records) == 2


def test_arrays_round_trip_with_leading_time_axis(tmp_path):
    first = [with_arrays(5, x=[1.0, 2.0], n=[1, 2]), with_arrays(5, mode="frozen", y=3.5)]
    write_arrays(tmp_path, [*first, with_arrays(10, x=[3.0, 4.0], n=[3, 4]), record_of(10, trace=1.0)])

    arrays = read_arrays(Record(tmp_path, None))
    assert {key: array.tolist() for key, array in arrays.items()} == {
        "line/batch/epoch": [1, 1],
        "line/batch/step": [5, 10],
        "line/batch/x": [[1.0, 2.0], [3.0, 4.0]],
        "line/batch/n": [[1, 2], [3, 4]],
        "line/frozen/epoch": [1],
        "line/frozen/step": [5],
        "line/frozen/y": [3.5],
    }
    assert [path.name for path in tmp_path.iterdir()] == [ARRAYS]


def test_arrays_of_the_same_step_are_replaced(tmp_path):
    write_arrays(
        tmp_path, [with_arrays(step, x=[value]) for step, value in ((5, 1.0), (10, 2.0), (15, 3.0), (10, 9.0))]
    )
    assert read_arrays(Record(tmp_path, None))["line/batch/x"].tolist() == [[1.0], [9.0], [3.0]]


def test_missing_array_is_nan(tmp_path):
    write_arrays(
        tmp_path, [with_arrays(5, x=[1, 2]), with_arrays(10, y=[3.0]), with_arrays(15, x=[4, 5], y=[6.0])]
    )
    arrays = read_arrays(Record(tmp_path, None))
    np.testing.assert_array_equal(arrays["line/batch/x"], [[1, 2], [np.nan, np.nan], [4, 5]])
    np.testing.assert_array_equal(arrays["line/batch/y"], [[np.nan], [3.0], [6.0]])


def test_numbers_alone_write_no_array_file(tmp_path):
    write_arrays(tmp_path, [record_of(5, trace=1.0)])
    assert list(tmp_path.iterdir()) == []
    assert read_arrays(Record(tmp_path, None)) == {}


def test_changed_array_shape_raises(tmp_path):
    with pytest.raises(ValueError, match=r"the array x of line/batch must keep its shape, got \(2,\), \(3,\)"):
        write_arrays(tmp_path, [with_arrays(5, x=[1.0, 2.0]), with_arrays(10, x=[1.0, 2.0, 3.0])])
    assert read_arrays(Record(tmp_path, None)) == {}


@pytest.mark.parametrize("keep", [0, 40, -30])
def test_damaged_arrays_are_logged_and_replaced(tmp_path, keep, caplog):
    write_arrays(tmp_path, [with_arrays(5, x=[1.0])])
    path = tmp_path / ARRAYS
    path.write_bytes(path.read_bytes()[:keep])
    assert read_arrays(Record(tmp_path, None)) == {}
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "probes.npz is damaged" in caplog.text
    write_arrays(tmp_path, [with_arrays(10, x=[2.0])])
    assert read_arrays(Record(tmp_path, None))["line/batch/x"].tolist() == [[2.0]]


def test_object_arrays_are_not_loaded(tmp_path, caplog):
    np.savez(tmp_path / ARRAYS, **{"line/batch/x": np.array([{"a": 1}], dtype=object)})
    assert read_arrays(Record(tmp_path, None)) == {}
    assert "is damaged" in caplog.text
