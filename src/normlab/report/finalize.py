"""The end of a sweep: writes its tables, figures, report and TensorBoard events, and prints the result.

Hydra imports this module at every start, so functions import slow libraries when they need them.
"""

import itertools
import logging
import os
import re
import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from normlab.errors import ConfigError
from normlab.results.result import write_atomically
from normlab.results.sweep import Record, read_sweep

if TYPE_CHECKING:
    from normlab.report.report_data import ReportData


SENTENCES, LINE_LETTERS = 12, 110
"""How many sentences are printed, and how many letters a line has."""
log = logging.getLogger("normlab")


def close_sweep(folder: Path) -> None:
    """Write ``summary.csv``, ``table.csv`` and the curves into a sweep's folder, and print its table.

    Closing it again replaces these files and nothing else. If it fails, the reason is logged and not raised: a
    sweep is also closed when it ends by an error, which would be hidden.
    """
    try:
        records = read_sweep(folder)
        if not records:
            log.warning("no run began in %s: there is nothing to sum up", shorter_path(folder))
            return
        write(folder, records)
    except (ConfigError, OSError) as error:
        log.error("the sweep in %s could not be summed up: %s", shorter_path(folder), error)


def close_run(folder: Path) -> None:
    """Draw what the probes of a run alone found into its folder, and into TensorBoard's Images tab."""
    from normlab.report.probe_figures import write_images, write_probe_figures
    from normlab.report.sweep_summary import summarize_sweep
    from normlab.results import probes
    from normlab.results.events import EVENT_FILES, EventFile

    if not (folder / probes.PROBES_FILE).exists():
        return
    records = read_sweep(folder)
    figures = write_probe_figures(summarize_sweep(records), records, folder)
    if any(folder.glob(EVENT_FILES)):
        write_images(EventFile(folder), figures)
    log.info("%s: %s", shorter_path(folder), ", ".join([probes.PROBES_FILE, *(path.name for path in figures)]))


def write(folder: Path, records: Sequence[Record]) -> None:
    """Write everything into ``folder``, and print the table and where the rest is."""
    from normlab.report.console import configuration_table, csv, footnotes, run_table, table_lines, table_title
    from normlab.report.figures import write_curves
    from normlab.report.probe_data import printed_probes, probe_columns, probe_ratios, probe_table
    from normlab.report.probe_data import ratio_lines as compared
    from normlab.report.report import FOLDER, write_report
    from normlab.report.report_data import ReportOptions, build_report_data, read_history, write_history
    from normlab.report.sweep_summary import summarize_sweep
    from normlab.report.tensorboard import write_events

    sweep = summarize_sweep(records)
    probed = probe_columns(records).loc[sweep.listed.index].reset_index(drop=True)
    write_atomically(folder / "summary.csv", csv(run_table(sweep, records, folder).join(probed)))
    history = read_history(folder, records)
    found = build_report_data(records, ReportOptions.of_runs(records, folder), sweep, history, [folder])
    write_history(folder, history)
    sweep = found.summary
    write_atomically(
        folder / "table.csv", csv(configuration_table(sweep).join(probe_table(sweep, records), on="arm"))
    )
    ratios = compared(probe_ratios(sweep, records))
    blocks = (
        [table_title(sweep)],
        table_lines(sweep),
        footnotes(sweep),
        printed_probes(sweep, records),
        ratios,
        closing_lines(found),
    )
    for line in ["", *itertools.chain.from_iterable([*block, ""] for block in blocks if block)]:
        log.info(line)
    files = ["table.csv", "summary.csv", *(path.name for path in write_curves(sweep, folder))]
    log.info("%s: %s", shorter_path(folder), ", ".join(files))
    page = write_report([folder], found, folder / FOLDER)
    log.info("what it says, with all figures: %s", shorter_path(page))
    figures = sorted(page.parent.glob("*.png"))
    seen = write_events(folder, records, sweep, figures, filter(None, blocks))
    for what, where in zip(("every curve", "the arms alone"), seen, strict=False):
        log.info("%s: tensorboard --logdir %s", what, shlex.quote(shorter_path(where)))


def closing_lines(found: "ReportData") -> list[str]:
    """Return the first sentences of the report, its main warnings, and the targets where the notes have none."""
    from normlab.report.report import more_sentences, sentences, target_sentences

    lines = [*sentences(found), *more_sentences(found)]
    first = lines[:SENTENCES]
    more = [f"and {len(lines) - SENTENCES} more in the report"] if len(lines) > SENTENCES else []
    told = target_sentences(found) if found.summary.configurations["target"].nunique(dropna=False) > 1 else []
    notes = [*found.changed, *found.analysis.edges, *found.analysis.ends][:SENTENCES]
    # No line ends between a number and its sign.
    whole = [
        re.sub(r" (?=%)|(?<=p) (?==)|(?<==) (?=\d)", "\u00a0", line) for line in [*first, *more, *notes, *told]
    ]
    wrapped = [textwrap.wrap(line, LINE_LETTERS, subsequent_indent="    ") for line in whole]
    return [line.replace("\u00a0", " ") for line in itertools.chain.from_iterable(wrapped)]


def shorter_path(folder: Path) -> str:
    """Return the shorter way to write a folder: from here, or from the root."""
    return min(os.path.relpath(folder), str(folder.absolute()), key=len)
