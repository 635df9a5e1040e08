import csv
import math

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from normlab.results.reading import read_curves
from normlab.results.series import CURVES_FILE, Point, append_curves
from normlab.results.sweep import Record


def rows(folder) -> list[dict[str, str]]:
    with (folder / CURVES_FILE).open(newline="") as file:
        return list(csv.DictReader(file))


def point(epoch: int, **metrics: float) -> Point:
    return Point(epoch, 10 * epoch, 0.0, {name.replace("_", "/", 1): value for name, value in metrics.items()})


def test_header_is_written_once(tmp_path):
    append_curves(tmp_path, [point(1, val_loss=0.5)])
    append_curves(tmp_path, [])
    append_curves(tmp_path, [point(2, val_loss=0.25), point(3, val_loss=0.125)])

    assert (tmp_path / CURVES_FILE).read_text().splitlines() == [
        "epoch,step,split,metric,value",
        "1,10,val,loss,0.5",
        "2,20,val,loss,0.25",
        "3,30,val,loss,0.125",
    ]


def test_no_points_write_only_the_header(tmp_path):
    append_curves(tmp_path, [])

    assert (tmp_path / CURVES_FILE).read_text() == "epoch,step,split,metric,value\n"


def test_each_metric_has_a_row_with_its_split(tmp_path):
    metrics = {"train/loss": 1.0, "val/r2": 0.5, "activation/hidden1/before_mean": -2.0}
    append_curves(tmp_path, [Point(4, 32, 0.0, metrics)])

    assert [tuple(row.values()) for row in rows(tmp_path)] == [
        ("4", "32", "train", "loss", "1.0"),
        ("4", "32", "val", "r2", "0.5"),
        ("4", "32", "activation", "hidden1/before_mean", "-2.0"),
    ]


@pytest.mark.parametrize(
    "name", ["val/a,b", 'val/"quoted"', "val/two\nlines", "val/a=b/c", "val/NA", "val/é", "val/"]
)
def test_metric_names_round_trip(tmp_path, name):
    append_curves(tmp_path, [Point(1, 10, 0.0, {name: 0.5, "val/loss": 0.25})])
    assert read_curves([Record(tmp_path, None)])["metric"].tolist() == [name, "val/loss"]
    assert [f"{row['split']}/{row['metric']}" for row in rows(tmp_path)] == [name, "val/loss"]


def test_row_cut_inside_quoted_name_is_dropped(tmp_path):
    append_curves(tmp_path, [Point(1, 10, 0.0, {"val/loss": 0.25, "val/two\nlines": 0.5})])
    text = (tmp_path / CURVES_FILE).read_text()
    (tmp_path / CURVES_FILE).write_text(text[: text.index("lines")])

    assert read_curves([Record(tmp_path, None)])["metric"].tolist() == ["val/loss"]


@given(values=st.lists(st.floats(), min_size=1, max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
def test_numbers_round_trip_bit_for_bit(tmp_path, values):
    (tmp_path / CURVES_FILE).unlink(missing_ok=True)
    append_curves(tmp_path, [point(epoch, val_loss=value) for epoch, value in enumerate(values)])

    read = [float(row["value"]) for row in rows(tmp_path)]
    assert [value.hex() for value in read] == [value.hex() for value in values]


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_pandas_reads_non_finite_numbers(tmp_path, value):
    import pandas as pd

    append_curves(tmp_path, [point(1, val_loss=value)])

    assert pd.read_csv(tmp_path / CURVES_FILE)["value"].item() == pytest.approx(value, nan_ok=True)
