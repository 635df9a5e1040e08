"""What a person sees when a command cannot be carried out: one line that says what to do instead."""

import atexit
import gc
import inspect
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf

from normlab.checks import parameters_of
from normlab.config import first_line, nearest

TRACEBACK = "HYDRA_FULL_ERROR"
WANTS_TRACEBACK = os.environ.get(TRACEBACK) == "1"
"""Whether the person asked for tracebacks, with Hydra's own environment variable."""


def in_one_line(main: Callable[[], Any]) -> None:
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
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if WANTS_TRACEBACK:
            raise
        conf = Path(inspect.getfile(inspect.unwrap(main))).parent / "conf"
        sys.exit(f"error: {explain(error, conf)}")


def explain(error: BaseException, conf: Path) -> str:
    """Return one line for what went wrong; a mistyped key or option comes with the nearest right one."""
    text = str(error)
    if unknown := re.match(r"Could not override '([^']+)'", text):
        return f"{unknown[1]}: no such key; {instead(unknown[1], conf)}"
    if isinstance(error, MissingConfigException) and error.options:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        meant, options = nearest(option, error.options), ", ".join(error.options)
        return f"{group}={option}: no such option; did you mean {meant}? There are {options}"
    if sweep := re.match(r"(?:Ambiguous value for argument|Sweep parameters) '([^']+)'", text):
        return f"{sweep[1]}: several values are a sweep, which needs -m: python train.py -m {sweep[1]}"
    if isinstance(error, OverrideParseException) or text.startswith("Error parsing override"):
        what = getattr(error, "override", None) or text.partition("'")[2].partition("'")[0]
        return f"cannot read {what}: write key=value, without spaces, and quote a value that has = or , or spaces"
    if isinstance(error, InstantiationException) and error.__cause__:
        return first_line(error.__cause__)
    if isinstance(error, HydraException) and error.__cause__ and str(error.__cause__) not in text:
        return f"{first_line(error)}: {first_line(error.__cause__)}"
    return first_line(error)


def instead(key: str, conf: Path) -> str:
    """Return what to type in place of a key that the configuration does not have."""
    folders = [conf, *config_dirs()]
    searched = ",".join(f"'file://{folder.absolute()}'" for folder in folders[1:])
    words = [f"hydra.searchpath=[{searched}]", *chosen(folders)]
    with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
        config = compose("train", words, return_hydra_config=key.startswith("hydra."))
    group, _, rest = key.partition(".")
    if rest in arguments_of(config, group):
        return f"to hand {rest} to {config[group]._target_}, write +{key}="
    options = [path.stem for path in sorted((conf / group).glob("*.yaml"))]
    having = [option for option in options if rest and has(conf / group / f"{option}.yaml", rest)]
    if having:
        return f"{', '.join(f'{group}={option}' for option in having)} {'has' if len(having) == 1 else 'have'} it"
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else None
    if not is_group(node) or not node:
        keys = keys_of(config)
        same = [known for known in keys if known.rpartition(".")[2] == name]
        return f"did you mean {nearest(key, same or keys)}?"
    target = node.get("_target_")
    arguments = arguments_of(config, parent)
    if name in arguments:
        return f"to hand {name} to {target}, write +{key}="
    meant = nearest(name, sorted(arguments | set(node)))
    return f"did you mean {'' if meant in node else '+'}{parent}.{meant}?"


def arguments_of(config: DictConfig, path: str) -> set[str]:
    """Return the arguments of the ``_target_`` of a group, if it has one."""
    node = OmegaConf.select(config, path)
    target = node.get("_target_") if is_group(node) else None
    return set(parameters_of(path, target)) if target else set()


def config_dirs() -> list[Path]:
    """Return the folders of configurations that the command line adds."""
    words = (
        " ".join(sys.argv[1:]).replace("--config-dir=", "--config-dir ").replace("-cd ", "--config-dir ").split()
    )
    return [Path(folder) for option, folder in pairwise(words) if option == "--config-dir"]


def chosen(folders: Sequence[Path]) -> list[str]:
    """Return the group choices among the words of the command line."""
    words = [word.partition("=") for word in sys.argv[1:]]
    return [
        f"{group}={option}"
        for group, _, option in words
        if any((folder / group / f"{option}.yaml").is_file() for folder in folders)
    ]


def has(path: Path, key: str) -> bool:
    """Return whether an option's file has a key."""
    return key in keys_of(OmegaConf.load(path))  # type: ignore[arg-type]


def keys_of(node: DictConfig, path: str = "") -> list[str]:
    """Return every dotted key of a configuration."""
    keys = [f"{path}{key!s}" for key in node]
    groups = {str(key): child for key, child in node.items_ex(resolve=False) if is_group(child)}
    return keys + [key for name, child in groups.items() for key in keys_of(child, f"{path}{name}.")]


def is_group(node: Any) -> bool:
    """Return whether a node of a configuration holds keys."""
    return isinstance(node, DictConfig) and not node._is_none()
