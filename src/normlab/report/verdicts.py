"""``verdicts.json``: the earlier verdicts of a sweep's folder."""

import json
from collections.abc import Sequence
from pathlib import Path

from normlab.errors import ConfigError
from normlab.results.folder import SWEEP_CONFIG
from normlab.results.result import write_atomically
from normlab.results.sweep import Record, load
from normlab.stats.history import History

FILE, MAXIMUM = "verdicts.json", "max_replicates"


def read_history(folder: Path, records: Sequence[Record]) -> History:
    """Return the earlier verdicts of a folder; without any, the maximum of replicates that its runs declare.

    Raises:
        ConfigError: the file is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return History(declared_maximum(records, folder))
    try:
        return History.from_json(json.loads(path.read_text()))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path} must hold the earlier verdicts, got {type(error).__name__}: {error}; "
            "restore it, or remove it to count looks from 1 again"
        ) from error


def write_history(folder: Path, history: History) -> None:
    """Write the verdicts of a folder, if there are any."""
    if history.looks:
        write_atomically(folder / FILE, json.dumps(history.to_json(), indent=1) + "\n")


def declared_maximum(records: Sequence[Record], folder: Path | None = None) -> int | None:
    """Return the first ``max_replicates`` that was declared, None without any.

    Args:
        records: of the runs; those that did not start yet come last.
        folder: of a sweep, whose last command counts too: it need not have trained any run.
    """
    started = sorted(records, key=lambda record: (not record.result.started, record.result.started))
    declared = [*(record.result.config.get(MAXIMUM) for record in started), typed_maximum(folder)]
    return next((number for number in declared if isinstance(number, int)), None)


def typed_maximum(folder: Path | None) -> object:
    """Return ``max_replicates`` of the last command of a sweep."""
    return load(folder / SWEEP_CONFIG, dict).get(MAXIMUM) if folder else None


def changed_maximum(history: History, records: Sequence[Record], folder: Path | None = None) -> list[str]:
    """Return a warning if another maximum of replicates is declared than the one that counts.

    Args:
        history: before the verdict that is given now.
        records, folder: as in :func:`declared_maximum`.
    """
    declared = {typed_maximum(folder), *(record.result.config.get(MAXIMUM) for record in records)}
    others = sorted(number for number in declared if isinstance(number, int) and number != history.max_replicates)
    if not others:
        return []
    first = history.max_replicates
    why = "the first verdict was given without one" if first is None else f"{MAXIMUM}={first} was declared first"
    return [f"{MAXIMUM}={others[-1]} has no effect: {why}"]
