"""Finalize a sweep: write its tables, figures, report and TensorBoard events, and print the results.

The entry is :func:`finalize_sweep`. Hydra imports this module at every start; therefore functions import slow
libraries locally.
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


MAX_LINES, LINE_WIDTH = 12, 110
"""The largest number of printed sentences, and of characters in a line."""
log = logging.getLogger("normlab")


def finalize_sweep(folder: Path) -> "ReportData | None":
    """Write the tables, figures, report and TensorBoard events of a sweep into its folder, and print its table.

    Returns the analysed runs; None without runs, or after an error.

    A second call replaces these files and no others. Errors are logged and not raised: a sweep is also finalized
    after an exception, which another exception would hide.
    """
    try:
        records = read_sweep(folder)
        if not records:
            log.warning("no run started in %s: there is nothing to summarize", shorter_path(folder))
            return None
        return write_outputs(folder, records)
    except (ConfigError, OSError) as error:
        log.error("the sweep in %s could not be summarized: %s", shorter_path(folder), error)
        return None


def finalize_run(folder: Path) -> None:
    """Write the probe figures of a single run into its folder and TensorBoard's Images tab."""
    from normlab.report.figures import save
    from normlab.report.probe_figures import probe_figures
    from normlab.report.sweep_summary import summarize_sweep
    from normlab.report.tensorboard import image_events
    from normlab.results.events import EVENT_FILES, SWEEP_SUFFIX, replace_event_file
    from normlab.results.series import PROBES_FILE

    if not (folder / PROBES_FILE).exists():
        return
    records = read_sweep(folder)
    drawn = probe_figures(summarize_sweep(records))
    figures = [save(figure, folder / f"{stem}.{kind}") for stem, figure, _ in drawn for kind in ("png", "svg")]
    if any(folder.glob(EVENT_FILES)):
        replace_event_file(folder, image_events(figures), SWEEP_SUFFIX)
    log.info("%s: %s", shorter_path(folder), ", ".join([PROBES_FILE, *(path.name for path in figures)]))


def write_outputs(folder: Path, records: Sequence[Record]) -> "ReportData":
    """Write all outputs of a sweep into ``folder``, print table, verdicts and paths, and return the data."""
    from normlab.report.charts import write_curves
    from normlab.report.console import (
        configuration_table,
        csv_text,
        footnotes,
        printed_probes,
        ratio_lines,
        run_table,
        table_lines,
        table_title,
    )
    from normlab.report.probe_data import probe_table
    from normlab.report.report import FOLDER, write_report
    from normlab.report.report_data import ReportOptions, build_report_data, read_history, write_history
    from normlab.report.sweep_summary import summarize_sweep
    from normlab.report.tensorboard import write_events

    options = ReportOptions.of_runs(records, folder)
    sweep = summarize_sweep(records, options.compare)
    probed = sweep.probe_numbers.loc[sweep.listed.index].reset_index(drop=True)
    write_atomically(folder / "summary.csv", csv_text(run_table(sweep, records, folder).join(probed)))
    history = read_history(folder, records)
    data = build_report_data(records, options, sweep, history, [folder])
    write_history(folder, history)
    sweep = data.summary
    table = configuration_table(sweep).join(probe_table(sweep), on="arm")
    write_atomically(folder / "table.csv", csv_text(table))
    blocks = (
        [table_title(sweep)],
        table_lines(sweep),
        footnotes(sweep),
        printed_probes(sweep),
        ratio_lines(data.probe_ratios),
        verdict_lines(data),
    )
    for line in ["", *itertools.chain.from_iterable([*block, ""] for block in blocks if block)]:
        log.info(line)
    files = ["table.csv", "summary.csv", *(path.name for path in write_curves(sweep, folder))]
    log.info("%s: %s", shorter_path(folder), ", ".join(files))
    page = write_report([folder], data, folder / FOLDER)
    log.info("report: %s", shorter_path(page))
    figures = sorted(page.parent.glob("*.png"))
    for curves, logdir in write_events(folder, sweep, figures, filter(None, blocks)).items():
        log.info("%s: tensorboard --logdir %s", curves, shlex.quote(shorter_path(logdir)))
    return data


def verdict_lines(data: "ReportData") -> list[str]:
    """Return the first sentences and main warnings of the report, wrapped, and the targets if they differ.

    A single target is already in the footnotes of the table.
    """
    from normlab.report.findings import shared_conditions, target_sentences, time_and_interaction_sentences

    findings, shared = shared_conditions(data)
    sentences = [*findings, *time_and_interaction_sentences(data)]
    lines = sentences[:MAX_LINES]
    if len(sentences) > MAX_LINES:
        lines.append(f"and {len(sentences) - MAX_LINES} more in the report")
    lines += [f"all comparisons: {shared}"] * bool(shared)
    lines += [*data.changed, *data.analysis.edges, *data.analysis.ends][:MAX_LINES]
    if data.summary.configurations["target"].nunique(dropna=False) > 1:
        lines += target_sentences(data)
    # Non-breaking spaces keep "95 %" and "p = 0.05" on one line.
    unbroken = [re.sub(r" (?=%)|(?<=p) (?==)|(?<==) (?=\d)", "\u00a0", line) for line in lines]
    wrapped = [textwrap.wrap(line, LINE_WIDTH, subsequent_indent="    ") for line in unbroken]
    return [line.replace("\u00a0", " ") for line in itertools.chain.from_iterable(wrapped)]


def shorter_path(folder: Path) -> str:
    """Return the shorter of the relative and the absolute path of a folder."""
    return min(os.path.relpath(folder), str(folder.absolute()), key=len)
