import io
import itertools
import math
import os
import subprocess
import sys
import time
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.custom_scalar.layout_pb2 import Category, Layout
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.summary.writer.record_writer import RecordWriter

from normlab.results.events import EVENT_FILES, SWEEP_SUFFIX, EventFile, replace_event_file, tfrecord
from normlab.results.series import Point, ProbeRecord


def read(folder) -> EventAccumulator:
    return EventAccumulator(
        str(folder), size_guidance=dict.fromkeys(("scalars", "tensors", "histograms", "images"), 0)
    ).Reload()


def hparams_content(folder, tag: str) -> bytes:
    return read(folder).PluginTagToContent(metadata.PLUGIN_NAME)[tag]


def test_scalars_round_trip(tmp_path):
    file = EventFile(tmp_path)
    file.scalars(
        [Point(1, 5, 100.5, {"val/loss": 0.5, "train/lr": 0.25}), Point(2, 10, 101.5, {"val/loss": 0.125})]
    )
    file.scalars([Point(3, 15, 102.5, {"val/loss": 4.0})])

    events = read(tmp_path)
    assert events.Tags()["scalars"] == ["val/loss", "train/lr"]
    assert [(event.wall_time, event.step, event.value) for event in events.Scalars("val/loss")] == [
        (100.5, 5, 0.5),
        (101.5, 10, 0.125),
        (102.5, 15, 4.0),
    ]
    assert [event.value for event in events.Scalars("train/lr")] == [0.25]


def test_records_equal_tensorboards_bytes():
    written = io.BytesIO()
    writer = RecordWriter(written)
    contents = [b"", b"a", bytes(range(256)) * 5, "β".encode()]
    for content in contents:
        writer.write(content)
    assert b"".join(map(tfrecord, contents)) == written.getvalue()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300])
def test_non_finite_scalars_round_trip(tmp_path, value):
    EventFile(tmp_path).scalars([Point(1, 1, 0.0, {"val/loss": value})])

    (event,) = read(tmp_path).Scalars("val/loss")
    assert event.value == pytest.approx(math.inf if value == 1e300 else value, nan_ok=True)


def test_text_round_trips(tmp_path):
    EventFile(tmp_path).text("config", "    lr: 0.1\n    name: β")

    events = read(tmp_path)
    (event,) = events.Tensors("config/text_summary")
    assert event.tensor_proto.string_val[0].decode() == "    lr: 0.1\n    name: β"
    assert events.SummaryMetadata("config/text_summary").plugin_data.plugin_name == "text"


def test_start_writes_hyperparameters_and_group(tmp_path):
    EventFile(tmp_path).start(
        {"model": "bn", "optimizer.lr": 0.1, "standardize": True, "net.hidden": "[64]"}, "bn-1"
    )

    content = hparams_content(tmp_path, metadata.SESSION_START_INFO_TAG)
    session = metadata.parse_session_start_info_plugin_data(content)
    assert session.group_name == "bn-1"
    assert session.hparams["model"].string_value == "bn"
    assert session.hparams["optimizer.lr"].number_value == 0.1
    assert session.hparams["standardize"].bool_value is True
    assert session.hparams["net.hidden"].string_value == "[64]"


@pytest.mark.parametrize(
    ("succeeded", "status"), [(True, api_pb2.STATUS_SUCCESS), (False, api_pb2.STATUS_FAILURE)]
)
def test_end_writes_status_and_time(tmp_path, succeeded, status):
    EventFile(tmp_path).end(succeeded=succeeded)

    content = hparams_content(tmp_path, metadata.SESSION_END_INFO_TAG)
    session = metadata.parse_session_end_info_plugin_data(content)
    assert session.status == status
    assert abs(session.end_time_secs - time.time()) < 60


def test_experiment_columns_keep_their_order(tmp_path):
    metrics = {"table/best": "best", "test/loss": "test/loss"}
    EventFile(tmp_path).experiment(["model", "optimizer.lr"], metrics, varied=["optimizer.lr"])

    experiment = metadata.parse_experiment_plugin_data(hparams_content(tmp_path, metadata.EXPERIMENT_TAG))
    assert [(info.name, info.differs) for info in experiment.hparam_infos] == [
        ("model", False),
        ("optimizer.lr", True),
    ]
    assert {info.name.tag: info.display_name for info in experiment.metric_infos} == metrics


def test_layout_round_trips(tmp_path):
    layout = Layout(category=[Category(title="losses", closed=True)])
    EventFile(tmp_path).layout(layout)

    events = read(tmp_path)
    (event,) = events.Tensors("custom_scalars__config__")
    assert Layout.FromString(event.tensor_proto.string_val[0]) == layout
    assert events.SummaryMetadata("custom_scalars__config__").plugin_data.plugin_name == "custom_scalars"


def test_replacing_a_file_is_atomic(tmp_path):
    EventFile(tmp_path).text("config", "the run's own")
    [own] = tmp_path.iterdir()
    for value in (0.5, 0.25):
        with replace_event_file(tmp_path, SWEEP_SUFFIX) as file:
            file.scalars([Point(1, 5, 0.0, {"val/loss": value})])
            before = set(tmp_path.iterdir())
            file.scalars([Point(2, 10, 0.0, {"val/loss": value})])
            assert set(tmp_path.iterdir()) == before
        [closed] = set(tmp_path.glob(EVENT_FILES)) - {own}
        assert closed.name.endswith(SWEEP_SUFFIX)
        assert [event.value for event in read(tmp_path).Scalars("val/loss")] == [value, value]
        assert closed not in before
    assert read(tmp_path).Tensors("config/text_summary")


def test_failed_replacement_keeps_the_old_file(tmp_path):
    with replace_event_file(tmp_path / "arm") as file:
        file.scalars([Point(1, 5, 0.0, {"val/loss": 0.5})])
    before = list((tmp_path / "arm").iterdir())
    with suppress(OSError), replace_event_file(tmp_path / "arm") as file:
        file.scalars([Point(1, 5, 0.0, {"val/loss": 0.25})])
        raise OSError
    assert list((tmp_path / "arm").iterdir()) == before


def test_a_run_writes_one_file(tmp_path):
    file = EventFile(tmp_path)
    file.start({"lr": 0.1}, "group")
    file.scalars([Point(1, 5, 0.0, {"val/loss": 0.5})])
    file.text("config", "x")
    file.end(succeeded=True)

    assert list(tmp_path.glob(EVENT_FILES)) == list(tmp_path.iterdir())
    tags = read(tmp_path).Tags()
    assert tags["scalars"] == ["val/loss"]
    assert len(tags["tensors"]) == 3


def test_events_are_readable_during_the_run(tmp_path):
    file = EventFile(tmp_path)
    file.scalars([Point(1, 5, 0.0, {"val/loss": 0.5})])
    events = read(tmp_path)
    file.scalars([Point(2, 10, 0.0, {"val/loss": 0.25})])

    assert [event.step for event in events.Scalars("val/loss")] == [5]
    assert [event.step for event in events.Reload().Scalars("val/loss")] == [5, 10]


def test_files_of_the_same_second_have_unique_names(tmp_path):
    files = {EventFile(tmp_path).path for _ in range(20)}

    assert len(files) == 20
    assert all(path.is_file() for path in files)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open files are counted in /proc")
def test_files_are_closed_after_each_write(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    files = [EventFile(tmp_path) for _ in range(30)]
    for file in files:
        file.scalars([Point(1, 1, 0.0, {"val/loss": 0.5})])

    assert len(os.listdir("/proc/self/fd")) == before


def test_writing_imports_no_tensorflow_or_torch(tmp_path):
    program = """
import sys
from pathlib import Path

class Watch:
    def find_spec(self, name, path=None, target=None):
        assert name.partition(".")[0] not in ("tensorflow", "torch"), name

sys.meta_path.insert(0, Watch())
from normlab.results.series import Point
from normlab.results.events import EventFile
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

file = EventFile(Path(sys.argv[1]))
file.layout(Layout())
file.start({"lr": 0.1}, "group")
file.experiment(["lr"], {"val/loss": "loss"})
file.scalars([Point(1, 5, 0.0, {"val/loss": 0.5})])
file.text("config", "x")
file.end(succeeded=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")


def record_of(step, **histograms):
    arrays = {name: np.array(values) for name, values in histograms.items()}
    return ProbeRecord(step, step, 100.5, "activations", "batch", {}, histograms=arrays)


def test_histogram_round_trips(tmp_path):
    values = np.random.default_rng(0).normal(size=(4, 50))
    EventFile(tmp_path).histograms([record_of(5, before=values), record_of(10, before=values + 1, after=[1.0])])

    events = read(tmp_path)
    assert events.Tags()["histograms"] == ["probe/activations/batch/before", "probe/activations/batch/after"]
    first, second = events.Histograms("probe/activations/batch/before")
    assert (first.wall_time, first.step, second.step) == (100.5, 5, 10)
    seen = first.histogram_value
    assert (seen.min, seen.max, seen.num) == (values.min(), values.max(), 200)
    assert (seen.sum, seen.sum_squares) == (pytest.approx(values.sum()), pytest.approx((values**2).sum()))
    edges = np.linspace(values.min(), values.max(), 31)
    inside = [((values >= low) & (values < high)).sum() for low, high in itertools.pairwise(edges)]
    assert seen.bucket == [*inside[:-1], inside[-1] + 1]
    assert seen.bucket_limit == pytest.approx(edges[1:])


@pytest.mark.parametrize("values", [[2.0], [2.0, 2.0], [1.0, np.nextafter(1.0, 2.0)], [-1.7e308, 1.7e308], [0.0]])
def test_degenerate_values_fill_one_bin(tmp_path, values):
    EventFile(tmp_path).histograms([record_of(1, x=values)])

    (event,) = read(tmp_path).Histograms("probe/activations/batch/x")
    assert event.histogram_value.bucket == [len(values)]
    assert event.histogram_value.bucket_limit == [max(values)]


def test_histogram_drops_non_finite_values(tmp_path):
    EventFile(tmp_path).histograms([record_of(1, x=[math.nan, 1.0, math.inf, 3.0], y=[math.nan])])

    events = read(tmp_path)
    assert events.Tags()["histograms"] == ["probe/activations/batch/x"]
    (event,) = events.Histograms("probe/activations/batch/x")
    assert (event.histogram_value.num, event.histogram_value.max) == (2, 3.0)


@pytest.mark.parametrize(("kind", "channels"), [("RGB", 3), ("RGBA", 4), ("L", 1)])
def test_image_round_trips(tmp_path, kind, channels):
    content = io.BytesIO()
    Image.new(kind, (7, 4)).save(content, "png")
    EventFile(tmp_path).image("figures/curves", content.getvalue(), step=3)

    events = read(tmp_path)
    (event,) = events.Images("figures/curves")
    assert (event.step, event.width, event.height) == (3, 7, 4)
    assert event.encoded_image_string == content.getvalue()
    *_, raw = RawEventFileLoader(str(next(tmp_path.glob(EVENT_FILES)))).Load()
    assert Event.FromString(raw).summary.value[0].image.colorspace == channels


def test_image_that_is_not_png_raises(tmp_path):
    with pytest.raises(
        ValueError, match="the image figures/curves must be a PNG, got bytes that begin with b'GIF89a'"
    ):
        EventFile(tmp_path).image("figures/curves", b"GIF89a")
