"""Names of runs: short enough to read, different enough to tell apart."""

import hashlib
import itertools
from collections.abc import Iterable, Sequence

LONGEST = 100


def run_name(overrides: Iterable[str]) -> str:
    """Return a folder's name made of overrides: no slashes, no spaces, and a hash where it would get too long.

    >>> run_name(["model=bn", "seed=0"])
    'model=bn,seed=0'
    >>> run_name(["experiment=deep/sigmoid", "net.hidden=[10, 10]"])
    'experiment=deep_sigmoid,net.hidden=[10,10]'
    """
    name = ",".join(overrides)
    safe = "".join("_" if letter in '/\\:*?"<>|' else letter for letter in name if letter not in " '")
    if len(safe) <= LONGEST:
        return safe
    return f"{safe[: LONGEST - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def run_names(jobs: Sequence[Sequence[str]]) -> list[str]:
    """Return a name of its own for each job of a sweep: the overrides in which the jobs differ.

    >>> run_names([["model=bn", "seed=0"], ["model=nobn", "seed=0"]])
    ['model=bn', 'model=nobn']
    """
    shared = set(jobs[0]).intersection(*jobs) if len(jobs) > 1 else set()
    names: dict[str, None] = {}
    for job in jobs:
        name = run_name(override for override in job if override not in shared) or "run"
        numbered = (f"{name}#{number}" for number in itertools.count(2))
        names[next(free for free in itertools.chain([name], numbered) if free not in names)] = None
    return list(names)
