"""Tables and files of an evaluation: :func:`print_tables` and :func:`write_files`."""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from normlab.config.frozen import FrozenConfig, recorded, to_jsonable
from normlab.evaluation.configuration import used_part
from normlab.report import shorter_path
from normlab.report.console import (
    TRAIN_EVAL_NOTE,
    aligned,
    csv_text,
    format_mean,
    format_number,
    split_columns,
)
from normlab.report.factors import find_factors
from normlab.report.sweep_summary import configuration_labels, repeated_runs
from normlab.results.folder import free_folder
from normlab.results.provenance import entry_point, environment
from normlab.results.result import write_atomically
from normlab.results.sweep import Record
from normlab.stats.design import ENDS, mean_and_error

log = logging.getLogger("normlab")


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a checkpoint.

    Attributes:
        record: of the run.
        config: the configuration of the evaluation.
        checkpoint: ``best`` or ``last``; after ``epoch`` epochs and ``step`` optimizer steps.
        metrics: by name, such as ``test/loss``.
        data: the data section of a record, see :class:`normlab.results.result.Result`.
        shared: number of held-out samples that were training samples of the run.
    """

    record: Record
    config: FrozenConfig
    checkpoint: str
    epoch: int
    step: int
    metrics: dict[str, float]
    data: dict[str, Any]
    shared: int


def common_folder(folders: Sequence[Path]) -> Path:
    """Return the folder of one run, or the folder that contains several; a packed run has that of its sweep."""
    if len(folders) > 1:
        return Path(os.path.commonpath([folder.absolute() for folder in folders]))
    return next(folder for folder in (folders[0], *folders[0].parents) if folder.is_dir())


def run_frame(evaluations: Sequence[Evaluation]) -> pd.DataFrame:
    """Return a row per run: its folder, configuration, seed, checkpoint and metrics; repeated runs are marked."""
    records = [evaluation.record for evaluation in evaluations]
    results = [record.result for record in records]
    factors = find_factors(results, lambda: [record.unresolved() for record in records])
    labels, folders = configuration_labels(results, factors), [record.folder for record in records]
    names = [os.path.relpath(folder, common_folder(folders)) for folder in folders]
    frame = pd.DataFrame(
        {
            "run": names if len(names) > 1 else [shorter_path(folders[0])],
            "configuration": labels,
            "seed": [result.config.get("seed") for result in results],
            "checkpoint": [evaluation.checkpoint for evaluation in evaluations],
            "epoch": [evaluation.epoch for evaluation in evaluations],
            "step": [evaluation.step for evaluation in evaluations],
        }
    )
    return frame.assign(repeated=frame.index.isin(repeated_runs(results, frame))).join(
        pd.DataFrame([evaluation.metrics for evaluation in evaluations])
    )


def metric_columns(evaluations: Sequence[Evaluation]) -> list[str]:
    """Return the names of all metrics, in the order of metrics, then splits."""
    names = list(dict.fromkeys(name.partition("/")[2] for one in evaluations for name in one.metrics))
    known = {name for evaluation in evaluations for name in evaluation.metrics}
    return [f"{split}/{name}" for name in names for split in ENDS if f"{split}/{name}" in known]


def configuration_rows(frame: pd.DataFrame, metrics: Sequence[str]) -> list[dict[str, Any]]:
    """Return name, number of runs, means and standard errors of each configuration; repeated runs count once."""
    rows = []
    for name, runs in frame[~frame["repeated"]].groupby("configuration", sort=False):
        pairs = {metric: mean_and_error(runs[metric]) for metric in metrics}
        means, errors = ({metric: pair[k] for metric, pair in pairs.items()} for k in (0, 1))
        rows.append({"configuration": name, "runs": len(runs), "mean": means, "standard_error": errors})
    return rows


def print_tables(evaluations: Sequence[Evaluation]) -> None:
    """Print a row per run and, if a configuration has several runs, a row per configuration with its means."""
    frame, metrics = run_frame(evaluations), metric_columns(evaluations)
    # The mse of regression usually is the loss.
    shown = [name for name in metrics if not (name.endswith("/mse") and is_loss(frame, name))]
    numbers = {name: [format_number(value) for value in frame[name]] for name in shown}
    blocks = [table({"run": frame["run"].tolist()}, {"epoch": [str(n) for n in frame["epoch"]], **numbers})]
    rows = configuration_rows(frame, shown)
    notes = [TRAIN_EVAL_NOTE, *shared_note(evaluations)]
    if any(row["runs"] > 1 for row in rows):
        means = {
            name: [format_mean(row["mean"][name], row["standard_error"][name]) for row in rows] for name in shown
        }
        counts = {"runs": [str(row["runs"]) for row in rows]}
        blocks.append(table({"configuration": [row["configuration"] for row in rows]}, counts | means))
        notes.insert(0, "mean ± standard error over the runs of a configuration")
    for line in [line for block in (*blocks, notes) for line in (*block, "")]:
        log.info(line)


def shared_note(evaluations: Sequence[Evaluation]) -> list[str]:
    """Return a warning if held-out samples were training samples of a run, or nothing."""
    counts = [evaluation.shared for evaluation in evaluations if evaluation.shared]
    among = f" in {len(counts)} of {len(evaluations)} runs" if len(evaluations) > 1 else ""
    line = f"up to {max(counts, default=0)} samples of val and test were training samples of the net{among}"
    return [f"{line}: they are not held out"] if counts else []


def is_loss(frame: pd.DataFrame, name: str) -> bool:
    """Return True if a column equals the loss of the same split."""
    loss = frame[f"{name.partition('/')[0]}/loss"]
    return bool(np.allclose(frame[name], loss, rtol=1e-5, atol=0, equal_nan=True))


def table(left: dict[str, list[str]], right: dict[str, list[str]]) -> list[str]:
    """Return the lines of a table; a wide one is continued below with further columns."""
    first, *others = (aligned(left, part) for part in split_columns(left, right))
    return [*first, *(line for lines in others for line in ("", *lines))]


def write_files(evaluations: Sequence[Evaluation], name: str, words: Sequence[str]) -> Path:
    """Write ``eval.csv`` and ``eval.json`` into a new folder, and return it.

    Args:
        evaluations: of at least one run.
        name: of the folder, which is made in that of the run, or in the one that contains the runs; it gets a
            number if it exists.
        words: the command line after ``eval.py``.
    """
    frame, metrics = run_frame(evaluations), metric_columns(evaluations)
    folder = free_folder(common_folder([evaluation.record.folder for evaluation in evaluations]) / name)
    content = {
        "command": [*entry_point(), *words],
        "runs": list(map(run_entry, evaluations)),
        "configurations": configuration_rows(frame, metrics),
        "environment": environment(),
    }
    write_atomically(folder / "eval.csv", csv_text(frame.drop(columns="repeated")))
    write_atomically(folder / "eval.json", json.dumps(to_jsonable(content), indent=2) + "\n")
    return folder


def run_entry(evaluation: Evaluation) -> dict[str, Any]:
    """Return the entry of a run in ``eval.json``."""
    return {
        "folder": shorter_path(evaluation.record.folder),
        "name": evaluation.record.result.name,
        "checkpoint": evaluation.checkpoint,
        "epoch": evaluation.epoch,
        "step": evaluation.step,
        "metrics": evaluation.metrics,
        "data": evaluation.data,
        "held_out_training_samples": evaluation.shared,
        "config": recorded(used_part(evaluation.config)),
    }
