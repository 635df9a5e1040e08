"""What a person sees when a command cannot be carried out: one line that says what to do instead."""

import atexit
import gc
import inspect
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.errors import ConfigCompositionException

from normlab.config.messages import format_error

SWEEPS = ("-m", "--multirun", "hydra.mode=MULTIRUN")
TRACEBACK = "HYDRA_FULL_ERROR"
WANTS_TRACEBACK = os.environ.get(TRACEBACK) == "1"
"""Whether the person asked for tracebacks, with Hydra's own environment variable."""


def run_cli(main: Callable[[], Any]) -> None:
    """Call a Hydra ``main``; print what it raises as one line and exit with 1, or with 130 for Ctrl-C.

    With ``HYDRA_FULL_ERROR=1`` the traceback is shown.
    """
    # A closed pipe, as in `train.py | head`, is no reason to print a traceback for every line.
    logging.raiseExceptions = False
    # Hydra then hands the exception on, where it would print a part of the traceback itself.
    os.environ[TRACEBACK] = "1"
    # Read when torch is imported. Threads that spin while they wait for another take the core that it needs, if
    # the machine has other work: a step then takes a hundred times as long. Asleep, they cost microseconds.
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    # What is left at the end goes with the process; looking through it for garbage would take over a second.
    atexit.register(gc.freeze)
    # Hydra says in three lines that -m wins over hydra.mode=RUN, which is refused in one.
    warnings.filterwarnings("ignore", message=r"\s*Running Hydra app with --multirun")
    sys.argv[1:] = options_first(sys.argv[1:])
    try:
        compose_and_run(main)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if WANTS_TRACEBACK:
            raise
        conf = Path(inspect.getfile(inspect.unwrap(main))).parent / "conf"
        sys.exit(f"error: {format_error(error, conf)}")


def options_first(words: Sequence[str]) -> list[str]:
    """Return the words of a command line with its options before its overrides, as Hydra needs them.

    >>> options_first(["model=bn", "-m", "seed=0,1", "--config-dir", "mine"])
    ['-m', '--config-dir', 'mine', 'model=bn', 'seed=0,1']
    """
    given, others = get_args_parser().parse_known_args(list(words))
    for word in others:
        if word.startswith("-"):
            sys.exit(f"error: {word}: no such option; python train.py --help and --hydra-help list them")
    overrides = [*given.overrides, *others]
    options, left = [], list(overrides)
    for word in words:
        if word in left:
            left.remove(word)
        else:
            options.append(word)
    return [*options, *overrides]


def compose_and_run(main: Callable[[], Any]) -> None:
    """Call a Hydra ``main``; in a sweep, leave overrides of keys that only some arms have to the jobs.

    Hydra first sets every single value in the sweep's own config, which is composed without the swept choices:
    for ``model=gn,ws_gn model.norm.num_groups=8`` it has no such key. A choice of one value is set in jobs alone.
    """
    try:
        main()
    except ConfigCompositionException as error:
        words = as_choice(sys.argv[1:], error)
        if words is None:
            raise
        sys.argv[1:] = words
        try:
            compose_and_run(main)
        except ConfigCompositionException as second:
            # An experiment that is no sweep: the first error is the reason.
            raise error if "requires --multirun" in str(second) else second from None


def as_choice(words: Sequence[str], error: Exception) -> list[str] | None:
    """Return a sweep's words with the override that failed as a choice of one value; None if it is no such case.

    >>> missing = ConfigCompositionException("Could not override 'model.norm.num_groups'.")
    >>> as_choice(["-m", "model=gn,ws_gn", "model.norm.num_groups=8"], missing)
    ['-m', 'model=gn,ws_gn', 'model.norm.num_groups=choice(8)']
    """
    unknown = re.match(r"Could not override '([^']+)'", str(error))
    is_sweep = any(word in SWEEPS or word.startswith("experiment=") for word in words)
    if not unknown or not is_sweep:
        return None
    override = re.compile(rf"{re.escape(unknown[1])}=(?!choice\()(.+)", re.DOTALL)
    changed = [override.sub(rf"{unknown[1]}=choice(\1)", word) if override.match(word) else word for word in words]
    return changed if changed != list(words) else None
