"""The report of a sweep, ``report/index.html``, written from its records alone; see :func:`write_report`."""

import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from normlab.report.console import difference_warnings, run_table
from normlab.report.figures import drawing
from normlab.report.page import Page, PageTable, Picture, Section, write_page
from normlab.report.probe_data import probe_ratios
from normlab.report.probe_figures import last_numbers, probe_figures
from normlab.report.report_data import ReportData, names_of
from normlab.report.sections import sections
from normlab.report.selectors import display_table, num, table_rows, with_interval
from normlab.results.folder import SWEEP_CONFIG
from normlab.results.result import Result
from normlab.results.sweep import Record, load_yaml
from normlab.stats.comparison import ALPHA, BETTER, WORSE
from normlab.stats.comparisons import ONE_SPLIT
from normlab.stats.sentences import interaction_sentence, percent_text, sentence, time_sentence

Fact = tuple[str, str]
TRAIN = ["python", "train.py"]
"""Command that starts runs whose records have none."""
FOLDER = "report"
FEW_SEEDS = 6
"""Comparisons up to which each has a sentence; of more, those that declare a difference."""
PANELS = 6
"""Panels of which the target is told."""
SHOWN = 2000
"""Runs that the page lists; ``runs.csv`` has all."""


def facts(folders: Sequence[Path], records: Sequence[Record]) -> list[Fact]:
    """Return the commit, versions and commands behind the numbers; several where runs differ."""
    results = [record.result for record in records]
    known = [result.environment for result in results if result.environment]
    dirty = {str(own.get("commit")) for own in known if own.get("dirty")}
    commits = [
        f"{commit}{' (with changes that are in no commit)' * (commit in dirty)}"
        for commit in distinct(str(own.get("commit")) for own in known)
    ]
    versions = distinct(
        ", ".join(f"{name} {version}" for name, version in own.get("versions", {}).items()) for own in known
    )
    machines = distinct(
        "{system} {processor}, {cores} cores".format_map(own["machine"]) for own in known if own.get("machine")
    )
    dates = sorted(result.started for result in results if result.started)
    ends = sorted(result.ended for result in results if result.ended)
    seeds = sorted({seed for result in results if isinstance(seed := result.config.get("seed"), int)})
    found = [
        ("command", "\n".join(distinct(command(folder, started(folder, records)) for folder in folders))),
        ("folders", "\n".join(map(str, folders))),
        ("runs", str(len(records))),
        ("seeds", short_ranges(seeds)),
        ("commit", "\n".join(commits)),
        ("versions", "\n".join(versions)),
        ("machine", "\n".join(machines)),
        ("first run began", dates[0] if dates else ""),
        ("last run ended", ends[-1] if ends else ""),
    ]
    return [(what, which) for what, which in found if which]


def distinct(texts: Iterable[str]) -> list[str]:
    """Return texts without repetitions, none of them empty."""
    return [text for text in dict.fromkeys(texts) if text]


def started(folder: Path, records: Sequence[Record]) -> list[str]:
    """Return the words that started the runs below a folder, before their overrides."""
    below = (record.result for record in records if record.folder.is_relative_to(folder))
    return next((result.command for result in below if result.command), TRAIN)


def command(folder: Path, entry: Sequence[str] = TRAIN) -> str:
    """Return the command of a sweep, as Hydra noted its overrides, empty if it did not."""
    hydra = load_yaml(folder / SWEEP_CONFIG, dict).get("hydra", {})
    given = hydra.get("overrides", {}) if isinstance(hydra, dict) else {}
    words = [str(word) for word in [*given.get("task", []), *given.get("hydra", [])]]
    words = [word for word in words if word != "hydra.mode=MULTIRUN"]
    before = [word for word in entry if word not in words]
    return shlex.join([*before, "-m", *words]) if given else ""


def again(result: Result) -> str:
    """Return the command that trains a run again.

    >>> from normlab.results.result import Objective, Status
    >>> again(Result("", Status.FINISHED, {}, {}, ["model=bn", "net.hidden=[1, 2]"], Objective("", "", 0.0)))
    "python train.py model=bn 'net.hidden=[1, 2]'"
    """
    entry = result.command or TRAIN
    # Another configuration file, or an experiment, may set hydra.mode=MULTIRUN; this is a single run.
    is_own = any(word.startswith("--config") for word in entry)
    experiment = any(word.startswith("experiment=") for word in result.overrides)
    return shlex.join([*entry, *result.overrides, *["hydra.mode=RUN"] * (is_own or experiment)])


def commands(records: Sequence[Record]) -> pd.Series:
    """Return the command of each run, by number."""
    return pd.Series([again(record.result) for record in records], dtype=object)


def short_ranges(numbers: Sequence[int]) -> str:
    """Return sorted whole numbers in short.

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


def write_report(folders: Sequence[Path], found: ReportData, out: Path) -> Path:
    """Write the page and all that is on it into a folder, and return the page.

    Args:
        folders: of the sweeps.
        found: what their runs have to say.
        out: the folder of the report.
    """
    with drawing():
        return write_page(page_of(folders, found), out)


def page_of(folders: Sequence[Path], found: ReportData) -> Page:
    """Return the content of the page."""
    design = found.analysis.design
    others = ", ".join(arm for arm in design.arms if arm != design.baseline)
    what = f"{others} against {design.baseline}" if others else design.primary.name
    title = f"{names_of(folders)}: {what}{data_text(found)}"
    parts = [*sections(found), *probes(found), runs(found)]
    said = [*sentences(found), *more_sentences(found), *target_sentences(found)]
    warnings = [*difference_warnings(found.summary), *found.changed, *found.analysis.warnings]
    return Page(title, said, warnings, parts, facts(folders, found.records))


def data_text(found: ReportData) -> str:
    """Return the dataset with its numbers of samples, for the title; empty if there are several or none."""
    runs = [found.records[number].result for number in found.summary.runs.index]
    names = {run.choices.get("data", "") for run in runs}
    sizes = {tuple(run.data.get(split) for split in ("train", "val", "test")) for run in runs}
    if len(names) != 1 or "" in names:
        return ""
    known = len(sizes) == 1 and all(size is not None for size in next(iter(sizes)))
    rows = " + ".join(map(str, next(iter(sizes)))) if known else ""
    return f", {names.pop()}" + (f" ({rows} training, validation and test samples)" if rows else "")


def sentences(found: ReportData) -> list[str]:
    """Return a sentence for each comparison, or the reason why there is none."""
    analysis = found.analysis
    rows = [row for row in table_rows(analysis.comparisons) if row["verdict"] != ONE_SPLIT]
    if found.runs["validation"].isna().all():
        return [f"No run has a final {analysis.design.choice.name}: there is nothing to compare."]
    if rows:
        told = rows if len(rows) <= FEW_SEEDS else [row for row in rows if row["verdict"] in (BETTER, WORSE)]
        others = [f"{len(rows) - len(told)} other comparisons declare no difference; the report has all of them"]
        lines = [sentence(row, analysis.grid, analysis.tuning) for row in told]
        return [*lines, *others[: len(rows) - len(told)]]
    return ["One arm: there is nothing to compare it with."] if len(found.runs) else ["There are no runs."]


def more_sentences(found: ReportData) -> list[str]:
    """Return sentences on the times to the target, and on effects that change between panels."""
    times = [time_sentence(row) for row in table_rows(found.analysis.time_ratios)]
    changes = [row for row in table_rows(found.analysis.interactions) if row["p_adjusted"] <= ALPHA]
    return [*filter(None, times), *(interaction_sentence(row) for row in changes)]


def target_sentences(found: ReportData) -> list[str]:
    """Return the target that the sentences speak of, if there is one."""
    choice, rows = found.analysis.design.choice, table_rows(found.analysis.targets)
    side = "at most" if choice.direction == "min" else "at least"
    known = [row for row in rows if np.isfinite(row["target"])][:PANELS]
    values = [f"{side} {num(row['target'])}" + f" at {row['panel']}" * bool(row["panel"]) for row in known]
    comparing = len(found.analysis.comparisons) and len(found.curves) and found.runs["validation"].notna().any()
    return [f"The target: {choice.name} {', '.join(values)}."] if values and comparing else []


def probes(found: ReportData) -> Iterator[Section]:
    """Yield the section on probes, if there were any."""
    pictures = [
        Picture(
            stem,
            figure,
            alt=f"{figure.texts[0].get_text()}, of {', '.join(probe.arms)}",
            caption=f"{probe.name}: the numbers are medians over the seeds when it last looked.",
            table=PageTable(stem, "when it last looked", last_numbers(probe)),
            wide=True,
        )
        for stem, figure, probe in probe_figures(found.summary, found.records)
    ]
    if pictures:
        words = (
            "What was measured of the loss and of the net while it trained, over all seeds. Nothing is declared "
            "here: ratios are Hodges–Lehmann estimates over paired seeds, their 95 % intervals pointwise."
        )
        yield Section("probes", "Why: what the probes found", [words], pictures, ratio_tables(found))


def ratio_tables(found: ReportData) -> list[PageTable]:
    """Return the probe ratios of the arms against the one without normalization, if there is one."""
    frame = probe_ratios(found.summary, found.records)
    columns: dict[str, Any] = {
        "arm": "arm",
        "of": lambda row: row["quantity"].removeprefix("probe/"),
        "seeds": "seeds",
        "ratio": lambda row: "one is untrained" if row["untrained"] else with_interval(row, "ratio"),
        "smaller": lambda row: percent_text(row["smaller"]),
    }
    return (
        [PageTable("probe_ratios", "arms against nobn", frame, display_table(frame, columns))]
        if len(frame)
        else []
    )


def runs(found: ReportData) -> Section:
    """Return every run, with the command that trains it again."""
    table = run_table(found.summary, found.records, None)
    again = commands(found.records).loc[found.summary.listed.index]
    frame = table.assign(command=again.to_list())
    few = ["name", "status", "seed", f"best/{found.summary.metric}", "epochs", "seconds", "error", "command"]
    first: pd.DataFrame = frame[few].head(SHOWN)
    more = [f"The first {SHOWN} of {len(frame)} runs; runs.csv has all."] if len(frame) > SHOWN else []
    return Section(
        "runs", "Every run", more, (), [PageTable("runs", "every run, and how to get it again", frame, first)]
    )
