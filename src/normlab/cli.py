"""What a person sees when a command cannot be carried out: one line that says what to do instead."""

import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import MissingConfigException
from omegaconf import DictConfig

from normlab.config import first_line, nearest

TRACEBACK = "HYDRA_FULL_ERROR"


def in_one_line(main: Callable[[], Any]) -> None:
    """Call a Hydra ``main``; print what it raises as one line and exit with 1, or with 130 for Ctrl-C.

    With ``HYDRA_FULL_ERROR=1`` the traceback is shown.
    """
    asked = wants_traceback()
    # Hydra then hands the exception on, where it would print a part of the traceback itself.
    os.environ[TRACEBACK] = "1"
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if asked:
            raise
        sys.exit(f"error: {explain(error, Path(inspect.getfile(main)).parent / 'conf')}")
    finally:
        os.environ[TRACEBACK] = "1" if asked else "0"


def wants_traceback() -> bool:
    """Return whether the person asked for tracebacks, with Hydra's own environment variable."""
    return os.environ.get(TRACEBACK) == "1"


def explain(error: BaseException, conf: Path) -> str:
    """Return one line for what went wrong; a mistyped key or option comes with the nearest right one."""
    unknown = re.match(r"Could not override '([^']+)'", str(error))
    if unknown:
        key = unknown[1].rpartition("@")[0] or unknown[1]
        return f"{key}: no such key; did you mean {nearest(key, known_keys(conf))}?"
    if isinstance(error, MissingConfigException) and error.options:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        options = ", ".join(error.options)
        return f"{group}={option}: no such option; did you mean {nearest(option, error.options)}? There are {options}"
    cause = error.__cause__
    return f"{first_line(error)}: {first_line(cause)}" if cause and str(cause) not in str(error) else first_line(error)


def known_keys(conf: Path) -> list[str]:
    """Return every key that ``train.yaml`` composes by default."""

    def keys(node: DictConfig, path: str) -> Iterator[str]:
        for key in node:
            yield f"{path}{key}"
            if isinstance(node._get_node(key), DictConfig):
                yield from keys(node[key], f"{path}{key}.")

    with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
        return list(keys(compose("train"), ""))
