"""TensorBoard event files of runs, written in batches, with their HParams.

``torch.utils.tensorboard`` starts a thread and a queue for every run and serializes each scalar alone; here the
scalars of many epochs go to the file in one write. TensorBoard's own RecordWriter writes the same bytes, but takes
most of a second for the checksums of 200 short runs, which it computes byte by byte in Python.
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

from normlab.results.curves import Point
from normlab.results.folder import computed
from normlab.results.probes import Found

OURS = "events.out.tfevents.*.normlab"
"""The names of the event files that we have written, and may replace."""
KIND, CLOSED = "normlab", "closed.normlab"
"""How such names end; the second is of a file beside a run's own, from when its sweep was closed."""
HParam = bool | int | float | str
BINS = 30
SIGNATURE = b"\x89PNG\r\n\x1a\n"
EVENT_HEADER = struct.Struct(">16xIIxB")
"""Where a PNG has its width, its height and the kind of its colours."""
CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
"""How many numbers make a pixel, by the kind of a PNG's colours."""
_numbers = itertools.count()
GROUPS = ("data", "net", "model", "optimizer", "scheduler")


def record(data: bytes) -> bytes:
    """Return data as a TFRecord: its length and itself, each followed by its masked checksum."""
    length = struct.pack("<Q", len(data))
    return length + masked_crc32c(length) + data + masked_crc32c(data)


def masked_crc32c(data: bytes) -> bytes:
    """Return the checksum ``((c >> 15 | c << 17) + 0xa282ead8) mod 2³²``, for which c is the CRC-32C."""
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def histogram(values: np.ndarray) -> HistogramProto:
    """Return how many of finite values, one at least, are in each of as many equal bins.

    >>> histogram(np.array([1.0, 1.0, 4.0])).bucket[::29], histogram(np.array([2.0])).bucket_limit
    ([2.0, 1.0], [2.0])
    """
    x = np.asarray(values, dtype=float).ravel()
    with np.errstate(over="ignore", invalid="ignore"):
        edges = np.linspace(x.min(), x.max(), BINS + 1)
        # Values that are all but the same, or span more than a double does, leave no room for bins.
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
    """Return the metrics of a point as an event.

    >>> event_of(Point(1, 5, 0.0, {"loss": 0.5})).summary.value[0].simple_value
    0.5
    """
    event = Event(step=point.step, wall_time=point.time)
    # Messages made beforehand would be copied, for twice the time.
    add = event.summary.value.add
    for name, value in point.metrics.items():
        add(tag=name, simple_value=value)
    return event


class EventFile:
    """An event file that is open only while it is written to, so that thousands may be in use at once."""

    def __init__(self, folder: Path, kind: str = KIND) -> None:
        host = socket.gethostname()
        name = f"events.out.tfevents.{int(time.time())}.{host}.{os.getpid()}.{next(_numbers)}.{kind}"
        self.path = folder / name
        self._write([Event(wall_time=time.time(), file_version="brain.Event:2")])

    def _write(self, events: Iterable[Event]) -> None:
        self._append(b"".join(record(event.SerializeToString()) for event in events))

    def _append(self, records: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(records)

    def scalars(self, points: Iterable[Point]) -> None:
        """Write the metrics of each point at its step."""
        self._write(map(event_of, points))

    def histograms(self, founds: Iterable[Found]) -> None:
        """Write the distributions that each finding shows, without what is not finite, at its step."""
        finite = ((found, name, x[np.isfinite(x)]) for found in founds for name, x in found.histograms.items())
        self._write(
            Event(
                step=found.step,
                wall_time=found.time,
                summary=Summary(value=[Summary.Value(tag=found.tag(name), histo=histogram(values))]),
            )
            for found, name, values in finite
            if values.size
        )

    def image(self, tag: str, png: bytes, step: int = 0) -> None:
        """Write a picture for TensorBoard's Images tab.

        Raises:
            ValueError: if it is no PNG.
        """
        if png[:8] != SIGNATURE or len(png) < EVENT_HEADER.size:
            raise ValueError(f"the image {tag} must be a PNG, got bytes that begin with {png[:8]!r}")
        width, height, kind = EVENT_HEADER.unpack_from(png)
        image = Summary.Image(
            width=width, height=height, colorspace=CHANNELS.get(kind, 3), encoded_image_string=png
        )
        value = Summary.Value(tag=tag, image=image)
        self._write([Event(step=step, wall_time=time.time(), summary=Summary(value=[value]))])

    def text(self, tag: str, markdown: str) -> None:
        """Write a text for TensorBoard's Text tab."""
        plugin = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        tensor = TensorProto(dtype="DT_STRING", string_val=[markdown.encode()])
        value = Summary.Value(tag=f"{tag}/text_summary", metadata=plugin, tensor=tensor)
        self._summary(Summary(value=[value]))

    def start(self, hparams: dict[str, HParam], group: str) -> None:
        """Write a run's hyperparameters; the HParams tab averages the runs of one group."""
        self._summary(summary_v2.hparams_pb(hparams, trial_id=group))

    def end(self, *, succeeded: bool) -> None:
        """Mark the run as ended in the HParams tab."""
        status = api_pb2.STATUS_SUCCESS if succeeded else api_pb2.STATUS_FAILURE
        end = SessionEndInfo(status=status, end_time_secs=time.time())
        self._hparams(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end))

    def experiment(self, hparams: Iterable[str], metrics: Mapping[str, str], varied: Collection[str] = ()) -> None:
        """Write the columns that the HParams tab shows for all runs below this folder.

        Args:
            hparams: names; those that are ``varied`` come first.
            metrics: what to call the last value of each tag.
            varied: the names of those in which the runs differ.
        """
        infos = [api_pb2.HParamInfo(name=name, differs=name in varied) for name in hparams]
        measured = [summary_v2.Metric(tag, display_name=name).as_proto() for tag, name in metrics.items()]
        columns = api_pb2.Experiment(hparam_infos=infos, metric_infos=measured)
        self._hparams(metadata.EXPERIMENT_TAG, HParamsPluginData(experiment=columns))

    def layout(self, layout: Layout) -> None:
        """Write what the Custom Scalars tab shows of all runs below this folder."""
        tensor = TensorProto(dtype="DT_STRING", string_val=[layout.SerializeToString()])
        about = custom_scalars.create_summary_metadata()
        tag = custom_scalars.CONFIG_SUMMARY_TAG
        self._summary(Summary(value=[Summary.Value(tag=tag, metadata=about, tensor=tensor)]))

    def _hparams(self, tag: str, content: HParamsPluginData) -> None:
        about = metadata.create_summary_metadata(content)
        self._summary(Summary(value=[Summary.Value(tag=tag, metadata=about, tensor=metadata.NULL_TENSOR)]))

    def _summary(self, summary: Summary) -> None:
        self._write([Event(wall_time=time.time(), summary=summary)])


class _Whole(EventFile):
    """An event file that is nowhere until all of it is there."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.records: list[bytes] = []
        super().__init__(folder, kind)

    def _append(self, records: bytes) -> None:
        self.records.append(records)


@contextmanager
def replaced(folder: Path, kind: str = KIND) -> Iterator[EventFile]:
    """Give an event file to write to, which then takes the place of those of its kind in ``folder``.

    A reader sees it whole or not at all; if what is done with it fails, nothing is changed.
    """
    file = _Whole(folder, kind)
    yield file
    folder.mkdir(parents=True, exist_ok=True)
    earlier = list(folder.glob(OURS.replace(KIND, kind)))
    # TensorBoard reads whatever has tfevents in its name.
    beside = folder / f".{os.getpid()}.{kind}"
    beside.write_bytes(b"".join(file.records))
    beside.replace(file.path)
    for path in earlier:
        path.unlink()


def flat(config: dict[str, Any], choices: dict[str, str]) -> dict[str, bool | int | float | str]:
    """Return the group choices and every number, word or list of the configuration, by dotted key.

    >>> flat({"seed": 0, "net": {"_target_": "x.MLP", "hidden": [64]}}, {"model": "bn"})
    {'model': 'bn', 'seed': 0, 'net.hidden': '[64]'}
    """
    chosen = {group: choices[group] for group in GROUPS if group in choices}
    return chosen | dict(hparam_leaves(config))


def hparam_leaves(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, bool | int | float | str]]:
    """Yield the leaves of a configuration with their dotted keys."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from hparam_leaves(value, f"{path}{key}.")
        elif value is not None and not key.startswith("_"):
            yield f"{path}{key}", value if isinstance(value, bool | int | float | str) else json.dumps(value)


def group(config: dict[str, Any], choices: dict[str, str]) -> str:
    """Return a name that the runs share which differ in their seed alone.

    The configuration comes with its interpolations as they are written, so that what follows the seed is equal.

    >>> one, two = ({"seed": seed, "data": {"seed": "${seed}"}} for seed in (0, 1))
    >>> group(one, {"model": "bn"}) == group(two, {"model": "bn"})
    True
    """
    rest = {key: value for key, value in computed(config).items() if key != "seed"}
    digest = hashlib.sha256(json.dumps([rest, choices], sort_keys=True, default=str).encode()).hexdigest()
    return f"{choices.get('model', 'run')}-{digest[:8]}"
