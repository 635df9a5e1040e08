"""The runs that ``run=`` names: a folder, a list or a pattern; the entry is :func:`find_runs`."""

import logging
from glob import glob
from pathlib import Path

from normlab.errors import ConfigError
from normlab.report import shorter_path
from normlab.results.packed import packed_run
from normlab.results.sweep import is_run_folder, run_folders
from normlab.stats.design import natural

log = logging.getLogger("normlab")


def find_runs(text: str, checkpoint: str) -> list[Path]:
    """Return the folders of the runs that ``run=`` names, in this order and each once.

    Raises:
        ConfigError: if an entry names no run.
    """
    entries = split_entries(text[1:-1]) if text.startswith("[") and text.endswith("]") else [unquoted(text)]
    return list(dict.fromkeys(folder for entry in entries for folder in runs_of(entry, checkpoint)))


def split_entries(text: str) -> list[str]:
    """Split a list of paths at its commas, except those in names, such as ``model=bn,seed=0``.

    The longest part that exists is a path.
    """
    parts, entries = text.split(","), []
    while parts:
        joined = {count: unquoted(",".join(parts[:count])) for count in range(len(parts), 0, -1)}
        count = next((count for count, entry in joined.items() if matches(entry)), 1)
        entries.append(joined[count])
        parts = parts[count:]
    return entries


def unquoted(text: str) -> str:
    """Return a path without surrounding spaces and quotes.

    >>> unquoted(" 'outputs/mine' ")
    'outputs/mine'
    """
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def matches(entry: str) -> list[Path]:
    """Return the existing path, or those that match a pattern, in which brackets are literal: ``hidden=[8,8]``."""
    path = Path(entry).expanduser()
    if path.exists() or packed_run(path):
        return [path]
    pattern = str(path).replace("[", "[[]")
    found = {*map(Path, glob(pattern, recursive=True)), *packed_matches(path)} if is_pattern(entry) else set()
    return sorted(found, key=lambda path: natural(str(path)))


def packed_matches(pattern: Path) -> list[Path]:
    """Return the folders that packed runs would have, which match a pattern."""
    top = next(parent for parent in pattern.parents if not is_pattern(str(parent)))
    literal = str(pattern).replace("[", "[[]")
    below = [path for path in run_folders(top) if packed_run(path)] if top.is_dir() else []
    return [path for path in below if len(path.parts) == len(pattern.parts) and path.match(literal)]


def is_pattern(entry: str) -> bool:
    """Return True if an entry has wildcards."""
    return "*" in entry or "?" in entry


def runs_of(entry: str, checkpoint: str) -> list[Path]:
    """Return the runs of one entry of ``run=``; those of a pattern that lack the checkpoint are left out.

    Raises:
        ConfigError: if there are none.
    """
    paths = matches(entry)
    runs = [path for path in paths if is_run_folder(path) or packed_run(path)]
    if not runs:
        inside = [folder for path in paths if path.is_dir() for folder in run_folders(path)]
        remedy = (
            f"its runs are 'run={entry.rstrip('/')}/*'" if inside else "run=outputs/… is a folder with result.json"
        )
        missing = "" if paths or is_pattern(entry) else ", which does not exist"
        expected = "a pattern that matches runs" if is_pattern(entry) else "the folder of a run"
        raise ConfigError(f"run must be {expected}, got {entry}{missing}; {remedy}")
    if Path(entry).expanduser() in runs:
        return runs
    complete = [run for run in runs if has_checkpoint(run, checkpoint)]
    if not complete:
        raise ConfigError(
            f"run={entry}: none of the {len(runs)} runs has checkpoints/{checkpoint}.pt; train them first"
        )
    for run in runs:
        if run not in complete:
            log.warning("%s is left out: it has no checkpoints/%s.pt", shorter_path(run), checkpoint)
    return complete


def has_checkpoint(folder: Path, name: str) -> bool:
    """Return True if a run has a checkpoint; those of packed runs are in one file."""
    run = packed_run(folder)
    return checkpoint_path(folder, name).is_file() or (run is not None and run.checkpoints.is_file())


def checkpoint_path(folder: Path, name: str) -> Path:
    """Return the path of a run's checkpoint."""
    return folder / "checkpoints" / f"{name}.pt"
