"""What a run has written, without what differs between two trainings of it: :func:`contents`."""

import json
from pathlib import Path
from typing import Any

import torch

from normlab.results.result import RESULT_FILE

TIMES = ("seconds", "started", "ended", "environment", "command")
"""Fields of a result with times, the machine and the command."""


def contents(sweep: Path) -> dict[str, Any]:
    """Return result, curves and checkpoints of each run in the folder of a sweep, by the run's folder."""
    return {str(path.parent.relative_to(sweep)): run_contents(path.parent) for path in sweep.rglob(RESULT_FILE)}


def run_contents(folder: Path) -> dict[str, Any]:
    """Return result, curves and checkpoints of a run; numbers of checkpoints as bytes, bit for bit."""
    result = json.loads((folder / RESULT_FILE).read_text())
    written: dict[str, Any] = {key: value for key, value in result.items() if key not in TIMES}
    written["curves"] = (folder / "curves.csv").read_text()
    for path in sorted(folder.glob("checkpoints/*.pt")):
        state = torch.load(path, weights_only=True)["state_dict"]
        written[path.name] = {name: tensor.numpy().tobytes() for name, tensor in state.items()}
    return written


def leftovers(folder: Path) -> list[str]:
    """Return the paths of temporary files below a folder."""
    return [str(path) for path in folder.rglob("*") if path.is_file() and path.name.startswith(".")]
