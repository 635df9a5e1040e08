"""The report page of a sweep, ``report/index.html``, built from its records alone; see :func:`write_report`."""

import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from normlab.report.console import difference_warnings, num, run_table, with_interval
from normlab.report.figures import drawing
from normlab.report.page import Page, PageTable, Picture, Section, write_page
from normlab.report.probe_figures import last_numbers, probe_figures
from normlab.report.report_data import ReportData, sweep_names
from normlab.report.sections import sections
from normlab.report.selectors import display_table, table_rows
from normlab.results.folder import SWEEP_CONFIG
from normlab.results.result import Result
from normlab.results.sweep import Record, load_yaml
from normlab.stats.comparison import ALPHA, BETTER, WORSE
from normlab.stats.multiple_comparisons import PART_OF_POOLED
from normlab.stats.sentences import interaction_sentence, percent_text, sentence, time_sentence

LabelledFact = tuple[str, str]
TRAIN = ["python", "train.py"]
"""Entry command of runs whose records have none."""
FOLDER = "report"
MAX_SENTENCES = 6
"""With more comparisons than this, only those that declare a difference get a sentence."""
MAX_TARGETS = 6
"""The largest number of panels whose target is named."""
MAX_RUNS = 2000
"""The largest number of runs on the page; ``runs.csv`` lists all."""


def provenance(folders: Sequence[Path], records: Sequence[Record]) -> list[LabelledFact]:
    """Return commands, commits, versions and hardware of the runs; one line per value where runs differ."""
    results = [record.result for record in records]
    environments = [result.environment for result in results if result.environment]
    dirty = {str(environment.get("commit")) for environment in environments if environment.get("dirty")}
    commits = [
        f"{commit}{' (with uncommitted changes)' * (commit in dirty)}"
        for commit in distinct(str(environment.get("commit")) for environment in environments)
    ]
    versions = distinct(
        ", ".join(f"{name} {version}" for name, version in environment.get("versions", {}).items())
        for environment in environments
    )
    machines = distinct(
        "{system} {processor}, {cores} cores".format_map(environment["machine"])
        for environment in environments
        if environment.get("machine")
    )
    starts = sorted(result.started for result in results if result.started)
    ends = sorted(result.ended for result in results if result.ended)
    seeds = sorted({seed for result in results if isinstance(seed := result.config.get("seed"), int)})
    facts = [
        (
            "command",
            "\n".join(distinct(sweep_command(folder, entry_command(folder, records)) for folder in folders)),
        ),
        ("folders", "\n".join(map(str, folders))),
        ("runs", str(len(records))),
        ("seeds", short_ranges(seeds)),
        ("commit", "\n".join(commits)),
        ("versions", "\n".join(versions)),
        ("hardware", "\n".join(machines)),
        ("first run started", starts[0] if starts else ""),
        ("last run ended", ends[-1] if ends else ""),
    ]
    return [(label, value) for label, value in facts if value]


def distinct(texts: Iterable[str]) -> list[str]:
    """Return the non-empty texts in order, each once."""
    return [text for text in dict.fromkeys(texts) if text]


def entry_command(folder: Path, records: Sequence[Record]) -> list[str]:
    """Return the command words that started the runs below a folder, without their overrides."""
    below = (record.result for record in records if record.folder.is_relative_to(folder))
    return next((result.command for result in below if result.command), TRAIN)


def sweep_command(folder: Path, entry: Sequence[str] = TRAIN) -> str:
    """Return the command of a sweep from the overrides that Hydra saved, or "" if it saved none."""
    hydra = load_yaml(folder / SWEEP_CONFIG, dict).get("hydra", {})
    overrides = hydra.get("overrides", {}) if isinstance(hydra, dict) else {}
    words = [str(word) for word in [*overrides.get("task", []), *overrides.get("hydra", [])]]
    words = [word for word in words if word != "hydra.mode=MULTIRUN"]
    before = [word for word in entry if word not in words]
    return shlex.join([*before, "-m", *words]) if overrides else ""


def rerun_command(result: Result) -> str:
    """Return the command that repeats a run.

    >>> from normlab.results.result import Objective, Status
    >>> overrides = ["model=bn", "net.hidden=[1, 2]"]
    >>> rerun_command(Result("", Status.FINISHED, {}, {}, overrides, Objective("", "", 0.0)))
    "python train.py model=bn 'net.hidden=[1, 2]'"
    """
    entry = result.command or TRAIN
    # The configuration file or the experiment may set hydra.mode=MULTIRUN; this command is a single run.
    own_config = any(word.startswith("--config") for word in entry)
    experiment = any(word.startswith("experiment=") for word in result.overrides)
    return shlex.join([*entry, *result.overrides, *["hydra.mode=RUN"] * (own_config or experiment)])


def rerun_commands(records: Sequence[Record]) -> pd.Series:
    """Return the commands that repeat the runs, indexed by record number."""
    return pd.Series([rerun_command(record.result) for record in records], dtype=object)


def short_ranges(numbers: Sequence[int]) -> str:
    """Format sorted integers, with three or more consecutive ones as a range.

    >>> short_ranges([0, 1, 2, 3, 7, 9, 10])
    '0–3, 7, 9, 10'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = [[f"{run[0]}–{run[-1]}"] if len(run) > 2 else map(str, run) for run in runs]
    return ", ".join(text for part in parts for text in part)


def write_report(folders: Sequence[Path], data: ReportData, out: Path) -> Path:
    """Write the report page, its figures and its tables into ``out``; return the path of the page.

    Args:
        folders: the folders of the sweeps.
        data: their runs and analysis.
        out: the folder of the report.
    """
    with drawing():
        return write_page(build_page(folders, data), out)


def build_page(folders: Sequence[Path], data: ReportData) -> Page:
    """Assemble the title, sentences, caveats, sections and provenance of the page."""
    design = data.analysis.design
    others = ", ".join(arm for arm in design.arms if arm != design.baseline)
    subject = f"{others} against {design.baseline}" if others else design.primary.name
    title = f"{sweep_names(folders)}: {subject}{dataset_text(data)}"
    parts = [*sections(data), *probe_section(data), run_section(data)]
    results = [*comparison_sentences(data), *time_and_interaction_sentences(data), *target_sentences(data)]
    caveats = [*difference_warnings(data.summary), *data.changed, *data.analysis.warnings]
    return Page(title, results, caveats, parts, provenance(folders, data.summary.records))


def dataset_text(data: ReportData) -> str:
    """Return the dataset and the sizes of its splits for the title; "" if runs have several datasets or none."""
    runs = [data.summary.records[number].result for number in data.summary.runs.index]
    names = {run.choices.get("data", "") for run in runs}
    sizes = {tuple(run.data.get(split) for split in ("train", "val", "test")) for run in runs}
    if len(names) != 1 or "" in names:
        return ""
    train, val, test = next(iter(sizes))
    known = len(sizes) == 1 and None not in (train, val, test)
    samples = f" ({train} training, {val} validation and {test} test samples)" if known else ""
    return f", {names.pop()}{samples}"


def comparison_sentences(data: ReportData) -> list[str]:
    """Return a sentence for each comparison, or one sentence with the reason if there is no comparison."""
    analysis = data.analysis
    rows = [row for row in table_rows(analysis.comparisons) if row["verdict"] != PART_OF_POOLED]
    if data.runs["validation"].isna().all():
        return [f"No run has a final {analysis.design.choice.name}: there is nothing to compare."]
    if rows:
        declared = [row for row in rows if row["verdict"] in (BETTER, WORSE)]
        selected = rows if len(rows) <= MAX_SENTENCES else declared
        lines = [sentence(row, analysis.grid, analysis.tuning) for row in selected]
        if others := len(rows) - len(selected):
            lines.append(f"{others} other comparisons declare no difference; the report lists all comparisons")
        return lines
    return ["Only one arm: there is nothing to compare."] if len(data.runs) else ["There are no runs."]


def time_and_interaction_sentences(data: ReportData) -> list[str]:
    """Return sentences on the time to target and on effects that differ significantly between panels."""
    times = [time_sentence(row) for row in table_rows(data.analysis.time_ratios)]
    changes = [row for row in table_rows(data.analysis.interactions) if row["p_adjusted"] <= ALPHA]
    return [*filter(None, times), *(interaction_sentence(row) for row in changes)]


def target_sentences(data: ReportData) -> list[str]:
    """Return a sentence with the target of each panel; empty if nothing is compared or no target is known."""
    choice, rows = data.analysis.design.choice, table_rows(data.analysis.targets)
    side = "at most" if choice.direction == "min" else "at least"
    known = [row for row in rows if np.isfinite(row["target"])][:MAX_TARGETS]
    values = [f"{side} {num(row['target'])}" + f" at {row['panel']}" * bool(row["panel"]) for row in known]
    is_compared = len(data.analysis.comparisons) and len(data.curves) and data.runs["validation"].notna().any()
    return [f"Target for the time to target: {choice.name} {', '.join(values)}."] if values and is_compared else []


def probe_section(data: ReportData) -> Iterator[Section]:
    """Yield the section on probe measurements, if the runs have any."""
    pictures = [
        Picture(
            stem,
            figure,
            alt=f"{figure.texts[0].get_text()}, of {', '.join(probe.configurations)}",
            caption=f"Measurements of the probe {probe.name}; the table has medians over seeds at the last one.",
            table=PageTable(stem, "Medians over the seeds at the last measurement", last_numbers(probe)),
            wide=True,
        )
        for stem, figure, probe in probe_figures(data.summary)
    ]
    if pictures:
        text = (
            "Measurements of the loss and the network during training, over all seeds. Ratios are Hodges–Lehmann "
            "estimates over paired seeds with pointwise 95 % intervals; no difference is declared from them."
        )
        yield Section("probes", "Probe measurements", [text], pictures, ratio_tables(data))


def ratio_tables(data: ReportData) -> list[PageTable]:
    """Return the table of probe ratios to the configurations without normalization; empty without ratios."""
    frame = data.probe_ratios
    columns: dict[str, Any] = {
        "configuration": "arm",
        "quantity": lambda row: row["quantity"].removeprefix("probe/"),
        "seeds": "seeds",
        "ratio to nobn": lambda row: "one is untrained" if row["untrained"] else with_interval(row, "ratio"),
        "seeds below nobn": lambda row: percent_text(row["smaller"]),
    }
    caption = "Ratio of each configuration to the same configuration with nobn, over paired seeds"
    return [PageTable("probe_ratios", caption, frame, display_table(frame, columns))] if len(frame) else []


def run_section(data: ReportData) -> Section:
    """Return the section with all runs and the commands that repeat them."""
    table = run_table(data.summary, data.summary.records, None)
    commands = rerun_commands(data.summary.records).loc[data.summary.listed.index]
    frame = table.assign(command=commands.to_list())
    names = ["name", "status", "seed", f"best/{data.summary.metric}", "epochs", "seconds", "error", "command"]
    first: pd.DataFrame = frame[names].head(MAX_RUNS)
    is_cut = len(frame) > MAX_RUNS
    note = [f"The table shows the first {MAX_RUNS} of {len(frame)} runs; runs.csv lists all."] if is_cut else []
    caption = "All runs, each with the command that repeats it"
    return Section("runs", "Runs", note, (), [PageTable("runs", caption, frame, first)])
