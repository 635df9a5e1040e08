"""TensorBoard event files: their events, hyperparameters and tags, and the writer of a population's runs.

The runs of a population are written with :class:`BatchWriter`, a run that trains alone and the end of a sweep with
TensorBoard's EventFileWriter (:func:`replace_event_file`).
"""

import hashlib
import io
import itertools
import json
import os
import socket
import struct
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import google_crc32c
import numpy as np
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.histogram_pb2 import HistogramProto
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.plugins.custom_scalar import metadata as custom_scalars
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import api_pb2, metadata, summary_v2
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from tensorboard.plugins.text import metadata as texts
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from normlab.config.frozen import config_leaves, without_report_keys
from normlab.results.result import naming
from normlab.results.series import Point, ProbeRecord

RUN_SUFFIX, SWEEP_SUFFIX = "normlab", "closed.normlab"
"""File name suffixes: of the event file written during training, and of the one added when the sweep ends."""
EVENT_FILES = f"events.out.tfevents.*.{RUN_SUFFIX}"
"""Glob pattern of normlab's own event files, which it may replace."""
HParam = bool | float | str
BINS = 30
GROUPS = ("data", "net", "model", "optimizer", "scheduler")
_numbers = itertools.count()


@cache
def tag_of(name: str) -> str:
    """Return the TensorBoard tag of a quantity, empty for a quantity that repeats a loss.

    TensorBoard sorts tags by name and opens the first two groups. These are ``train/`` and ``val/``, because the
    other tags begin with ``~``, which sorts after the letters. Activations are measured on the validation split.
    The loss of regression is the mse, and the best loss is a point of its curve.

    >>> [tag_of(name) for name in ("val/loss", "test/loss", "activation/hidden1/after_std", "val/mse")]
    ['val/loss', '~test/loss', '~val_activation/hidden1/after_std', '']
    """
    group, _, rest = name.partition("/")
    if group == "best" or rest == "mse":
        return ""
    return name if group in ("train", "val") else f"~{'val_' if group == 'activation' else ''}{name}"


def scalars(point: Point, tag_of: Callable[[str], str] = tag_of) -> Event:
    """Return an event with the metrics of a point; those with an empty tag are left out.

    >>> scalars(Point(1, 5, 0.0, {"train/loss": 0.5})).summary.value[0].simple_value
    0.5
    """
    event = Event(step=point.step, wall_time=point.time)
    # Adding in place avoids protobuf's copy of separately built messages, which doubles the time.
    add = event.summary.value.add
    for name, value in point.metrics.items():
        if tag := tag_of(name):
            add(tag=tag, simple_value=value)
    return event


def histograms(record: ProbeRecord) -> Event:
    """Return an event with the histograms of a probe record; non-finite values are dropped."""
    finite = {name: values[np.isfinite(values)] for name, values in record.histograms.items()}
    values = [
        Summary.Value(tag=tag_of(record.tag(name)), histo=histogram(x)) for name, x in finite.items() if x.size
    ]
    return Event(step=record.step, wall_time=record.time, summary=Summary(value=values))


def histogram(values: np.ndarray) -> HistogramProto:
    """Return a histogram of finite values, at least one, over ``BINS`` bins of equal width.

    >>> histogram(np.array([1.0, 1.0, 4.0])).bucket[::29], histogram(np.array([2.0])).bucket_limit
    ([2.0, 1.0], [2.0])
    """
    x = np.asarray(values, dtype=float).ravel()
    with np.errstate(over="ignore", invalid="ignore"):
        edges = np.linspace(x.min(), x.max(), BINS + 1)
        # Values that are (nearly) equal, or whose range overflows a double, go into a single bin.
        narrow = not (np.diff(edges) > 0).all()
        return HistogramProto(
            min=x.min(),
            max=x.max(),
            num=x.size,
            sum=x.sum(),
            sum_squares=x @ x,
            bucket_limit=[x.max()] if narrow else edges[1:].tolist(),
            bucket=[x.size] if narrow else np.histogram(x, edges)[0].tolist(),
        )


def image(name: str, picture: bytes) -> Event:
    """Return an event with an encoded image, such as a PNG, for the Images tab.

    Raises:
        PIL.UnidentifiedImageError: if ``picture`` is no image.
    """
    from PIL import Image

    with Image.open(io.BytesIO(picture)) as opened:
        (width, height), channels = opened.size, len(opened.getbands())
    content = Summary.Image(width=width, height=height, colorspace=channels, encoded_image_string=picture)
    return _event(Summary.Value(tag=tag_of(name), image=content))


def text(name: str, markdown: str) -> Event:
    """Return an event with Markdown for the Text tab."""
    return _bytes_event(f"{name}/text_summary", texts.create_summary_metadata("", ""), markdown.encode())


def layout_event(layout: Layout) -> Event:
    """Return an event with the chart layout of the Custom Scalars tab, for all runs below a folder."""
    plugin = custom_scalars.create_summary_metadata()
    return _bytes_event(custom_scalars.CONFIG_SUMMARY_TAG, plugin, layout.SerializeToString())


def run_start(hparams: Mapping[str, HParam], group: str) -> Event:
    """Return an event with a run's hyperparameters and its HParams group, over which the HParams tab averages."""
    return _event(*summary_v2.hparams_pb(dict(hparams), trial_id=group).value)


def run_end(succeeded: bool) -> Event:
    """Return an event with the end time and the status of a run for the HParams tab."""
    status = api_pb2.STATUS_SUCCESS if succeeded else api_pb2.STATUS_FAILURE
    end = SessionEndInfo(status=status, end_time_secs=time.time())
    return _hparams_event(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end))


def hparams_columns(hparams: Iterable[str], metrics: Mapping[str, str], varied: Collection[str] = ()) -> Event:
    """Return an event with the columns of the HParams tab for all runs below a folder.

    Args:
        hparams: names of the hyperparameters; TensorBoard lists the ``varied`` ones first.
        metrics: column title for each scalar tag, whose last value is shown.
        varied: the hyperparameters that differ between runs.
    """
    infos = [api_pb2.HParamInfo(name=name, differs=name in varied) for name in hparams]
    metric_infos = [summary_v2.Metric(tag, display_name=name).as_proto() for tag, name in metrics.items()]
    columns = api_pb2.Experiment(hparam_infos=infos, metric_infos=metric_infos)
    return _hparams_event(metadata.EXPERIMENT_TAG, HParamsPluginData(experiment=columns))


def _hparams_event(tag: str, content: HParamsPluginData) -> Event:
    plugin = metadata.create_summary_metadata(content)
    return _event(Summary.Value(tag=tag, metadata=plugin, tensor=metadata.NULL_TENSOR))


def _bytes_event(tag: str, plugin: SummaryMetadata, content: bytes) -> Event:
    tensor = TensorProto(dtype="DT_STRING", string_val=[content])
    return _event(Summary.Value(tag=tag, metadata=plugin, tensor=tensor))


def _event(*values: Summary.Value) -> Event:
    return Event(wall_time=time.time(), summary=Summary(value=values))


class BatchWriter:
    """A writer like EventFileWriter for many runs at once: no thread, and the file is open only during flushes.

    TensorBoard's writer has a thread and an open file for each run, and its checksums are pure Python.

    Args:
        folder: of the run.
        continued: an event file to which events are appended; by default a new one.
        suffix: of the name of a new file.
    """

    def __init__(self, folder: Path, continued: Path | None = None, suffix: str = RUN_SUFFIX) -> None:
        # TensorBoard reads the files of a folder in the order of their names, and two may be made in one second.
        name = f"{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{next(_numbers):06d}"
        self.path = continued or folder / f"events.out.tfevents.{name}.{suffix}"
        self.records: list[bytes] = []
        if continued is None:
            self.add_event(Event(wall_time=time.time(), file_version="brain.Event:2"))
            self.flush()

    def add_event(self, event: Event) -> None:
        """Keep an event until the next flush."""
        self.records.append(tfrecord(event.SerializeToString()))

    def flush(self) -> None:
        """Append the events to the file in one write."""
        with naming(self.path), self.path.open("ab") as file:
            file.write(b"".join(self.records))
        self.records.clear()

    close = flush


def tfrecord(data: bytes) -> bytes:
    """Encode data as a TFRecord: length, checksum of the length, data, checksum of the data.

    A checksum is ``((c >> 15 | c << 17) + 0xa282ead8) mod 2³²``, where c is the CRC-32C.
    """
    length = struct.pack("<Q", len(data))
    crcs = map(google_crc32c.value, (length, data))
    of_length, of_data = (struct.pack("<I", ((c >> 15 | c << 17) + 0xA282EAD8) & 0xFFFFFFFF) for c in crcs)
    return length + of_length + data + of_data


EventWriter: TypeAlias = EventFileWriter | BatchWriter


def replace_event_file(folder: Path, events: Iterable[Event], suffix: str = RUN_SUFFIX) -> None:
    """Write an event file that replaces those with the same suffix; if ``events`` raises, nothing changes."""
    new, earlier = list(events), list(folder.glob(EVENT_FILES.replace(RUN_SUFFIX, suffix)))
    folder.mkdir(parents=True, exist_ok=True)
    writer = BatchWriter(folder, suffix=suffix)
    for event in new:
        writer.add_event(event)
    writer.close()
    for path in earlier:
        path.unlink()


def flatten_hparams(config: dict[str, Any], choices: dict[str, str]) -> dict[str, HParam]:
    """Return the group choices and all leaves of a configuration by dotted key, as HParams values.

    Whole numbers become strings, because TensorBoard shows the number 8 as 8.0000. Lists become JSON strings;
    null values and keys with a leading underscore are left out.

    >>> flatten_hparams({"seed": 0, "net": {"_target_": "x.MLP", "hidden": [64]}}, {"model": "bn"})
    {'model': 'bn', 'seed': '0', 'net.hidden': '[64]'}
    """
    chosen: dict[str, HParam] = {group: choices[group] for group in GROUPS if group in choices}
    shown = {
        key: value
        for key, value in config_leaves(config)
        if value is not None and not key.rpartition(".")[2].startswith("_")
    }
    return chosen | {
        key: value if isinstance(value, HParam) else json.dumps(value) for key, value in shown.items()
    }


def hparam_group(config: dict[str, Any], choices: dict[str, str]) -> str:
    """Return the HParams group of a run, equal for runs that differ only in the seed.

    ``config`` has unresolved interpolations, so that values derived from the seed are equal too.

    >>> one, two = ({"seed": seed, "data": {"seed": "${seed}"}} for seed in (0, 1))
    >>> hparam_group(one, {"model": "bn"}) == hparam_group(two, {"model": "bn"})
    True
    """
    seedless = {key: value for key, value in without_report_keys(config).items() if key != "seed"}
    digest = hashlib.sha256(json.dumps([seedless, choices], sort_keys=True, default=str).encode()).hexdigest()
    return f"{choices.get('model', 'run')}-{digest[:8]}"
