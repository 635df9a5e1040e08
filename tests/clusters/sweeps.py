"""Sweeps as typed, and the comparison of the files that two of them leave: :func:`differing_files`."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

TRAIN = Path(__file__).parents[2] / "train.py"
TIMES = ("seconds", "started", "ended", "command")
"""Fields of a result that differ between two sweeps of the same runs."""


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    """Start ``python train.py`` in a folder."""
    pipes: Any = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "text": True,
    }
    return subprocess.Popen(
        [sys.executable, str(TRAIN), *arguments],
        cwd=folder,
        preexec_fn=reset_sigint,
        start_new_session=True,
        **pipes,
    )


def reset_sigint() -> None:
    """Install Python's handler of Ctrl-C, which is ignored where the tests run in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run(folder: Path, *arguments: str, seconds: float = 240) -> str:
    """Run ``python train.py`` in a folder, and return its output; it must succeed."""
    process = start(folder, *arguments)
    out, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, out
    return out


def differing_files(one: Path, other: Path) -> list[str]:
    """Return the files of two sweeps whose contents differ in more than times and machine names."""
    ours, theirs = files_of(one), files_of(other)
    lone = [f"{name} in one of them" for name in sorted(ours.keys() ^ theirs.keys())]
    return lone + [
        name for name in sorted(ours.keys() & theirs.keys()) if content(ours[name]) != content(theirs[name])
    ]


def files_of(sweep: Path) -> dict[str, Path]:
    """Return the files of a sweep's runs and its tables by name; all event files have the same name.

    Event files with the numbers of the tables are left out: they hold times.
    """
    paths = [path for path in sweep.rglob("*") if path.is_file() and ".closed." not in path.name]
    kept = [path for path in paths if path.suffix in (".csv", ".json", ".pt", ".npz") or is_in_run(path)]
    names = {path: "events" if path.name.startswith("events.") else path.name for path in kept}
    return {
        str(path.parent.relative_to(sweep) / names[path]): path
        for path in kept
        if not {".normlab", "report"}.intersection(path.parts)
    }


def is_in_run(path: Path) -> bool:
    """Return True for event files and configurations of runs, not those of the sweep's arms."""
    return (path.parent / "result.json").exists() or path.name == "config.yaml"


def content(path: Path) -> Any:
    """Return the content of a file without times and machine names, comparable by ``==``."""
    if path.suffix == ".pt":
        checkpoint = torch.load(path, weights_only=True)
        state = {
            name: (tensor.dtype, tensor.numpy().tobytes()) for name, tensor in checkpoint.pop("state_dict").items()
        }
        return state, json.dumps(checkpoint)
    if path.name == "result.json":
        return {key: value for key, value in json.loads(path.read_text()).items() if key not in TIMES}
    if path.name in ("summary.csv", "table.csv"):
        table = pd.read_csv(path)
        return table.drop(columns=[name for name in table if "second" in str(name)]).to_csv()
    if path.name.startswith("events."):
        return list(events(path))
    return None if path.name in ("train.log", "verdicts.json") else path.read_bytes()


def events(path: Path) -> Iterator[tuple[int, list[bytes]]]:
    """Yield step and values of the events in a file."""
    for event in EventFileLoader(str(path)).Load():
        if event.HasField("summary"):
            values = [value for value in event.summary.value if not value.tag.startswith("_hparams_")]
            yield event.step, [value.SerializeToString(deterministic=True) for value in values]
