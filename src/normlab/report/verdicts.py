"""``verdicts.json``: the earlier verdicts of a sweep's folder."""

import json
from collections.abc import Sequence
from pathlib import Path

from normlab.analysis.history import History
from normlab.config import ConfigError
from normlab.records.result import write_atomically
from normlab.records.sweep import Record

FILE = "verdicts.json"


def read_history(folder: Path, records: Sequence[Record]) -> History:
    """Return the earlier verdicts of a folder; without any, the maximum of replicates that its runs declare.

    Raises:
        ConfigError: the file is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return History(declared_maximum(records))
    try:
        return History.from_json(json.loads(path.read_text()))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path} must be the file of earlier verdicts, got {error!r}; remove it to start counting looks again"
        ) from error


def write_history(folder: Path, history: History) -> None:
    """Write the verdicts of a folder, if there are any."""
    if history.looks:
        write_atomically(folder / FILE, json.dumps(history.to_json(), indent=1) + "\n")


def declared_maximum(records: Sequence[Record]) -> int | None:
    """Return ``max_replicates`` of the run that started first, None without any."""
    started = sorted(records, key=lambda record: record.result.started)
    declared = [record.result.config.get("max_replicates") for record in started]
    return next((number for number in declared if isinstance(number, int)), None)


def changed_maximum(history: History, records: Sequence[Record]) -> list[str]:
    """Return a warning if runs declare another maximum of replicates than the one at the first verdict."""
    declared = {record.result.config.get("max_replicates") for record in records}
    others = sorted(number for number in declared if isinstance(number, int) and number != history.max_replicates)
    if not others or not history.looks:
        return []
    first = "none" if history.max_replicates is None else str(history.max_replicates)
    return [f"max_replicates={others[-1]} is not used: the first verdict of this folder declared {first}"]
