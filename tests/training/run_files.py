"""Compares the files of two runs, or of two sweeps, bit by bit, but for times and machines."""

import json
import math
from pathlib import Path

import pandas as pd
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TIMES = ("seconds", "started", "ended", "name", "overrides", "command", "environment")
TABLES = ("summary.csv", "table.csv")


def scalars(folder: Path) -> dict[str, str]:
    """Return steps and values of each scalar tag as text, in which NaN equals NaN.

    The numbers of the report's tables are left out, among them times.
    """
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if "table/" not in tag]
    return {tag: str([(event.step, event.value) for event in events.Scalars(tag)]) for tag in tags}


def require_equal(one, other, path: str = "") -> None:
    """Assert that two nested structures are equal bit by bit."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            require_equal(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, path
        assert torch.equal(one.nan_to_num(7e7), other.nan_to_num(7e7)), path
    else:
        assert one == other or math.isnan(one), path


def require_same_files(one: Path, other: Path, events: bool = True) -> None:
    """Assert that the files of two runs are equal, but for their times; event files only if ``events``."""
    for name in ("curves.csv", "probes.csv", "probes.npz"):
        contents = [(folder / name).read_bytes() if (folder / name).exists() else b"" for folder in (one, other)]
        assert contents[0] == contents[1], name
    for name in ("best", "last"):
        path = f"checkpoints/{name}.pt"
        require_equal(*(torch.load(folder / path, weights_only=True) for folder in (one, other)), path)
    results = [json.loads((folder / "result.json").read_text()) for folder in (one, other)]
    require_equal(*({k: v for k, v in result.items() if k not in TIMES} for result in results), "result")
    assert not events or scalars(one) == scalars(other)


def run_folders(sweep: Path) -> list[str]:
    """Return the folders of the runs with a result, relative to that of their sweep."""
    return sorted(path.parent.relative_to(sweep).as_posix() for path in sweep.rglob("result.json"))


def require_same_sweep(one: Path, other: Path) -> None:
    """Assert that two sweeps have the same runs, files of runs and tables, but for their times."""
    assert run_folders(one) == run_folders(other)
    for name in run_folders(one):
        require_same_files(one / name, other / name)
        assert {path.name for path in (one / name).iterdir() if not path.name.startswith("events")} == {
            path.name for path in (other / name).iterdir() if not path.name.startswith("events")
        }
    for name in TABLES:
        tables = [pd.read_csv(sweep / name) for sweep in (one, other)]
        tables = [table[[column for column in table if "second" not in column]] for table in tables]
        pd.testing.assert_frame_equal(*tables, check_exact=True)
