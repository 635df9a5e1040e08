"""Growth of a sweep's records: seconds of the report, files, inodes and bytes per run, from folders and packed.

A small sweep is trained, of four normalizers and five learning rates with one seed. Its records are then copied to
further seeds, with other numbers: each copy multiplies the metrics by a random factor. Packed records are written
from the folders, 256 runs in a file. The report is a whole process, ``normlab report FOLDER``.

    python benchmarks/records.py [--runs 100 1000 10000] [--records folders packed] [--folder FOLDER]
"""

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from normlab.results.packed import PackedRow, write_pack
from normlab.results.result import RESULT_FILE
from normlab.results.series import CURVES_FILE

TRAIN = Path(__file__).resolve().parent.parent / "train.py"
COMMAND = ["-m", "model=bn,nobn,ln,rms", "optimizer.lr=0.001,0.003,0.01,0.03,0.1", "seed=0"]
MEMBERS = 256
"""Number of runs in a file of packed records."""
SPREAD = 0.1
"""Standard deviation of the logarithm of the factor of a copy."""


@dataclass(frozen=True)
class Template:
    """The files of a trained run, by path relative to its folder."""

    name: str
    files: dict[str, bytes]

    @classmethod
    def read(cls, folder: Path) -> "Template":
        """Read the files of a run."""
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        return cls(folder.name, {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths})

    def write(self, top: Path, seed: int, factor: float) -> None:
        """Write a copy of the run with another seed, whose metrics are multiplied by a factor."""
        folder = top / f"{self.name},seed={seed}"
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(copied(name, content, seed, factor))


def copied(name: str, content: bytes, seed: int, factor: float) -> bytes:
    """Return the content of a file of a run with another seed, whose metrics are multiplied by a factor."""
    if name == RESULT_FILE:
        return json.dumps(scaled_result(json.loads(content), seed, factor), indent=2).encode() + b"\n"
    if name == CURVES_FILE:
        header, *lines = content.decode().splitlines()
        cut = (line.rpartition(",") for line in lines)
        return "\n".join([header, *(f"{start},{float(value) * factor!r}" for start, _, value in cut), ""]).encode()
    if name.startswith(".hydra/"):
        return re.sub(rb"\bseed([:=] ?)0\b", rf"seed\g<1>{seed}".encode(), content)
    return content


def scaled_result(result: dict[str, Any], seed: int, factor: float) -> dict[str, Any]:
    """Return the record of a run with another seed, whose metrics are multiplied by a factor."""
    result["config"]["seed"] = seed
    result["overrides"] = [f"seed={seed}" if word.startswith("seed=") else word for word in result["overrides"]]
    result["name"] = f"{result['name']},seed={seed}"
    result["objective"]["value"] *= factor
    for part in (result["best"]["metrics"], result["last"]["metrics"], result["test"], result["final"]):
        part.update({name: value * factor for name, value in part.items()})
    return result


def train_templates(folder: Path) -> list[Template]:
    """Train the small sweep unless it is done, and return its runs."""
    command = [sys.executable, str(TRAIN), *COMMAND, f"hydra.sweep.dir={folder}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return [Template.read(path.parent) for path in sorted(folder.glob(f"*/{RESULT_FILE}"))]


def write_folders(templates: list[Template], trained: Path, top: Path, runs: int) -> None:
    """Write a sweep of copies of the templates."""
    generator = np.random.default_rng(0)
    top.mkdir(parents=True)
    shutil.copy(trained / "multirun.yaml", top)
    for number in range(runs):
        seed, k = divmod(number, len(templates))
        templates[k].write(top, seed, math.exp(SPREAD * generator.normal()))


def report_seconds(folder: Path) -> tuple[float, float]:
    """Return the wall-clock seconds of the report's process, and its peak memory in GB."""
    command = [sys.executable, "-m", "normlab.report", str(folder)]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return time.perf_counter() - started, usage.ru_maxrss / 2**20


def usage_of(folder: Path) -> tuple[int, int, int]:
    """Return the numbers of files, inodes and bytes on the disk below a folder."""
    files = inodes = size = 0
    for path, folders, names in os.walk(folder):
        files, inodes = files + len(names), inodes + len(names) + len(folders)
        size += sum(os.lstat(os.path.join(path, name)).st_blocks * 512 for name in (*names, *folders))
    return files, inodes, size


def pack(folders: Path, top: Path) -> None:
    """Write the packed records of a sweep in folders; runs of one net have their checkpoints in one file."""
    top.mkdir(parents=True)
    shutil.copy(folders / "multirun.yaml", top)
    paths = sorted(path.parent for path in folders.glob(f"*/{RESULT_FILE}"))
    for start in range(0, len(paths), MEMBERS):
        runs = paths[start : start + MEMBERS]
        path = write_pack(top, [packed_row(run) for run in runs])
        checkpoints = {
            name: [torch.load(run / "checkpoints" / f"{name}.pt", weights_only=True) for run in runs]
            for name in ("best", "last")
        }
        torch.save({name: stacked(states) for name, states in checkpoints.items()}, path.with_suffix(".pt"))


def packed_row(run: Path) -> PackedRow:
    """Return the row of a run in packed records."""
    hydra = {path.stem: path.read_text() for path in (run / ".hydra").iterdir()}
    lines = (run / CURVES_FILE).read_text().splitlines()[1:]
    cells = (line.split(",") for line in lines)
    rows = [(int(epoch), int(step), split, metric, float(value)) for epoch, step, split, metric, value in cells]
    return PackedRow(run.name, (run / RESULT_FILE).read_text(), hydra, {CURVES_FILE: rows})


def stacked(states: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the checkpoints of runs as stacked tensors, of the runs with the net of the first one."""
    names = {name: value.shape for name, value in states[0]["state_dict"].items()}
    same = [s for s in states if {name: value.shape for name, value in s["state_dict"].items()} == names]
    tensors = {name: torch.stack([state["state_dict"][name] for state in same]) for name in names}
    reached = [{key: value for key, value in state.items() if key != "state_dict"} for state in same]
    return {"state_dict": tensors, "reached": reached}


def measure(templates: list[Template], base: Path, runs: int, records: str) -> None:
    """Print a line of the table."""
    folders, sweep = base / f"folders-{runs}", base / f"{records}-{runs}"
    if not folders.exists():
        write_folders(templates, base / "trained", folders, runs)
    if not sweep.exists():
        pack(folders, sweep)
    shutil.rmtree(sweep / "report", ignore_errors=True)
    files, inodes, size = usage_of(sweep)
    seconds, memory = report_seconds(sweep)
    per_run = f"{files / runs:15.2f}{inodes / runs:16.2f}{size / runs / 1000:12.1f}"
    print(f"{runs:8}{records:>10}{per_run}{seconds:10.1f} s{memory:8.2f} GB", flush=True)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--records", nargs="+", choices=("folders", "packed"), default=["folders", "packed"])
    parser.add_argument("--folder", type=Path, help="of the sweeps, which are kept; default: a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        base = arguments.folder or Path(temporary)
        templates = train_templates(base / "trained")
        print(f"{'runs':>8}{'records':>10}  files per run  inodes per run  kB per run      report     memory")
        for runs in arguments.runs:
            for records in arguments.records:
                measure(templates, base, runs, records)


if __name__ == "__main__":
    main()
