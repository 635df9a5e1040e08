import io
import itertools
import math
import os
import subprocess
import sys
import time
from contextlib import closing

import numpy as np
import PIL
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.custom_scalar.layout_pb2 import Category, Layout
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.summary.writer.record_writer import RecordWriter

from normlab.results.events import (
    EVENT_FILES,
    RUN_SUFFIX,
    SWEEP_SUFFIX,
    BatchWriter,
    histograms,
    hparams_columns,
    image,
    layout_event,
    replace_event_file,
    run_end,
    run_start,
    scalars,
    tag_of,
    text,
    tfrecord,
)
from normlab.results.series import Point, ProbeRecord


def event_writer(folder, kind: str):
    """Return the writer of a run of module=lightning or of a population."""
    if kind == "population":
        return BatchWriter(folder)
    return EventFileWriter(str(folder), filename_suffix=f".{RUN_SUFFIX}")


@pytest.fixture(params=["alone", "population"])
def write(request, tmp_path):
    """Return a function that writes events into ``tmp_path`` with the writer of a run."""

    def write(*events):
        with closing(event_writer(tmp_path, request.param)) as writer:
            for event in events:
                writer.add_event(event)

    return write


def read(folder) -> EventAccumulator:
    return EventAccumulator(
        str(folder), size_guidance=dict.fromkeys(("scalars", "tensors", "histograms", "images"), 0)
    ).Reload()


def hparams_content(folder, tag: str) -> bytes:
    return read(folder).PluginTagToContent(metadata.PLUGIN_NAME)[tag]


def loss(epoch, value=0.5) -> Event:
    return scalars(Point(epoch, 5 * epoch, 100.5 + epoch, {"val/loss": value}))


def test_scalars_round_trip(tmp_path, write):
    write(
        scalars(Point(1, 5, 100.5, {"val/loss": 0.5, "train/lr": 0.25})),
        scalars(Point(2, 10, 101.5, {"val/loss": 0.125})),
    )

    events = read(tmp_path)
    assert events.Tags()["scalars"] == ["val/loss", "train/lr"]
    assert [(event.wall_time, event.step, event.value) for event in events.Scalars("val/loss")] == [
        (100.5, 5, 0.5),
        (101.5, 10, 0.125),
    ]
    assert [event.value for event in events.Scalars("train/lr")] == [0.25]


def test_tags_sort_losses_first_and_activations_last():
    names = ["activation/a", "figures/a", "probe/a/batch/b", "quartiles/val/loss/upper", "table/best/val/loss"]
    names += ["test/loss", "train/loss", "train/lr", "train_eval/loss", "val/acc", "val/loss"]
    tags = sorted(map(tag_of, names))
    assert tags[:4] == ["train/loss", "train/lr", "val/acc", "val/loss"]
    assert tags[-1] == "~val_activation/a"
    assert len(set(tags)) == len(names)


@pytest.mark.parametrize("name", ["best/val/loss", "val/mse", "test/mse", "train_eval/mse"])
def test_repeated_losses_are_left_out(name):
    event = scalars(Point(1, 5, 0.0, {name: 1.0, "val/loss": 1.0}))
    assert [value.tag for value in event.summary.value] == ["val/loss"]


def test_records_equal_tensorboards_bytes():
    written = io.BytesIO()
    writer = RecordWriter(written)
    contents = [b"", b"a", bytes(range(256)) * 5, "β".encode()]
    for content in contents:
        writer.write(content)
    assert b"".join(map(tfrecord, contents)) == written.getvalue()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300])
def test_non_finite_scalars_round_trip(tmp_path, write, value):
    write(loss(1, value))

    (event,) = read(tmp_path).Scalars("val/loss")
    assert event.value == pytest.approx(math.inf if value == 1e300 else value, nan_ok=True)


def test_text_round_trips(tmp_path, write):
    write(text("config", "    lr: 0.1\n    name: β"))

    events = read(tmp_path)
    (event,) = events.Tensors("config/text_summary")
    assert event.tensor_proto.string_val[0].decode() == "    lr: 0.1\n    name: β"
    assert events.SummaryMetadata("config/text_summary").plugin_data.plugin_name == "text"


def test_start_has_hyperparameters_and_group(tmp_path, write):
    write(run_start({"model": "bn", "optimizer.lr": 0.1, "standardize": True, "net.hidden": "[64]"}, "bn-1"))

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
def test_end_has_status_and_time(tmp_path, write, succeeded, status):
    write(run_end(succeeded))

    content = hparams_content(tmp_path, metadata.SESSION_END_INFO_TAG)
    session = metadata.parse_session_end_info_plugin_data(content)
    assert session.status == status
    assert abs(session.end_time_secs - time.time()) < 60


def test_hparams_columns_keep_their_order(tmp_path):
    metrics = {"table/best": "best", "test/loss": "test/loss"}
    replace_event_file(tmp_path, [hparams_columns(["model", "optimizer.lr"], metrics, varied=["optimizer.lr"])])

    experiment = metadata.parse_experiment_plugin_data(hparams_content(tmp_path, metadata.EXPERIMENT_TAG))
    assert [(info.name, info.differs) for info in experiment.hparam_infos] == [
        ("model", False),
        ("optimizer.lr", True),
    ]
    assert {info.name.tag: info.display_name for info in experiment.metric_infos} == metrics


def test_layout_round_trips(tmp_path):
    layout = Layout(category=[Category(title="losses", closed=True)])
    replace_event_file(tmp_path, [layout_event(layout)])

    events = read(tmp_path)
    (event,) = events.Tensors("custom_scalars__config__")
    assert Layout.FromString(event.tensor_proto.string_val[0]) == layout
    assert events.SummaryMetadata("custom_scalars__config__").plugin_data.plugin_name == "custom_scalars"


def test_replacing_keeps_the_run_file(tmp_path, write):
    write(text("config", "the run's own"))
    [own] = tmp_path.iterdir()
    seen = set()
    for value in (0.5, 0.25):
        replace_event_file(tmp_path, [loss(1, value), loss(2, value)], SWEEP_SUFFIX)
        [closed] = set(tmp_path.iterdir()) - {own}
        assert closed.match(EVENT_FILES)
        assert closed.name.endswith(SWEEP_SUFFIX)
        assert [event.value for event in read(tmp_path).Scalars("val/loss")] == [value, value]
        assert closed not in seen
        seen.add(closed)
    assert read(tmp_path).Tensors("config/text_summary")


def test_failed_replacement_keeps_the_old_file(tmp_path):
    replace_event_file(tmp_path / "arm", [loss(1)])
    before = list((tmp_path / "arm").iterdir())

    def failing():
        yield loss(1, 0.25)
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        replace_event_file(tmp_path / "arm", failing())
    assert list((tmp_path / "arm").iterdir()) == before


def test_a_run_writes_one_file(tmp_path, write):
    write(run_start({"lr": 0.1}, "group"), loss(1), text("config", "x"), run_end(succeeded=True))

    assert list(tmp_path.glob(EVENT_FILES)) == list(tmp_path.iterdir())
    tags = read(tmp_path).Tags()
    assert tags["scalars"] == ["val/loss"]
    assert len(tags["tensors"]) == 3


@pytest.mark.parametrize("kind", ["alone", "population"])
def test_events_are_readable_during_the_run(tmp_path, kind):
    with closing(event_writer(tmp_path, kind)) as writer:
        writer.add_event(loss(1))
        writer.flush()
        events = read(tmp_path)
        writer.add_event(loss(2))
        writer.flush()

        assert [event.step for event in events.Scalars("val/loss")] == [5]
        assert [event.step for event in events.Reload().Scalars("val/loss")] == [5, 10]


def test_a_file_is_continued(tmp_path):
    with closing(BatchWriter(tmp_path)) as first:
        first.add_event(loss(1))
    with closing(BatchWriter(tmp_path, first.path)) as second:
        second.add_event(loss(2))
    assert [*tmp_path.iterdir()] == [first.path]
    assert [event.step for event in read(tmp_path).Scalars("val/loss")] == [5, 10]


def test_files_of_the_same_second_have_unique_names(tmp_path):
    files = {BatchWriter(tmp_path).path for _ in range(20)}

    assert len(files) == 20
    assert all(path.is_file() for path in files)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open files are counted in /proc")
def test_files_of_populations_are_closed_after_each_write(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    writers = [BatchWriter(tmp_path) for _ in range(30)]
    for writer in writers:
        writer.add_event(loss(1))
        writer.flush()

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
from normlab.results.events import BatchWriter, hparams_columns, layout_event, run_end, run_start, scalars, text
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

writer = BatchWriter(Path(sys.argv[1]))
writer.add_event(layout_event(Layout()))
writer.add_event(run_start({"lr": 0.1}, "group"))
writer.add_event(hparams_columns(["lr"], {"val/loss": "loss"}))
writer.add_event(scalars(Point(1, 5, 0.0, {"val/loss": 0.5})))
writer.add_event(text("config", "x"))
writer.add_event(run_end(succeeded=True))
writer.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")


def record_of(step, **histograms):
    arrays = {name: np.array(values) for name, values in histograms.items()}
    return ProbeRecord(step, step, 100.5, "activations", "batch", {}, histograms=arrays)


def test_histogram_round_trips(tmp_path, write):
    values = np.random.default_rng(0).normal(size=(4, 50))
    write(*map(histograms, [record_of(5, before=values), record_of(10, before=values + 1, after=[1.0])]))

    events = read(tmp_path)
    assert events.Tags()["histograms"] == ["~probe/activations/batch/before", "~probe/activations/batch/after"]
    first, second = events.Histograms("~probe/activations/batch/before")
    assert (first.wall_time, first.step, second.step) == (100.5, 5, 10)
    seen = first.histogram_value
    assert (seen.min, seen.max, seen.num) == (values.min(), values.max(), 200)
    assert (seen.sum, seen.sum_squares) == (pytest.approx(values.sum()), pytest.approx((values**2).sum()))
    edges = np.linspace(values.min(), values.max(), 31)
    inside = [((values >= low) & (values < high)).sum() for low, high in itertools.pairwise(edges)]
    assert seen.bucket == [*inside[:-1], inside[-1] + 1]
    assert seen.bucket_limit == pytest.approx(edges[1:])


@pytest.mark.parametrize("values", [[2.0], [2.0, 2.0], [1.0, np.nextafter(1.0, 2.0)], [-1.7e308, 1.7e308], [0.0]])
def test_degenerate_values_fill_one_bin(tmp_path, write, values):
    write(histograms(record_of(1, x=values)))

    (event,) = read(tmp_path).Histograms("~probe/activations/batch/x")
    assert event.histogram_value.bucket == [len(values)]
    assert event.histogram_value.bucket_limit == [max(values)]


def test_histogram_drops_non_finite_values(tmp_path, write):
    write(histograms(record_of(1, x=[math.nan, 1.0, math.inf, 3.0], y=[math.nan])))

    events = read(tmp_path)
    assert events.Tags()["histograms"] == ["~probe/activations/batch/x"]
    (event,) = events.Histograms("~probe/activations/batch/x")
    assert (event.histogram_value.num, event.histogram_value.max) == (2, 3.0)


@pytest.mark.parametrize(("kind", "channels"), [("RGB", 3), ("RGBA", 4), ("L", 1)])
def test_image_round_trips(tmp_path, kind, channels):
    content = io.BytesIO()
    Image.new(kind, (7, 4)).save(content, "png")
    replace_event_file(tmp_path, [image("figures/curves", content.getvalue())])

    events = read(tmp_path)
    (event,) = events.Images("~figures/curves")
    assert (event.width, event.height) == (7, 4)
    assert event.encoded_image_string == content.getvalue()
    *_, raw = RawEventFileLoader(str(next(tmp_path.glob(EVENT_FILES)))).Load()
    assert Event.FromString(raw).summary.value[0].image.colorspace == channels


def test_file_that_is_no_image_raises():
    with pytest.raises(PIL.UnidentifiedImageError):
        image("figures/curves", b"GIF89a")
