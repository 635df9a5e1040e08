"""TensorBoard beside the runs: arms, HParams, Custom Scalars, text and images.

TensorBoard shows each ``arms/<configuration>`` below the sweep's folder as a run, with medians over the seeds.
Text and images about all of them are beside these, so that they are shown when only the arms are selected.
"""

import re
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from tensorboard.plugins.custom_scalar.layout_pb2 import (
    Category,
    Chart,
    Layout,
    MarginChartContent,
    MultilineChartContent,
)

from normlab.report.configuration_curves import AT_ITS_BEST, QUARTILES, bands, configuration_curves, worst_of
from normlab.report.console import is_metric
from normlab.report.probe_data import probe_columns
from normlab.report.probe_figures import write_images
from normlab.report.sweep_summary import SweepSummary
from normlab.results.curves import Point
from normlab.results.events import (
    EVENT_FILES,
    GROUPS,
    SWEEP_SUFFIX,
    EventFile,
    flatten_hparams,
    replace_event_file,
)
from normlab.results.folder import run_names
from normlab.results.result import Status
from normlab.results.sweep import Record

LOSSES_CATEGORY = "losses and metrics"
HPARAM_COLUMNS = (*GROUPS, "data.seed", "optimizer.lr", "data.batch_size", "trainer.max_epochs")
ARMS, TABLE = "arms", "table/"
ABOUT_ARMS = """\
`arms/…` has the median over the seeds of each arm, and `quartiles/…` what is around it. From where a run diverged
it counts as the worst value there is: a curve breaks off where half of the seeds have diverged, a band where a
quarter have. Runs that were stopped or failed are left out, and a median ends where its first seed stopped. What
is neither good nor bad, as `activation/…` and `probe/…`, is of the finished seeds alone."""
ABOUT_TABLE = """\
`table/…` has the numbers of summary.csv, and the HParams tab their means over the seeds: infinite where a run
diverged or, for `epochs_to_target`, did not get there. `reached` and `diverged` are shares of the seeds."""


def layout(tags: Collection[str], metric: str) -> Layout:
    """Return charts for all tags, by category: bands where there are quartiles, lines for what is more or else.

    The optimized ``metric`` and the losses come first, and what is neither is closed.
    """
    first = [name for name in (metric, "val/loss", "train/loss") if name in tags]
    categories: dict[str, dict[str, list[str]]] = {LOSSES_CATEGORY: {}}
    for tag in dict.fromkeys([*first, *tags]):
        if not tag.startswith((QUARTILES, *AT_ITS_BEST)):
            category, quantity = chart_place(tag)
            categories.setdefault(category, {}).setdefault(quantity, []).append(tag)
    found = Layout()
    for category, quantities in categories.items():
        banded = [tag for of in quantities.values() for tag in of if bands(tag)[0] in tags]
        rest = {title: of for title, of in quantities.items() if len(of) > 1 or of[0] not in banded}
        # TensorBoard shows charts with bands from the last to the first, after those of lines.
        charts = [with_band(tag) for tag in reversed(banded)], [with_lines(*chart) for chart in rest.items()]
        for title, chart in zip((f"{category}: median and quartiles", category), charts, strict=True):
            found.category.extend(
                [Category(title=title, chart=chart, closed=category != LOSSES_CATEGORY)] if chart else []
            )
    return found


def chart_place(tag: str) -> tuple[str, str]:
    """Return a tag's category, and the name of the chart that it shares with other splits and layers.

    >>> chart_place("val/loss"), chart_place("activation/hidden1/before_std")
    (('losses and metrics', 'loss'), ('activation', 'before_std'))
    >>> chart_place("probe/activations/batch/hidden1/std"), chart_place("probe/curvature/frozen/trace")
    (('probe activations', 'std (batch)'), ('probe curvature', 'trace (frozen)'))
    """
    first, *rest = tag.split("/")
    if first == "probe":
        return f"probe {rest[0]}", f"{rest[-1]} ({rest[1]})"
    return (LOSSES_CATEGORY, "/".join(rest)) if first in ("train", "val") else (first, rest[-1] if rest else first)


def with_band(tag: str) -> Chart:
    """Return a chart of a tag's median, the band between its other quartiles around it."""
    lower, median, upper = bands(tag)
    series = MarginChartContent.Series(value=median, lower=lower, upper=upper)
    return Chart(title=tag, margin=MarginChartContent(series=[series]))


def with_lines(title: str, tags: list[str]) -> Chart:
    """Return a chart with a line for each tag."""
    return Chart(title=title, multiline=MultilineChartContent(tag=[f"^{re.escape(tag)}$" for tag in tags]))


def hyperparameters(sweep: SweepSummary, records: Sequence[Record]) -> list[str]:
    """Return the keys that vary in a sweep, and other keys that are the same for all runs of an arm.

    The tab shows the hyperparameters of one run of an arm: its seed would be wrong of the others.
    """
    keys = [*sweep.keys, *sweep.named]
    results = [records[number].result for number in sweep.runs.index]
    flats = [flatten_hparams(result.config, result.choices) for result in results]
    runs = list(zip(sweep.runs["arm"], flats, strict=True))
    found = {key: {(arm, of[key]) for arm, of in runs if key in of} for key in [*keys, *HPARAM_COLUMNS]}
    return [
        key
        for key, pairs in found.items()
        if pairs and (key in keys or len(pairs) == len({arm for arm, _ in pairs}))
    ]


def run_numbers(sweep: SweepSummary, records: Sequence[Record]) -> pd.DataFrame:
    """Return a row per run and a column per number of the tables, NaN where a mean has to leave it out.

    A run that diverged has the worst value there is; one that did not come to its end has none.
    """
    runs, results = sweep.runs, [records[number].result for number in sweep.runs.index]
    finished, diverged = (runs["status"] == status for status in (Status.FINISHED, Status.DIVERGED))
    times = runs["epochs_to_target"]
    # TensorBoard shows the first five at once, and draws no line of an arm beyond a value that is infinite.
    main = {
        f"best/{sweep.metric}": runs["best"],
        f"last/{sweep.metric}": runs["last"],
        "reached": pd.Series(np.isfinite(times), dtype=float).where(times.notna()),
        "seconds": runs["seconds"].where(finished),
        "diverged": diverged.astype(float).where(finished | diverged),
        "epochs_to_target": times,
    }
    lasts = [result.last.metrics if result.last else {} for result in results]
    rows = [
        result.test | {f"last/{name}": value for name, value in last.items() if is_metric(name)}
        for result, last in zip(results, lasts, strict=True)
    ]
    others = pd.DataFrame(rows, index=runs.index, dtype=float)
    others = others[[name for name in others if name not in main]].where(finished, np.nan, axis=0)
    for name in others:
        others[name] = others[name].mask(diverged, worst_of(str(name).removeprefix("last/"), sweep))
    probes = probe_columns(records).loc[runs.index].where(finished, np.nan, axis=0)
    return pd.concat([pd.DataFrame(main), others, probes], axis=1).astype(float)


def write_events(
    folder: Path,
    records: Sequence[Record],
    sweep: SweepSummary,
    figures: Sequence[Path],
    markdown: Iterable[str | Sequence[str]],
) -> list[Path]:
    """Write a sweep's event files in the place of an earlier close's, and return the folders to look into.

    There are none if the runs have no event files; else there is the sweep's, and that of its arms if it has more
    runs than arms. A folder that is a run's own is left alone: its event files are the run's.
    """
    traced = [number for number in sweep.runs.index if any(records[number].folder.glob(EVENT_FILES))]
    if not traced or any(record.folder == folder for record in records):
        return [folder] if traced else []
    numbers = run_numbers(sweep, records).add_prefix(TABLE)
    for number in traced:
        write_numbers(records[number], numbers.loc[number])
    # A person may have called runs so: their event files are not to be replaced.
    free = not any(record.folder.is_relative_to(folder / ARMS) for record in records)
    curves = configuration_curves(sweep, records) if free and len(sweep.runs) > len(sweep.configurations) else {}
    if free:
        write_arms(folder / ARMS, curves_by_folder(sweep, curves))
    metrics = {str(tag): str(tag).removeprefix(TABLE) for tag in numbers if numbers[tag].notna().any()}
    tags = dict.fromkeys(tag for points in curves.values() for point in points for tag in point.metrics)
    # Of more than 40 runs TensorBoard selects none for these tabs: what is called arms is found all at once.
    shown = folder / ARMS if curves else folder
    for place in dict.fromkeys([folder, shown]):
        with replace_event_file(place) as events:
            if place == folder:
                events.experiment(hyperparameters(sweep, records), metrics, sweep.keys)
            if place == shown:
                events.layout(layout(tags or dict.fromkeys(sweep.curves["metric"]), sweep.metric))
                text(events, "all runs", [*markdown, *([ABOUT_ARMS] if curves else []), ABOUT_TABLE])
                write_images(events, figures)
    return list(dict.fromkeys([folder, shown]))


def write_numbers(record: Record, numbers: pd.Series) -> None:
    """Write a run's numbers, if it has any, into an event file of their own beside the run's."""
    known = {str(tag): float(value) for tag, value in numbers.dropna().items()}
    if known:
        with replace_event_file(record.folder, SWEEP_SUFFIX) as events:
            events.scalars([Point(record.result.epochs, record.result.steps, time.time(), known)])


def curves_by_folder(sweep: SweepSummary, curves: Mapping[str, Sequence[Point]]) -> dict[str, Sequence[Point]]:
    """Return the arms' curves by the names of their folders."""
    settings = sweep.configurations[sweep.keys].to_dict("index")
    jobs = [[f"{key}={value}" for key, value in settings[arm].items()] or [arm] for arm in curves]
    return dict(zip(run_names(jobs) if jobs else [], curves.values(), strict=True))


def write_arms(folder: Path, curves: Mapping[str, Sequence[Point]]) -> None:
    """Write an event file for each arm, by its name, and remove what an earlier close wrote of others."""
    for name, points in curves.items():
        with replace_event_file(folder / name) as events:
            events.scalars(points)
    stale = [path for path in folder.glob(f"*/{EVENT_FILES}") if path.parent.name not in curves]
    for path in [*stale, *([] if curves else folder.glob(EVENT_FILES))]:
        path.unlink()
        if not any(path.parent.iterdir()):
            path.parent.rmdir()
    if not curves and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def text(events: EventFile, title: str, markdown: Iterable[str | Sequence[str]]) -> None:
    """Write blocks below each other into the Text tab: Markdown, or lines that are to stay as they are."""
    blocks = (
        block if isinstance(block, str) else "\n".join(f"    {line}" for line in block) for block in markdown
    )
    events.text(title, "\n\n".join(blocks))
