"""Provenance of a report: the commands that made and repeat its runs, and their commits, versions and hardware."""

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from normlab.results.folder import SWEEP_CONFIG
from normlab.results.result import Result
from normlab.results.sweep import Record, load_yaml

TRAIN = ["python", "train.py"]
"""Entry command of runs whose records have none."""


def provenance(folders: Sequence[Path], records: Sequence[Record]) -> list[tuple[str, str]]:
    """Return commands, commits, versions and hardware of the runs; one line per value where runs differ."""
    results = [record.result for record in records]
    environments = [result.environment for result in results if result.environment]
    dirty = {str(environment.get("commit")) for environment in environments if environment.get("dirty")}
    commits = [
        f"{commit}{' (with uncommitted changes)' * (commit in dirty)}"
        for commit in distinct(
            str(environment["commit"]) for environment in environments if environment.get("commit")
        )
    ]
    versions = distinct(
        ", ".join(f"{name} {version}" for name, version in environment.get("versions", {}).items())
        for environment in environments
    )
    machines = distinct(
        "{system} {processor}, {cores} cores".format_map(environment["machine"])
        for environment in environments
        if environment.get("machine")
    )
    starts = sorted(result.started for result in results if result.started)
    ends = sorted(result.ended for result in results if result.ended)
    seeds = sorted({seed for result in results if isinstance(seed := result.config.get("seed"), int)})
    facts = [
        (
            "command",
            "\n".join(distinct(sweep_command(folder, entry_command(folder, records)) for folder in folders)),
        ),
        ("folders", "\n".join(map(str, folders))),
        ("runs", str(len(records))),
        ("seeds", short_ranges(seeds)),
        ("commit", "\n".join(commits)),
        ("versions", "\n".join(versions)),
        ("hardware", "\n".join(machines)),
        ("first run started", starts[0] if starts else ""),
        ("last run ended", ends[-1] if ends else ""),
    ]
    return [(label, value) for label, value in facts if value]


def distinct(texts: Iterable[str]) -> list[str]:
    """Return the non-empty texts in order, each once."""
    return [text for text in dict.fromkeys(texts) if text]


def entry_command(folder: Path, records: Sequence[Record]) -> list[str]:
    """Return the command words that started the runs below a folder, without their overrides."""
    below = (record.result for record in records if record.folder.is_relative_to(folder))
    return next((result.command for result in below if result.command), TRAIN)


def sweep_command(folder: Path, entry: Sequence[str] = TRAIN) -> str:
    """Return the command of a sweep from the overrides that Hydra saved, or "" if it saved none."""
    hydra = load_yaml(folder / SWEEP_CONFIG, dict).get("hydra", {})
    overrides = hydra.get("overrides", {}) if isinstance(hydra, dict) else {}
    words = [str(word) for word in [*overrides.get("task", []), *overrides.get("hydra", [])]]
    words = [word for word in words if word != "hydra.mode=MULTIRUN"]
    before = [word for word in entry if word not in words]
    return shlex.join([*before, "-m", *words]) if overrides else ""


def rerun_command(result: Result) -> str:
    """Return the command that repeats a run.

    >>> from normlab.results.result import Objective, Status
    >>> overrides = ["model=bn", "net.hidden=[1, 2]"]
    >>> rerun_command(Result("", Status.FINISHED, {}, {}, overrides, Objective("", "", 0.0)))
    "python train.py model=bn 'net.hidden=[1, 2]'"
    """
    entry = result.command or TRAIN
    # A trial of a search is pruned by the values of other trials, which a run alone does not have.
    overrides = [word for word in result.overrides if not word.startswith("++callbacks.pruning=")]
    # The configuration file or the experiment may set hydra.mode=MULTIRUN; this command is a single run.
    own_config = any(word.startswith("--config") for word in entry)
    experiment = any(word.startswith(("experiment=", "claim=")) for word in overrides)
    return shlex.join([*entry, *overrides, *["hydra.mode=RUN"] * (own_config or experiment)])


def short_ranges(numbers: Sequence[int]) -> str:
    """Format sorted integers, with three or more consecutive ones as a range.

    >>> short_ranges([0, 1, 2, 3, 7, 9, 10])
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
