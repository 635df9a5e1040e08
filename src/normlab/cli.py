"""What a person sees when a command cannot be carried out: one line that says what to do instead."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from normlab.config import ConfigError, first_line, nearest

TRACEBACK = "HYDRA_FULL_ERROR"


def in_one_line(main: Callable[[], Any], conf: Path = Path("conf")) -> None:
    """Call ``main``; print what it raises as one line and exit with 1, or 130 for Ctrl-C.

    With ``HYDRA_FULL_ERROR=1`` the traceback is shown.
    """
    asked = os.environ.get(TRACEBACK) == "1"
    # Hydra then hands the exception on, where it would print a part of the traceback itself.
    os.environ[TRACEBACK] = "1"
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if asked:
            raise
        sys.exit(f"error: {explain(error)}")
