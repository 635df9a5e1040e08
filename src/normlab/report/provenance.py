"""Where the numbers of a report come from: commands, commits, versions, machines, dates and seeds."""

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from normlab.results.folder import SWEEP_CONFIG
from normlab.results.result import Result
from normlab.results.sweep import Record, load

Fact = tuple[str, str]
TRAIN = ["python", "train.py"]
"""Command that starts runs whose records have none."""


def facts(folders: Sequence[Path], records: Sequence[Record]) -> list[Fact]:
    """Return the commit, versions and commands behind the numbers; several where runs differ."""
    results = [record.result for record in records]
    known = [result.environment for result in results if result.environment]
    dirty = {str(own.get("commit")) for own in known if own.get("dirty")}
    commits = [
        f"{commit}{' (with changes that are in no commit)' * (commit in dirty)}"
        for commit in distinct(str(own.get("commit")) for own in known)
    ]
    versions = distinct(
        ", ".join(f"{name} {version}" for name, version in own.get("versions", {}).items()) for own in known
    )
    machines = distinct(
        "{system} {processor}, {cores} cores".format_map(own["machine"]) for own in known if own.get("machine")
    )
    dates = sorted(result.started for result in results if result.started)
    ends = sorted(result.ended for result in results if result.ended)
    seeds = sorted({seed for result in results if isinstance(seed := result.config.get("seed"), int)})
    found = [
        ("command", "\n".join(distinct(command(folder, started(folder, records)) for folder in folders))),
        ("folders", "\n".join(map(str, folders))),
        ("runs", str(len(records))),
        ("seeds", ranges(seeds)),
        ("commit", "\n".join(commits)),
        ("versions", "\n".join(versions)),
        ("machine", "\n".join(machines)),
        ("first run began", dates[0] if dates else ""),
        ("last run ended", ends[-1] if ends else ""),
    ]
    return [(what, which) for what, which in found if which]


def distinct(texts: Iterable[str]) -> list[str]:
    """Return texts without repetitions, none of them empty."""
    return [text for text in dict.fromkeys(texts) if text]


def started(folder: Path, records: Sequence[Record]) -> list[str]:
    """Return the words that started the runs below a folder, before their overrides."""
    below = (record.result for record in records if record.folder.is_relative_to(folder))
    return next((result.command for result in below if result.command), TRAIN)


def command(folder: Path, entry: Sequence[str] = TRAIN) -> str:
    """Return the command of a sweep, as Hydra noted its overrides, empty if it did not."""
    hydra = load(folder / SWEEP_CONFIG, dict).get("hydra", {})
    given = hydra.get("overrides", {}) if isinstance(hydra, dict) else {}
    words = [str(word) for word in [*given.get("task", []), *given.get("hydra", [])]]
    words = [word for word in words if word != "hydra.mode=MULTIRUN"]
    before = [word for word in entry if word not in words]
    return shlex.join([*before, "-m", *words]) if given else ""


def again(result: Result) -> str:
    """Return the command that trains a run again.

    >>> from normlab.results.result import Objective, Status
    >>> again(Result("", Status.FINISHED, {}, {}, ["model=bn", "net.hidden=[1, 2]"], Objective("", "", 0.0)))
    "python train.py model=bn 'net.hidden=[1, 2]'"
    """
    entry = result.command or TRAIN
    # Another configuration file, or an experiment, may set hydra.mode=MULTIRUN; this is a single run.
    is_own = any(word.startswith("--config") for word in entry)
    experiment = any(word.startswith("experiment=") for word in result.overrides)
    return shlex.join([*entry, *result.overrides, *["hydra.mode=RUN"] * (is_own or experiment)])


def commands(records: Sequence[Record]) -> pd.Series:
    """Return the command of each run, by number."""
    return pd.Series([again(record.result) for record in records], dtype=object)


def ranges(numbers: Sequence[int]) -> str:
    """Return sorted whole numbers in short.

    >>> ranges([0, 1, 2, 3, 7, 9, 10])
    '0–3, 7, 9, 10'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = [[f"{run[0]}–{run[-1]}"] if len(run) > 2 else map(str, run) for run in runs]
    return ", ".join(text for part in parts for text in part)
