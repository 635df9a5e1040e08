"""The end of a sweep: its tables, its curves, and the columns of TensorBoard's HParams tab.

Hydra imports this before anything trains: what is slow to import is imported when a sweep is closed.
"""

import itertools
import logging
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from normlab.records.hparams import GROUPS, flat
from normlab.records.result import Result, write_atomically
from normlab.records.sweep import Record, read_sweep

if TYPE_CHECKING:
    from normlab.report.overview import Overview

COLUMNS = (*GROUPS, "seed", "data.seed", "optimizer.lr", "data.batch_size", "trainer.max_epochs")
log = logging.getLogger("normlab")


def close_sweep(folder: Path) -> None:
    """Write ``summary.csv``, ``table.csv`` and the curves into a sweep's folder, and print its table.

    Closing it again replaces these files and nothing else. That a folder cannot be written to is said and not
    raised: this is called when a sweep ends, also by an error, and that one is to be seen.
    """
    try:
        records = read_sweep(folder)
        if not records:
            log.warning("no run began in %s: there is nothing to sum up", shown(folder))
            return
        write(folder, records)
    except OSError as error:
        log.error("the sweep in %s could not be summed up: %s", shown(folder), error)


def close_run(folder: Path) -> None:
    """Draw what the probes of a run alone found into its folder, and into TensorBoard's Images tab."""
    from normlab.records import probes
    from normlab.records.events import OURS, EventFile
    from normlab.report.overview import overview
    from normlab.report.probes import write_images, write_probe_figures

    if not (folder / probes.FILE).exists():
        return
    records = read_sweep(folder)
    figures = write_probe_figures(overview(records), records, folder)
    if any(folder.glob(OURS)):
        write_images(EventFile(folder), figures)
    log.info("%s: %s", shown(folder), ", ".join([probes.FILE, *(path.name for path in figures)]))


def write(folder: Path, records: Sequence[Record]) -> None:
    """Write everything into ``folder``, and print the table and where the rest is."""
    from normlab.report.compared import comparisons
    from normlab.report.compared import printed as compared
    from normlab.report.figures import write_curves
    from normlab.report.learning_rates import write_learning_rates
    from normlab.report.notes import notes, title
    from normlab.report.overview import overview
    from normlab.report.probe_tables import printed_probes, probe_table, run_columns
    from normlab.report.probes import write_probe_figures
    from normlab.report.tables import arm_table, csv, printed, run_table

    sweep = overview(records)
    probed = run_columns(records).loc[sweep.runs.index].reset_index(drop=True)
    write_atomically(folder / "table.csv", csv(arm_table(sweep).join(probe_table(sweep, records), on="arm")))
    write_atomically(folder / "summary.csv", csv(run_table(sweep, records, folder).join(probed)))
    against = comparisons(sweep, records)
    write_atomically(folder / "compared.csv", csv(against))
    blocks = [title(sweep)], printed(sweep), notes(sweep), printed_probes(sweep, records), compared(against)
    for line in ["", *itertools.chain.from_iterable([*block, ""] for block in blocks if block)]:
        log.info(line)
    figures = [*write_curves(sweep, folder), *write_learning_rates(sweep, folder)]
    figures += write_probe_figures(sweep, records, folder)
    tables = ["table.csv", "summary.csv", "compared.csv"]
    log.info("%s: %s", shown(folder), ", ".join([*tables, *(path.name for path in figures)]))
    if write_columns(folder, records, sweep, figures):
        log.info("every curve: tensorboard --logdir %s", shlex.quote(shown(folder)))


def write_columns(folder: Path, records: Sequence[Record], sweep: "Overview", figures: Sequence[Path]) -> bool:
    """Tell TensorBoard's HParams tab which columns to show, and return whether there is anything in them.

    The sweep's figures go into the Images tab.

    What an earlier close told it is replaced. A folder that is a run's own is left alone: its event files are
    the run's.
    """
    from normlab.records.events import OURS, EventFile
    from normlab.report.probes import write_images

    traced = any(any(record.folder.glob(OURS)) for record in records)
    if not traced or any(record.folder == folder for record in records):
        return traced
    earlier = list(folder.glob(OURS))
    events = EventFile(folder)
    events.experiment(*columns([record.result for record in records], sweep))
    write_images(events, figures)
    for path in earlier:
        path.unlink()
    return True


def columns(results: Sequence[Result], sweep: "Overview") -> tuple[list[str], list[str]]:
    """Return the names of the hyperparameters and metrics that the HParams tab is to show."""
    present = {name for result in results for name in flat(result.config, result.choices)}
    measured = {
        name for result in results for moment in (result.best, result.last) if moment for name in moment.metrics
    }
    tests = dict.fromkeys(name for result in results for name in result.test)
    hparams = [name for name in dict.fromkeys([*COLUMNS, *sweep.keys]) if name in present]
    best = [f"best/{sweep.metric}"] if any(result.best for result in results) else []
    losses = [name for name in ("val/loss", "train/loss") if name in measured]
    return hparams, [*best, *tests, *losses]


def shown(folder: Path) -> str:
    """Return the shorter way to write a folder: from here, or from the root."""
    return min(os.path.relpath(folder), str(folder.absolute()), key=len)
