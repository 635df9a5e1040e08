"""Finding the run of a job that a sweep's folder holds already, under whatever name it was trained."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from normlab.results.folder import computed, configuration_in
from normlab.results.sweep import run_folders


def fingerprint(configuration: Mapping[str, Any]) -> str:
    """Return a text that is equal for resolved configurations of equal results."""
    return json.dumps(computed(configuration), sort_keys=True, default=str)


def earlier_runs(folder: Path) -> dict[str, list[str]]:
    """Return the folders of the runs below a sweep's folder, relative to it, by their configuration."""
    found: dict[str, list[str]] = {}
    for path in sorted(run_folders(folder)):
        configuration = configuration_in(path)
        if configuration is not None:
            found.setdefault(fingerprint(configuration), []).append(path.relative_to(folder).as_posix())
    return found


def choose_folders(
    names: Sequence[str], fingerprints: Sequence[str], earlier: Mapping[str, Sequence[str]]
) -> list[str]:
    """Return each job's folder: that of its run where there is one, its own name otherwise.

    >>> choose_folders(["bn,seed=0", "bn,seed=1"], ["0", "1"], {"0": ["bn"]})
    ['bn', 'bn,seed=1']
    """
    taken = {name for name, own in zip(names, fingerprints, strict=True) if name in earlier.get(own, ())}
    chosen = []
    for name, own in zip(names, fingerprints, strict=True):
        runs = earlier.get(own, ())
        path = name if name in runs else next((run for run in runs if run not in taken), name)
        taken.add(path)
        chosen.append(path)
    return chosen
