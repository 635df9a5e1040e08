"""The words of a command before its overrides, as ``python train.py --config-name short``, which repeat a run."""

import json
import os
import sys
from pathlib import Path

from hydra._internal.utils import get_args_parser

VARIABLE = "NORMLAB_COMMAND"
"""The environment variable that hands the words to the processes in which a launcher trains."""

OPTIONS = ("config_path", "config_name", "config_dir")
KEPT = (
    "hydra.searchpath=",
    "+hydra.job.env_set.",
    "hydra.job.env_set=",
    "hydra.job.env_copy=",
    "hydra.job.chdir=",
)
"""Overrides of Hydra's own keys that change what a run trains; others say where it is written and how."""


def remember_command() -> None:
    """Note the words of this process's command for the runs that it and its workers train."""
    os.environ[VARIABLE] = json.dumps([*entry_point(), *options(sys.argv[1:])])


def remembered_command() -> list[str]:
    """Return the words that were noted, none where nothing was."""
    return json.loads(os.environ.get(VARIABLE, "[]"))


def entry_point() -> list[str]:
    """Return the words that start the program: a file, a module or an installed command."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is not None and spec.origin and Path(spec.origin).absolute() == Path(sys.argv[0]).absolute():
        return ["python", "-m", spec.name.removesuffix(".__main__")]
    if sys.argv[0].endswith(".py"):
        return ["python", sys.argv[0]]
    return [Path(sys.argv[0]).name]


def options(words: list[str]) -> list[str]:
    """Return the options and overrides among the words that choose where the configuration comes from.

    >>> options(["-m", "-cd", "mine", "model=bn", "hydra.searchpath=[file://lab]"])
    ['--config-dir', 'mine', 'hydra.searchpath=[file://lab]']
    """
    given, others = get_args_parser().parse_known_args(words)
    chosen = [(name, value) for name in OPTIONS if (value := getattr(given, name)) is not None]
    kept = [word for word in (*given.overrides, *others) if word.startswith(KEPT)]
    return [*(word for name, value in chosen for word in (f"--{name.replace('_', '-')}", value)), *kept]
