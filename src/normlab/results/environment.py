"""Where a run was trained: versions, machine, commit."""

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("normlab", "torch", "pytorch-lightning", "hydra-core", "torchmetrics", "tensorboard", "numpy")


@cache
def environment() -> dict[str, Any]:
    """Return the versions, the machine and the commit that this process runs with."""
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "machine": {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count()},
        **commit(),
    }


def commit() -> dict[str, Any]:
    """Return the commit of this source tree, and whether it has been changed since; None where there is no git."""
    try:
        revision = git("rev-parse", "HEAD")
        return {"commit": revision, "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def git(*arguments: str) -> str:
    """Return the output of a git command in the folder of this file."""
    command = ["git", *arguments]
    return subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    ).stdout.strip()
