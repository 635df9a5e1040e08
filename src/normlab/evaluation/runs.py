"""The runs that ``run=`` names: a folder, a list or a pattern; the entry is :func:`find_runs`."""

import logging
from glob import glob
from pathlib import Path

from normlab.errors import ConfigError
from normlab.report import shorter_path
from normlab.results.folder import HYDRA_CONFIG
from normlab.results.result import RESULT_FILE
from normlab.results.sweep import run_folders
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
    if path.exists():
        return [path]
    pattern = str(path).replace("[", "[[]")
    found = glob(pattern, recursive=True) if is_pattern(entry) else []
    return sorted(map(Path, found), key=lambda path: natural(str(path)))


def is_pattern(entry: str) -> bool:
    """Return True if an entry has wildcards."""
    return "*" in entry or "?" in entry


def is_run(path: Path) -> bool:
    """Return True for the folder of a run."""
    return (path / RESULT_FILE).is_file() or (path / HYDRA_CONFIG).is_file()


def runs_of(entry: str, checkpoint: str) -> list[Path]:
    """Return the runs of one entry of ``run=``; those of a pattern that lack the checkpoint are left out.

    Raises:
        ConfigError: if there are none.
    """
    paths = matches(entry)
    runs = [path for path in paths if is_run(path)]
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
    complete = [run for run in runs if checkpoint_path(run, checkpoint).is_file()]
    if not complete:
        raise ConfigError(
            f"run={entry}: none of the {len(runs)} runs has checkpoints/{checkpoint}.pt; train them first"
        )
    for run in runs:
        if run not in complete:
            log.warning("%s is left out: it has no checkpoints/%s.pt", shorter_path(run), checkpoint)
    return complete


def checkpoint_path(folder: Path, name: str) -> Path:
    """Return the path of a run's checkpoint."""
    return folder / "checkpoints" / f"{name}.pt"
