"""Command-line entry :func:`run_cli`: calls a Hydra ``main`` and prints errors as one line with a remedy."""

import atexit
import gc
import inspect
import logging
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from hydra._internal.utils import get_args_parser
from hydra.errors import ConfigCompositionException

from normlab.config.typed_targets import with_target_arguments
from normlab.error_messages import format_error
from normlab.interrupts import Preempted, interrupts
from normlab.option_folders import config_folders, keys_in_group, misspelt_groups, program, require_new_options
from normlab.srun import exit_unless_first_task

T = TypeVar("T")
MULTIRUN_OPTIONS = ("-m", "--multirun", "hydra.mode=MULTIRUN")
TRACEBACK_VARIABLE = "HYDRA_FULL_ERROR"
WANTS_TRACEBACK = os.environ.get(TRACEBACK_VARIABLE) == "1"
"""True if the user asked for tracebacks with Hydra's environment variable."""
STARTED = time.time()
"""Time at which the process imported this module, in Unix seconds."""


def run_cli(main: Callable[[], Any], conf: Path | None = None) -> None:
    """Call a Hydra ``main``; print an error as one line and exit with 1, after a signal with 128 + its number.

    With ``HYDRA_FULL_ERROR=1`` the exception is raised, so that Python prints the traceback.

    Args:
        main: reads the command line.
        conf: the folder of the config groups; by default ``conf`` beside the file of ``main``.
    """
    exit_unless_first_task()
    # With a closed pipe, as in `train.py | head`, logging would print a traceback for every line.
    logging.raiseExceptions = False
    # Makes Hydra re-raise the exception; otherwise it prints part of the traceback itself and exits.
    os.environ[TRACEBACK_VARIABLE] = "1"
    # GOMP_SPINCOUNT is read when torch is imported. On a busy machine, waiting OpenMP threads that spin occupy the
    # core that the others need: a step then takes a hundred times as long. Sleeping costs microseconds.
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    # Imports and sweeps create many long-lived objects; with the default threshold of 700, garbage collection
    # takes a fifth of the time of the imports. The one at exit takes over a second; the memory is freed anyway.
    gc.set_threshold(50_000)
    atexit.register(gc.freeze)
    # Hydra warns in three lines that -m overrides hydra.mode=RUN; normlab rejects the combination in one.
    warnings.filterwarnings("ignore", message=r"\s*Running Hydra app with --multirun")
    sys.argv[1:] = options_first(sys.argv[1:])
    conf = conf or Path(inspect.getfile(inspect.unwrap(main))).parent / "conf"
    try:
        with interrupts.remembered():
            compose_and_run(main, conf)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Preempted as error:
        print(error, file=sys.stderr)
        sys.exit(128 + error.signum)
    except Exception as error:
        if WANTS_TRACEBACK:
            raise
        sys.exit(f"error: {format_error(error, conf)}")


def options_first(words: Sequence[str]) -> list[str]:
    """Move the options of a command line before its overrides, as Hydra requires.

    >>> options_first(["model=bn", "-m", "seed=0,1", "--config-dir", "mine"])
    ['-m', '--config-dir', 'mine', 'model=bn', 'seed=0,1']
    """
    known, unknown = get_args_parser().parse_known_args(list(words))
    for word in unknown:
        if word.startswith("-"):
            sys.exit(f"error: {word}: no such option; {program()} --help and --hydra-help list them")
    overrides = [*known.overrides, *unknown]
    options, remaining = [], list(overrides)
    for word in words:
        if word in remaining:
            remaining.remove(word)
        else:
            options.append(word)
    return [*options, *overrides]


@contextmanager
def called_as(name: str, words: Sequence[str]) -> Iterator[None]:
    """Context manager in which the command line of this process is another one."""
    before = sys.argv
    sys.argv = [name, *words]
    try:
        yield
    finally:
        sys.argv = before


def compose_and_run(main: Callable[[], T], conf: Path) -> T:
    """Call a Hydra ``main`` with the command line; in a sweep, retry a failed override as a one-value choice.

    Hydra applies single values to the sweep's own config, which is composed without the swept choices: with
    ``model=gn,ws_gn model.norm.num_groups=8`` it has no key ``num_groups``. A choice is applied to the jobs only.
    """
    require_new_options(config_folders(conf), conf)
    for warning in misspelt_groups(config_folders(conf), conf):
        print(f"warning: {warning}", file=sys.stderr)
    sys.argv[1:] = with_target_arguments(sys.argv[1:], lambda group: keys_in_group(group, conf))
    return run_with_retries(main)


def run_with_retries(main: Callable[[], T]) -> T:
    """Call ``main``; retry with one override rewritten, until none of the failed ones can be."""
    try:
        return main()
    except ConfigCompositionException as error:
        words = wrap_in_choice(sys.argv[1:], error)
        if words is None:
            raise
        sys.argv[1:] = words
        try:
            return run_with_retries(main)
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
    is_sweep = any(word in MULTIRUN_OPTIONS or word.startswith(("experiment=", "claim=")) for word in words)
    if not failed_key or not is_sweep or failed_key[1].startswith("hydra"):
        return None
    key = failed_key[1]
    override = re.compile(rf"{re.escape(key)}=(?!choice\()(.+)", re.DOTALL)
    changed = [override.sub(rf"{key}=choice(\1)", word) if override.match(word) else word for word in words]
    return changed if changed != list(words) else None
