"""Readers of the time series of runs: :func:`read_curves` and :func:`read_probes`, a data frame of many runs.

:func:`read_arrays` reads the arrays of one run. Missing series are empty; damage is logged.
"""

import csv
import io
import logging
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from normlab.errors import first_line
from normlab.results.packed import SERIES
from normlab.results.series import ARRAYS, CURVE_COLUMNS, CURVES_FILE, PROBES_FILE, TYPES

if TYPE_CHECKING:
    import pandas as pd

    from normlab.results.sweep import Record

READ_ERRORS = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
DAMAGED = "%s is damaged: %s; the run has no %s"
FILES_AT_ONCE = 500
"""Number of files that are parsed together: many are faster than one, all of a large sweep need memory."""
log = logging.getLogger("normlab")


def read_curves(records: Sequence["Record"]) -> "pd.DataFrame":
    """Return the learning curves of all runs, a row per run, epoch and metric (``val/loss``); see `read_rows`.

    The metrics are categories in alphabetical order: a large sweep has millions of rows, and few metrics.
    """
    import pandas as pd

    rows = read_rows(records, CURVES_FILE)
    columns = {name: rows[name] for name in CURVE_COLUMNS}
    return pd.DataFrame({**columns, "metric": joined_names(rows["split"], rows["metric"])}, copy=False)


def warn_of_missing_epochs(records: Sequence["Record"], curves: "pd.DataFrame") -> None:
    """Log each done run with epochs after the end of its curves, unless its file was logged as damaged."""
    ends = curves.groupby("run")["epoch"].max().to_dict()
    for number, record in enumerate(records):
        if record.packed is not None:
            continue
        path, last = record.folder / CURVES_FILE, record.result.last
        if not (record.result.status.done and last and ends.get(number, 0) < last.epoch):
            continue
        if number in ends or not path.exists() or not path.stat().st_size:
            log.warning(
                "%s is incomplete: it ends before epoch %d of %d", path, ends.get(number, 0) + 1, last.epoch
            )


def read_probes(records: Sequence["Record"]) -> "pd.DataFrame":
    """Return the probe numbers of all runs: one row per run, step, probe, mode and quantity; see `read_rows`."""
    return read_rows(records, PROBES_FILE)


def read_rows(records: Sequence["Record"], name: str) -> "pd.DataFrame":
    """Return the rows of a CSV file of all runs; the first column, ``run``, is the index of the record.

    Runs with a missing or damaged file have no rows; damage is logged.
    """
    in_files = np.array([k for k, record in enumerate(records) if record.packed is None], dtype=int)
    frames = []
    for part in np.array_split(in_files, max(1, -(-len(in_files) // FILES_AT_ONCE))):
        frames.append(read_files([records[k] for k in part], name))
        frames[-1]["run"] = part[frames[-1]["run"]]
    if len(in_files) == len(records):
        return joined_rows(frames)
    rows = joined_rows([*frames, *packed_frames(records, name)])
    in_order = rows["run"].is_monotonic_increasing
    return rows if in_order else rows.sort_values("run", kind="stable", ignore_index=True)


def packed_frames(records: Sequence["Record"], name: str) -> Iterator["pd.DataFrame"]:
    """Yield the rows of a time series of the runs in each file of packed records; see :func:`read_rows`."""
    of_pack: dict[Path, list[int]] = {}
    for k, record in enumerate(records):
        if record.packed is not None:
            of_pack.setdefault(record.packed.pack.path, []).append(k)
    for numbers in of_pack.values():
        runs = [run for k in numbers if (run := records[k].packed)]
        column = runs[0].pack.column(SERIES[name])
        if column is not None:
            rows = [run.row for run in runs]
            # Mostly the order is that of the file, and taking would copy it.
            yield packed_frame(column if rows == [*range(len(column))] else column.take(rows), numbers, name)


def packed_frame(series: Any, numbers: Sequence[int], name: str) -> "pd.DataFrame":
    """Return the rows of a time series of runs as a data frame.

    Args:
        series: the rows of each run, an Arrow array of lists.
        numbers: of the runs, for the column ``run``.
        name: of the CSV file that would hold them.
    """
    import pandas as pd

    rows, lengths = series.flatten(), series.value_lengths().to_numpy(zero_copy_only=False)
    columns: dict[str, Any] = {"run": np.repeat(numbers, lengths)}
    for key, kind in TYPES[name].items():
        values = rows.field(key)
        columns[key] = (
            pd.Categorical.from_codes(
                values.indices.to_numpy(), pd.Index(values.dictionary.to_pylist(), dtype=str)
            )
            if kind == "category"
            else values.to_numpy()
        )
    return pd.DataFrame(columns, copy=False)  # columns of a large sweep take long to copy


def joined_names(splits: "pd.Series", metrics: "pd.Series") -> "pd.Categorical[Any]":
    """Return the full names of metrics, ``val/loss``, as categories; a metric without a split has its own name."""
    import pandas as pd

    split, metric = splits.array, metrics.array
    number = len(metric.categories)
    pairs = split.codes.astype(np.int64) * number + metric.codes
    occurring = np.flatnonzero(np.bincount(pairs, minlength=1))
    full = (f"{split.categories[pair // number]}/{metric.categories[pair % number]}" for pair in occurring)
    names = [name.removeprefix("/") for name in full]  # numbers logged under a name without a split
    order = sorted(set(names))
    code_of = np.zeros(len(occurring) and occurring[-1] + 1, dtype=np.int32)
    code_of[occurring] = [order.index(name) for name in names]
    return pd.Categorical.from_codes(code_of[pairs], categories=pd.Index(order, dtype=str))


def joined_rows(frames: Sequence["pd.DataFrame"]) -> "pd.DataFrame":
    """Return the rows of several data frames, of which each column of categories may have other categories."""
    import pandas as pd
    from pandas.api.types import union_categoricals

    frames = [frame for frame in frames if len(frame)] or frames[:1]
    if len(frames) == 1:
        return frames[0]
    columns: dict[str, Any] = {}
    for name in frames[0]:
        parts = [frame[name].array for frame in frames]
        is_category = isinstance(frames[0][name].dtype, pd.CategoricalDtype)
        columns[str(name)] = (
            union_categoricals(parts, sort_categories=True) if is_category else np.concatenate(parts)
        )
    return pd.DataFrame(columns, copy=False)  # columns of a large sweep take long to copy


def read_files(records: Sequence["Record"], name: str) -> "pd.DataFrame":
    """Return the rows of a CSV file of some runs; see :func:`read_rows`."""
    texts = [read_rows_text(record.folder / name) for record in records]
    try:
        # One call for all files; parsing hundreds of short files separately takes several times as long.
        frame = parse_rows("".join(texts), TYPES[name])
    except ValueError:
        texts = [readable_rows(record.folder / name, text) for record, text in zip(records, texts, strict=True)]
        frame = parse_rows("".join(texts), TYPES[name])
    frame.insert(0, "run", np.repeat(np.arange(len(texts)), np.array([*map(row_count, texts)], int)))
    return frame


def parse_rows(text: str, types: dict[str, Any]) -> "pd.DataFrame":
    """Parse CSV rows without a header into a data frame.

    Raises:
        ValueError: if a row is malformed.
    """
    import pandas as pd

    # A quantity may be named NA, so only the string nan in the value column is parsed as NaN.
    missing: Any = {"keep_default_na": False, "na_values": {"value": ["nan"]}}
    # Text in a StringIO takes four times the memory.
    return pd.read_csv(
        io.BytesIO(text.encode()), names=list(types), dtype=types, skip_blank_lines=False, **missing
    )


def row_count(text: str) -> int:
    """Return the number of CSV rows; a quoted field may hold line breaks."""
    return sum(1 for _ in csv.reader(io.StringIO(text))) if '"' in text else text.count("\n")


def readable_rows(path: Path, text: str) -> str:
    """Return the rows of a CSV file if they can be parsed; otherwise log a warning and return none."""
    try:
        parse_rows(text, TYPES[path.name])
    except ValueError as error:
        log.warning(DAMAGED, path, first_line(error), path.stem)
        return ""
    return text


def read_rows_text(path: Path) -> str:
    """Read the complete rows of a CSV file without the header; none if it is missing, or damaged (logged)."""
    header = ",".join(TYPES[path.name]) + "\n"
    try:
        text = whole_rows(path.read_text())
        if text and not text.startswith(header):
            raise ValueError(f"it must begin with {header.strip()}")
        return text.removeprefix(header)
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        log.warning(DAMAGED, path, first_line(error), path.stem)
        return ""


def whole_rows(text: str) -> str:
    """Drop an incomplete last row from the text of a CSV file.

    A run killed while writing leaves part of a row, which may parse as a complete one.

    >>> whole_rows('a,1\\n"b\\n,2'), whole_rows('a,1\\n"b\\n",2\\n')
    ('a,1\\n', 'a,1\\n"b\\n",2\\n')
    """
    end = text.rfind("\n")
    while text.count('"', 0, max(end, 0)) % 2:  # this line break is inside a quoted field
        end = text.rfind("\n", 0, end)
    return text[: end + 1]


def read_arrays(record: "Record") -> dict[str, np.ndarray]:
    """Read the arrays of ``probes.npz`` of a run; empty if it is missing, or damaged (logs a warning)."""
    path = record.folder / ARRAYS
    try:
        content = path.read_bytes() if record.packed is None else record.packed.file(ARRAYS)
        if content is None:
            return {}
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except FileNotFoundError:
        return {}
    except READ_ERRORS as error:
        log.warning(DAMAGED, path, first_line(error), "arrays of probes")
        return {}
