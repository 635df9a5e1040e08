"""Packed records: the runs of a population in one Parquet file, ``records/<id>.parquet`` in the sweep's folder.

A row is a run: its folder relative to the sweep, which need not exist, and the content of the files that the
folder would have. :func:`write_pack` writes a file; :func:`packed_runs` and :func:`packed_run` find runs. The
checkpoints of the population are beside it, in ``records/<id>.pt``.
"""

import hashlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from normlab.errors import ConfigError, first_line
from normlab.results.result import Result, replacing
from normlab.results.series import CURVES_FILE, PROBES_FILE, TYPES, Row

if TYPE_CHECKING:
    import pyarrow as pa

PACKED_FOLDER, SUFFIX = "records", ".parquet"
GENERATION = b"generation"
"""Metadata of a file: a run that several files hold counts with the highest generation, that trained last."""
HYDRA_FILES = ("config", "overrides", "hydra")
SERIES = {CURVES_FILE: "curves", PROBES_FILE: "probes"}
"""Column of each time series."""
COLUMNS = ("folder", "result", *HYDRA_FILES, *SERIES.values(), "files")
DAMAGED = "%s is damaged: %s; its runs count as missing, and the repeated command trains them again"
log = logging.getLogger("normlab")


def import_pyarrow(reason: str) -> Any:
    """Import pyarrow.

    Raises:
        ConfigError: if it is not installed; the message begins with the reason for which it is needed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(f"{reason} needs pyarrow; install it: pip install 'normlab[packed]'") from error
    return pyarrow


@dataclass(frozen=True)
class PackedRow:
    """The content of a run's files.

    Attributes:
        folder: of the run, relative to the sweep.
        result: the text of ``result.json``.
        hydra: the texts of the files that Hydra writes, by name without suffix.
        series: the rows of ``curves.csv`` and ``probes.csv``.
        files: the content of other files, such as ``probes.npz``, by name.
    """

    folder: str
    result: str
    hydra: Mapping[str, str] = field(default_factory=dict)
    series: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Pack:
    """A file of packed records with the folders and results of its runs, which are read at once.

    Attributes:
        generation: higher than that of the files that held some of its runs when it was written.
    """

    path: Path
    folders: Sequence[str] = ()
    results: Sequence[str] = ()
    generation: int = 0

    @property
    def sweep(self) -> Path:
        """The folder of the sweep."""
        return self.path.parent.parent

    def column(self, name: str) -> "pa.Array | None":
        """Read a column; None if it is damaged, which is logged."""
        pyarrow = import_pyarrow(str(self.path))
        try:
            with pyarrow.parquet.ParquetFile(self.path, page_checksum_verification=True) as file:
                column = file.read(columns=[name]).column(name)
        except (OSError, KeyError, ValueError) as error:
            log.warning("%s is damaged: %s; its runs have no %s", self.path, first_line(error), name)
            return None
        return pyarrow.concat_arrays(column.chunks)


@dataclass(frozen=True)
class PackedRun:
    """A row of a file of packed records."""

    pack: Pack
    row: int

    @property
    def folder(self) -> Path:
        """The folder that the run would have."""
        return self.pack.sweep / self.name

    @property
    def name(self) -> str:
        """The folder relative to that of the sweep."""
        return self.pack.folders[self.row]

    @property
    def checkpoints(self) -> Path:
        """The file with the checkpoints of the run's population."""
        return self.pack.path.with_suffix(".pt")

    def result(self) -> Result:
        """Return the result.

        Raises:
            ValueError: if it is damaged.
        """
        return Result.parse(self.pack.results[self.row], f"the result of {self.folder.name} in {self.pack.path}")

    def text(self, name: str) -> str:
        """Return the text of a file that Hydra writes, by name without suffix; empty without it."""
        column = self.pack.column(name)
        return "" if column is None else column[self.row].as_py() or ""

    def file(self, name: str) -> bytes | None:
        """Return the content of another file; None without it."""
        column = self.pack.column("files")
        files = [] if column is None else column[self.row].as_py()
        return next((file["content"] for file in files if file["name"] == name), None)


def pack_id(folders: Iterable[str]) -> str:
    """Return the name of the file of a population, a digest of the folders of its runs."""
    return hashlib.sha256("\n".join(sorted(folders)).encode()).hexdigest()[:12]


def schema(pyarrow: Any) -> Any:
    """Return the Arrow schema of a file."""
    text = pyarrow.string()
    series = {
        column: pyarrow.list_(pyarrow.struct(series_types(pyarrow, file))) for file, column in SERIES.items()
    }
    files = pyarrow.list_(pyarrow.struct({"name": text, "content": pyarrow.binary()}))
    return pyarrow.schema(
        {"folder": text, "result": text, **dict.fromkeys(HYDRA_FILES, text), **series, "files": files}
    )


def write_pack(sweep: Path, rows: Sequence[PackedRow]) -> Path:
    """Write the runs of a population into ``records/<id>.parquet``, atomically; return its path.

    Earlier files all of whose runs it holds are removed.
    """
    pyarrow = import_pyarrow("records=packed")
    folder = sweep / PACKED_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    ordered, own = sorted(rows, key=lambda row: row.folder), {row.folder for row in rows}
    path = folder / f"{pack_id(own)}{SUFFIX}"
    earlier = [pack for pack in packs(folder) if own.intersection(pack.folders)]
    generation = 1 + max((pack.generation for pack in earlier), default=0)
    table_schema = schema(pyarrow).with_metadata({GENERATION: str(generation).encode()})
    texts = {name: [row.hydra.get(name, "") for row in ordered] for name in HYDRA_FILES}
    series = {
        column: series_column(pyarrow, file, [row.series.get(file, ()) for row in ordered])
        for file, column in SERIES.items()
    }
    files = [[{"name": name, "content": content} for name, content in row.files.items()] for row in ordered]
    columns = {
        "folder": [row.folder for row in ordered],
        "result": [row.result for row in ordered],
        **texts,
        **series,
        "files": files,
    }
    table = pyarrow.Table.from_pydict(columns, schema=table_schema)
    with replacing(path) as temporary:
        pyarrow.parquet.write_table(table, temporary, compression="zstd", write_page_checksum=True)
    index_of.cache_clear()
    for pack in earlier:
        if pack.path != path and own.issuperset(pack.folders):
            for suffix in (SUFFIX, ".pt", ".txt"):
                pack.path.with_suffix(suffix).unlink(missing_ok=True)
    return path


def series_types(pyarrow: Any, file: str) -> dict[str, Any]:
    """Return the Arrow type of each column of a time series."""
    name = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    kinds = {int: pyarrow.int64(), float: pyarrow.float64(), "category": name}
    return {key: kinds[kind] for key, kind in TYPES[file].items()}


def series_column(pyarrow: Any, file: str, runs: Sequence[Sequence[Row]]) -> "pa.Array":
    """Return the rows of a time series of each run as a list array of structs."""
    offsets = np.concatenate([[0], np.cumsum([len(rows) for rows in runs])]).astype(np.int32)
    types = series_types(pyarrow, file)
    columns: Sequence[Any] = [*zip(*(row for rows in runs for row in rows), strict=True)] or [()] * len(types)
    arrays = [pyarrow.array(column, kind) for column, kind in zip(columns, types.values(), strict=True)]
    return pyarrow.ListArray.from_arrays(pyarrow.array(offsets), pyarrow.StructArray.from_arrays(arrays, [*types]))


def packs(folder: Path) -> list[Pack]:
    """Return the readable files of a folder of packed records; damaged ones are logged."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(
                (entry.path, entry.stat().st_mtime_ns, entry.stat().st_size)
                for entry in entries
                if entry.name.endswith(SUFFIX) and not entry.name.startswith(".")
            )
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [pack for pack in (read_pack(*entry) for entry in found) if pack.folders]


@lru_cache(maxsize=100_000)
def read_pack(path: str, modified: int, size: int) -> Pack:
    """Read the folders and results of a file; no runs if it is damaged or foreign, which is logged once.

    Args:
        path: of the file.
        modified, size: of this version of the file.
    """
    pyarrow = import_pyarrow(path)
    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            if missing := [name for name in COLUMNS if name not in file.schema_arrow.names]:
                raise ValueError(f"it lacks the column {missing[0]}")
            table = file.read(columns=["folder", "result"])
            generation = int((file.schema_arrow.metadata or {}).get(GENERATION, 0))
        folders, results = (table.column(name).to_pylist() for name in ("folder", "result"))
        return Pack(Path(path), folders, results, generation)
    except (OSError, KeyError, ValueError) as error:
        warn_of_damage(os.path.abspath(path), modified, first_line(error))
        return Pack(Path(path))


@lru_cache(maxsize=1024)
def warn_of_damage(path: str, modified: int, reason: str) -> None:
    """Log a warning of a damaged file; once for each version of it.

    Args:
        path: of the file, absolute, as it may be read by several relative ones.
        modified: time of the version.
        reason: the error.
    """
    log.warning(DAMAGED, path, reason)


def packed_runs(folder: Path) -> Mapping[str, PackedRun]:
    """Return the runs in a folder of packed records, by their folder relative to the sweep."""
    try:
        return index_of(folder, folder.stat().st_mtime_ns)
    except (FileNotFoundError, NotADirectoryError):
        return {}


@lru_cache(maxsize=1024)
def index_of(folder: Path, modified: int) -> Mapping[str, PackedRun]:
    """Return the runs in a folder that was modified at a time, as a run may be looked up thousands of times."""
    ordered = sorted(packs(folder), key=lambda pack: (pack.generation, pack.path))
    return {name: PackedRun(pack, row) for pack in ordered for row, name in enumerate(pack.folders)}


def packed_run(folder: Path) -> PackedRun | None:
    """Return the run that would have a folder, from the packed records of its sweep; None without it."""
    for sweep in folder.parents:
        runs = packed_runs(sweep / PACKED_FOLDER)
        if runs and (run := runs.get(folder.relative_to(sweep).as_posix())):
            return run
    return None


def stored_result(folder: Path) -> Result | None:
    """Return the result of a run from its folder or from packed records; None without one.

    Raises:
        ValueError: if it is damaged.
    """
    run = packed_run(folder)
    found = [result for result in (Result.read(folder), run.result() if run else None) if result]
    return max(found, key=precedence, default=None)


def precedence(result: Result) -> tuple[bool, str]:
    """Return the key by which the result of a run counts if it has two: a done one, then the later one."""
    return result.status.done, result.ended
