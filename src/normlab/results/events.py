"""TensorBoard event files of runs, written in batches, with hyperparameters; see :class:`EventFile`.

``torch.utils.tensorboard`` starts a thread and a queue for every run and serializes each scalar separately; here
one write covers the scalars of many epochs. TensorBoard's RecordWriter writes the same bytes, but its pure-Python
checksums take most of a second for 200 short runs.
"""

import hashlib
import itertools
import json
import os
import socket
import struct
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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

from normlab.config.frozen import config_leaves, without_report_keys
from normlab.results.curves import Point
from normlab.results.probes import ProbeRecord

EVENT_FILES = "events.out.tfevents.*.normlab"
"""Glob pattern of normlab's own event files, which it may replace."""
RUN_SUFFIX, SWEEP_SUFFIX = "normlab", "closed.normlab"
"""File name suffixes: of the event file written during training, and of the one added when the sweep ends."""
HParam = bool | int | float | str
BINS = 30
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_HEADER = struct.Struct(">16xIIxB")
"""Width, height and colour type in the header of a PNG."""
PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
"""Channels per pixel for each colour type of PNG."""
_numbers = itertools.count()
GROUPS = ("data", "net", "model", "optimizer", "scheduler")


def tfrecord(data: bytes) -> bytes:
    """Encode data as a TFRecord: length, checksum of the length, data, checksum of the data."""
    length = struct.pack("<Q", len(data))
    return length + masked_crc32c(length) + data + masked_crc32c(data)


def masked_crc32c(data: bytes) -> bytes:
    """Return the masked checksum ``((c >> 15 | c << 17) + 0xa282ead8) mod 2³²``, where c is the CRC-32C."""
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


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
        counts = np.array([x.size]) if narrow else np.histogram(x, edges)[0]
        return HistogramProto(
            min=x.min(),
            max=x.max(),
            num=x.size,
            sum=x.sum(),
            sum_squares=x @ x,
            bucket_limit=[x.max()] if narrow else edges[1:].tolist(),
            bucket=counts.tolist(),
        )


def event_of(point: Point) -> Event:
    """Convert a point to a TensorBoard event with one scalar per metric.

    >>> event_of(Point(1, 5, 0.0, {"loss": 0.5})).summary.value[0].simple_value
    0.5
    """
    event = Event(step=point.step, wall_time=point.time)
    # Adding in place avoids protobuf's copy of separately built messages, which doubles the time.
    add = event.summary.value.add
    for name, value in point.metrics.items():
        add(tag=name, simple_value=value)
    return event


class EventFile:
    """A TensorBoard event file, open only during writes, so that thousands may be in use at once."""

    def __init__(self, folder: Path, kind: str = RUN_SUFFIX) -> None:
        host = socket.gethostname()
        name = f"events.out.tfevents.{int(time.time())}.{host}.{os.getpid()}.{next(_numbers)}.{kind}"
        self.path = folder / name
        self._write([Event(wall_time=time.time(), file_version="brain.Event:2")])

    def _write(self, events: Iterable[Event]) -> None:
        self._append(b"".join(tfrecord(event.SerializeToString()) for event in events))

    def _append(self, records: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(records)

    def scalars(self, points: Iterable[Point]) -> None:
        """Write the metrics of each point at its step."""
        self._write(map(event_of, points))

    def histograms(self, records: Iterable[ProbeRecord]) -> None:
        """Write the histograms of each probe record at its step; non-finite values are dropped."""
        finite = ((record, name, x[np.isfinite(x)]) for record in records for name, x in record.histograms.items())
        self._write(
            Event(
                step=record.step,
                wall_time=record.time,
                summary=Summary(value=[Summary.Value(tag=record.tag(name), histo=histogram(values))]),
            )
            for record, name, values in finite
            if values.size
        )

    def image(self, tag: str, png: bytes, step: int = 0) -> None:
        """Write an image for TensorBoard's Images tab.

        Raises:
            ValueError: if ``png`` is not a PNG.
        """
        if png[:8] != PNG_SIGNATURE or len(png) < PNG_HEADER.size:
            raise ValueError(f"the image {tag} must be a PNG, got bytes that begin with {png[:8]!r}")
        width, height, kind = PNG_HEADER.unpack_from(png)
        image = Summary.Image(
            width=width, height=height, colorspace=PNG_CHANNELS.get(kind, 3), encoded_image_string=png
        )
        value = Summary.Value(tag=tag, image=image)
        self._write([Event(step=step, wall_time=time.time(), summary=Summary(value=[value]))])

    def text(self, tag: str, markdown: str) -> None:
        """Write Markdown for TensorBoard's Text tab."""
        plugin = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        tensor = TensorProto(dtype="DT_STRING", string_val=[markdown.encode()])
        value = Summary.Value(tag=f"{tag}/text_summary", metadata=plugin, tensor=tensor)
        self._summary(Summary(value=[value]))

    def start(self, hparams: dict[str, HParam], group: str) -> None:
        """Write a run's hyperparameters and its HParams group; the HParams tab averages over a group."""
        self._summary(summary_v2.hparams_pb(hparams, trial_id=group))

    def end(self, *, succeeded: bool) -> None:
        """Write the end time and the status of the run for the HParams tab."""
        status = api_pb2.STATUS_SUCCESS if succeeded else api_pb2.STATUS_FAILURE
        end = SessionEndInfo(status=status, end_time_secs=time.time())
        self._hparams(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end))

    def experiment(self, hparams: Iterable[str], metrics: Mapping[str, str], varied: Collection[str] = ()) -> None:
        """Write the columns of the HParams tab for all runs below this folder.

        Args:
            hparams: names of the hyperparameters; TensorBoard lists the ``varied`` ones first.
            metrics: column title for each scalar tag, whose last value is shown.
            varied: the hyperparameters that differ between runs.
        """
        infos = [api_pb2.HParamInfo(name=name, differs=name in varied) for name in hparams]
        metric_infos = [summary_v2.Metric(tag, display_name=name).as_proto() for tag, name in metrics.items()]
        columns = api_pb2.Experiment(hparam_infos=infos, metric_infos=metric_infos)
        self._hparams(metadata.EXPERIMENT_TAG, HParamsPluginData(experiment=columns))

    def layout(self, layout: Layout) -> None:
        """Write the chart layout of the Custom Scalars tab for all runs below this folder."""
        tensor = TensorProto(dtype="DT_STRING", string_val=[layout.SerializeToString()])
        plugin = custom_scalars.create_summary_metadata()
        tag = custom_scalars.CONFIG_SUMMARY_TAG
        self._summary(Summary(value=[Summary.Value(tag=tag, metadata=plugin, tensor=tensor)]))

    def _hparams(self, tag: str, content: HParamsPluginData) -> None:
        plugin = metadata.create_summary_metadata(content)
        self._summary(Summary(value=[Summary.Value(tag=tag, metadata=plugin, tensor=metadata.NULL_TENSOR)]))

    def _summary(self, summary: Summary) -> None:
        self._write([Event(wall_time=time.time(), summary=summary)])


class _BufferedEventFile(EventFile):
    """An event file that keeps its records in memory until :func:`replace_event_file` writes them."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.records: list[bytes] = []
        super().__init__(folder, kind)

    def _append(self, records: bytes) -> None:
        self.records.append(records)


@contextmanager
def replace_event_file(folder: Path, kind: str = RUN_SUFFIX) -> Iterator[EventFile]:
    """Context manager for an event file that replaces the files with suffix ``kind`` on exit.

    Readers never see a partial file. If the block raises, the folder is unchanged.
    """
    file = _BufferedEventFile(folder, kind)
    yield file
    folder.mkdir(parents=True, exist_ok=True)
    earlier = list(folder.glob(EVENT_FILES.replace(RUN_SUFFIX, kind)))
    # TensorBoard reads every file with tfevents in its name, so the temporary name must not contain it.
    temporary = folder / f".{os.getpid()}.{kind}"
    temporary.write_bytes(b"".join(file.records))
    temporary.replace(file.path)
    for path in earlier:
        path.unlink()


def flatten_hparams(config: dict[str, Any], choices: dict[str, str]) -> dict[str, bool | int | float | str]:
    """Return the group choices and all leaves of a configuration by dotted key, as HParams values.

    Lists become JSON strings; null values and keys with a leading underscore are left out.

    >>> flatten_hparams({"seed": 0, "net": {"_target_": "x.MLP", "hidden": [64]}}, {"model": "bn"})
    {'model': 'bn', 'seed': 0, 'net.hidden': '[64]'}
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
