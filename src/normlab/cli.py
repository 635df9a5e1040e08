"""Command-line entry :func:`run_cli`: calls a Hydra ``main`` and prints errors as one line."""

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

MULTIRUN_OPTIONS = ("-m", "--multirun", "hydra.mode=MULTIRUN")
TRACEBACK_VARIABLE = "HYDRA_FULL_ERROR"
WANTS_TRACEBACK = os.environ.get(TRACEBACK_VARIABLE) == "1"
"""True if the user asked for tracebacks with Hydra's environment variable."""


def run_cli(main: Callable[[], Any]) -> None:
    """Call a Hydra ``main``; print an exception as one line and exit with 1, or with 130 after Ctrl-C.

    With ``HYDRA_FULL_ERROR=1`` the exception is raised, so that Python prints the traceback.
    """
    # With a closed pipe, as in `train.py | head`, logging would print a traceback for every line.
    logging.raiseExceptions = False
    # Makes Hydra re-raise the exception; otherwise it prints part of the traceback itself and exits.
    os.environ[TRACEBACK_VARIABLE] = "1"
    # GOMP_SPINCOUNT is read when torch is imported. On a busy machine, waiting OpenMP threads that spin occupy the
    # core that the others need: a step then takes a hundred times as long. Sleeping costs microseconds.
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    # Skip the garbage collection at exit, which takes over a second; the process frees its memory anyway.
    atexit.register(gc.freeze)
    # Hydra warns in three lines that -m overrides hydra.mode=RUN; normlab rejects the combination in one.
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
    """Move the options of a command line before its overrides, as Hydra requires.

    >>> options_first(["model=bn", "-m", "seed=0,1", "--config-dir", "mine"])
    ['-m', '--config-dir', 'mine', 'model=bn', 'seed=0,1']
    """
    known, unknown = get_args_parser().parse_known_args(list(words))
    for word in unknown:
        if word.startswith("-"):
            sys.exit(f"error: {word}: no such option; python train.py --help and --hydra-help list them")
    overrides = [*known.overrides, *unknown]
    options, remaining = [], list(overrides)
    for word in words:
        if word in remaining:
            remaining.remove(word)
        else:
            options.append(word)
    return [*options, *overrides]


def compose_and_run(main: Callable[[], Any]) -> None:
    """Call a Hydra ``main``; in a sweep, retry a failed override as a one-value choice.

    Hydra applies single values to the sweep's own config, which is composed without the swept choices: with
    ``model=gn,ws_gn model.norm.num_groups=8`` it has no key ``num_groups``. A choice is applied to the jobs only.
    """
    try:
        main()
    except ConfigCompositionException as error:
        words = wrap_in_choice(sys.argv[1:], error)
        if words is None:
            raise
        sys.argv[1:] = words
        try:
            compose_and_run(main)
        except ConfigCompositionException as second:
            # The experiment is not a sweep, so the original error is the relevant one.
            raise error if "requires --multirun" in str(second) else second from None


def wrap_in_choice(words: Sequence[str], error: Exception) -> list[str] | None:
    """Rewrite the failed override of a sweep as ``choice(value)``; return None if that does not apply.

    >>> missing = ConfigCompositionException("Could not override 'model.norm.num_groups'.")
    >>> wrap_in_choice(["-m", "model=gn,ws_gn", "model.norm.num_groups=8"], missing)
    ['-m', 'model=gn,ws_gn', 'model.norm.num_groups=choice(8)']
    """
    failed_key = re.match(r"Could not override '([^']+)'", str(error))
    is_sweep = any(word in MULTIRUN_OPTIONS or word.startswith("experiment=") for word in words)
    if not failed_key or not is_sweep:
        return None
    key = failed_key[1]
    override = re.compile(rf"{re.escape(key)}=(?!choice\()(.+)", re.DOTALL)
    changed = [override.sub(rf"{key}=choice(\1)", word) if override.match(word) else word for word in words]
    return changed if changed != list(words) else None
