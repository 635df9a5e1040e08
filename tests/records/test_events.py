import io
import math
import os
import subprocess
import sys
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.summary.writer.record_writer import RecordWriter

from normlab.records.curves import Point
from normlab.records.events import OURS, EventFile, record


def read(folder) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def hparams_content(folder, tag: str) -> bytes:
    return read(folder).PluginTagToContent(metadata.PLUGIN_NAME)[tag]


def test_scalars_are_read_back_at_their_steps_and_times(tmp_path):
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


def test_records_are_the_bytes_that_tensorboard_s_own_writer_writes():
    written = io.BytesIO()
    writer = RecordWriter(written)
    contents = [b"", b"a", bytes(range(256)) * 5, "β".encode()]
    for content in contents:
        writer.write(content)
    assert b"".join(map(record, contents)) == written.getvalue()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300])
def test_a_diverging_loss_is_written_too(tmp_path, value):
    EventFile(tmp_path).scalars([Point(1, 1, 0.0, {"val/loss": value})])

    (event,) = read(tmp_path).Scalars("val/loss")
    assert event.value == pytest.approx(math.inf if value == 1e300 else value, nan_ok=True)


def test_a_text_is_read_back_in_the_text_tab(tmp_path):
    EventFile(tmp_path).text("config", "    lr: 0.1\n    name: β")

    events = read(tmp_path)
    (event,) = events.Tensors("config/text_summary")
    assert event.tensor_proto.string_val[0].decode() == "    lr: 0.1\n    name: β"
    assert events.SummaryMetadata("config/text_summary").plugin_data.plugin_name == "text"


def test_hyperparameters_start_a_session_in_the_group_of_the_run(tmp_path):
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
def test_the_end_of_a_session_has_its_status_and_time(tmp_path, succeeded, status):
    EventFile(tmp_path).end(succeeded=succeeded)

    content = hparams_content(tmp_path, metadata.SESSION_END_INFO_TAG)
    session = metadata.parse_session_end_info_plugin_data(content)
    assert session.status == status
    assert abs(session.end_time_secs - time.time()) < 60


def test_an_experiment_has_the_columns_it_was_given_in_order(tmp_path):
    EventFile(tmp_path).experiment(["model", "optimizer.lr"], ["val/loss", "test/loss"])

    experiment = metadata.parse_experiment_plugin_data(hparams_content(tmp_path, metadata.EXPERIMENT_TAG))
    assert [info.name for info in experiment.hparam_infos] == ["model", "optimizer.lr"]
    assert [info.name.tag for info in experiment.metric_infos] == ["val/loss", "test/loss"]


def test_all_parts_of_a_run_live_in_one_file(tmp_path):
    file = EventFile(tmp_path)
    file.start({"lr": 0.1}, "group")
    file.scalars([Point(1, 5, 0.0, {"val/loss": 0.5})])
    file.text("config", "x")
    file.end(succeeded=True)

    assert list(tmp_path.glob(OURS)) == list(tmp_path.iterdir())
    tags = read(tmp_path).Tags()
    assert tags["scalars"] == ["val/loss"]
    assert len(tags["tensors"]) == 3


def test_what_was_written_can_be_read_before_the_run_ends(tmp_path):
    file = EventFile(tmp_path)
    file.scalars([Point(1, 5, 0.0, {"val/loss": 0.5})])
    events = read(tmp_path)
    file.scalars([Point(2, 10, 0.0, {"val/loss": 0.25})])

    assert [event.step for event in events.Scalars("val/loss")] == [5]
    assert [event.step for event in events.Reload().Scalars("val/loss")] == [5, 10]


def test_files_made_in_the_same_second_have_names_of_their_own(tmp_path):
    files = {EventFile(tmp_path).path for _ in range(20)}

    assert len(files) == 20
    assert all(path.is_file() for path in files)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open files are counted in /proc")
def test_no_file_stays_open(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    files = [EventFile(tmp_path) for _ in range(30)]
    for file in files:
        file.scalars([Point(1, 1, 0.0, {"val/loss": 0.5})])

    assert len(os.listdir("/proc/self/fd")) == before


def test_writing_asks_neither_for_tensorflow_nor_for_torch(tmp_path):
    program = """
import sys
from pathlib import Path

class Watch:
    def find_spec(self, name, path=None, target=None):
        assert name.partition(".")[0] not in ("tensorflow", "torch"), name

sys.meta_path.insert(0, Watch())
from normlab.records.curves import Point
from normlab.records.events import EventFile

file = EventFile(Path(sys.argv[1]))
file.start({"lr": 0.1}, "group")
file.experiment(["lr"], ["val/loss"])
file.scalars([Point(1, 5, 0.0, {"val/loss": 0.5})])
file.text("config", "x")
file.end(succeeded=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")
