"""Write a sweep's TensorBoard files: HParams, Custom Scalars, text and images.

:func:`write_events` is the main entry. Each ``arms/<configuration>`` in the sweep's folder is a TensorBoard run
with the medians over the seeds. Text and images about the sweep are in ``arms/`` too, so that they are shown when
only these are selected.
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

from normlab.report.console import is_metric
from normlab.report.curves import AT_ITS_BEST, QUARTILES, bands, configuration_curves, worst_of
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
ABOUT_CONFIGURATIONS = """\
`arms/…` has the median over the seeds of each configuration, `quartiles/…` the bounds of the bands. Once a run
has diverged it has the worst possible value: a curve ends where half of the seeds have diverged, a band where a
quarter have. Stopped and failed runs are left out, and a median ends where the first seed stopped. Quantities that
are neither good nor bad, such as `activation/…` and `probe/…`, are of the finished seeds alone."""
ABOUT_TABLE = """\
`table/…` has the numbers of summary.csv, and the HParams tab their means over the seeds: infinite where a run
diverged or, for `epochs_to_target`, did not reach the target. `reached` and `diverged` are shares of the seeds."""


def layout(tags: Collection[str], metric: str) -> Layout:
    """Return the Custom Scalars layout: a category per group of tags, with band charts and line charts.

    Tags with quartiles have a band chart. A line chart shows tags of one quantity together, such as its layers.
    The optimized ``metric`` and the losses come first; all other categories are collapsed.
    """
    first = [name for name in (metric, "val/loss", "train/loss") if name in tags]
    categories: dict[str, dict[str, list[str]]] = {LOSSES_CATEGORY: {}}
    for tag in dict.fromkeys([*first, *tags]):
        if not tag.startswith((QUARTILES, *AT_ITS_BEST)):
            category, quantity = chart_group(tag)
            categories.setdefault(category, {}).setdefault(quantity, []).append(tag)
    result = Layout()
    for category, quantities in categories.items():
        banded = [tag for group in quantities.values() for tag in group if bands(tag)[0] in tags]
        rest = {title: group for title, group in quantities.items() if len(group) > 1 or group[0] not in banded}
        # TensorBoard shows band charts in reverse order, after line charts.
        charts = [band_chart(tag) for tag in reversed(banded)], [line_chart(*chart) for chart in rest.items()]
        for title, chart in zip((f"{category}: median and quartiles", category), charts, strict=True):
            result.category.extend(
                [Category(title=title, chart=chart, closed=category != LOSSES_CATEGORY)] if chart else []
            )
    return result


def chart_group(tag: str) -> tuple[str, str]:
    """Return a tag's category and the title of its line chart, which other splits and layers share.

    >>> chart_group("val/loss"), chart_group("activation/hidden1/before_std")
    (('losses and metrics', 'loss'), ('activation', 'before_std'))
    >>> chart_group("probe/activations/batch/hidden1/std"), chart_group("probe/curvature/frozen/trace")
    (('probe activations', 'std (batch)'), ('probe curvature', 'trace (frozen)'))
    """
    first, *rest = tag.split("/")
    if first == "probe":
        return f"probe {rest[0]}", f"{rest[-1]} ({rest[1]})"
    return (LOSSES_CATEGORY, "/".join(rest)) if first in ("train", "val") else (first, rest[-1] if rest else first)


def band_chart(tag: str) -> Chart:
    """Return a chart of a tag's median with the band between its quartiles."""
    lower, median, upper = bands(tag)
    series = MarginChartContent.Series(value=median, lower=lower, upper=upper)
    return Chart(title=tag, margin=MarginChartContent(series=[series]))


def line_chart(title: str, tags: list[str]) -> Chart:
    """Return a chart with a line for each tag, which is matched exactly."""
    return Chart(title=title, multiline=MultilineChartContent(tag=[f"^{re.escape(tag)}$" for tag in tags]))


def hyperparameters(sweep: SweepSummary) -> list[str]:
    """Return the columns of the HParams tab: keys that vary, and keys of ``HPARAM_COLUMNS``.

    A key of ``HPARAM_COLUMNS`` is left out if it differs between the runs of a configuration, because the tab
    shows the values of one run per configuration.
    """
    keys = [*sweep.keys, *sweep.named]
    results = [sweep.records[number].result for number in sweep.runs.index]
    flats = [flatten_hparams(result.config, result.choices) for result in results]
    runs = list(zip(sweep.runs["configuration"], flats, strict=True))
    settings = {
        key: {(configuration, values[key]) for configuration, values in runs if key in values}
        for key in [*keys, *HPARAM_COLUMNS]
    }
    return [
        key
        for key, pairs in settings.items()
        if pairs and (key in keys or len(pairs) == len({configuration for configuration, _ in pairs}))
    ]


def run_numbers(sweep: SweepSummary) -> pd.DataFrame:
    """Return the numbers of the tables, a row per run; TensorBoard's means over seeds ignore NaN.

    A diverged run has the worst possible values, a stopped or failed run has NaN.
    """
    runs, results = sweep.runs, [sweep.records[number].result for number in sweep.runs.index]
    finished, diverged = (runs["status"] == status for status in (Status.FINISHED, Status.DIVERGED))
    times = runs["epochs_to_target"]
    # The HParams tab shows the first five at once, and cuts a configuration's line at an infinite value.
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
    probes = sweep.probe_numbers.loc[runs.index].where(finished, np.nan, axis=0)
    return pd.concat([pd.DataFrame(main), others, probes], axis=1).astype(float)


def write_events(
    folder: Path,
    sweep: SweepSummary,
    figures: Sequence[Path],
    markdown: Iterable[str | Sequence[str]],
) -> list[Path]:
    """Replace a sweep's event files and return the folders to open in TensorBoard.

    The folders are the sweep's and, if it has more runs than configurations, that of the configurations; none if
    the runs have no event files. If ``folder`` is itself a run, nothing is written.

    Args:
        folder: of the sweep.
        sweep: their summary.
        figures: images to show.
        markdown: blocks of the Text tab, either Markdown or lines that keep their spacing.
    """
    traced = [number for number in sweep.runs.index if any(sweep.records[number].folder.glob(EVENT_FILES))]
    if not traced or any(record.folder == folder for record in sweep.records):
        return [folder] if traced else []
    numbers = run_numbers(sweep).add_prefix(TABLE)
    for number in traced:
        write_numbers(sweep.records[number], numbers.loc[number])
    # Runs of the user may lie in a folder of that name; their event files must stay.
    free = not any(record.folder.is_relative_to(folder / ARMS) for record in sweep.records)
    curves = configuration_curves(sweep) if free and len(sweep.runs) > len(sweep.configurations) else {}
    if free:
        write_configurations(folder / ARMS, curves_by_folder(sweep, curves))
    metrics = {str(tag): str(tag).removeprefix(TABLE) for tag in numbers if numbers[tag].notna().any()}
    tags = dict.fromkeys(tag for points in curves.values() for point in points for tag in point.metrics)
    # TensorBoard selects none of more than 40 runs for these tabs; those below arms/ can be selected at once.
    shown = folder / ARMS if curves else folder
    for target in dict.fromkeys([folder, shown]):
        with replace_event_file(target) as events:
            if target == folder:
                events.experiment(hyperparameters(sweep), metrics, sweep.keys)
            if target == shown:
                events.layout(layout(tags or dict.fromkeys(sweep.curves["metric"]), sweep.metric))
                blocks = [*markdown, *([ABOUT_CONFIGURATIONS] if curves else []), ABOUT_TABLE]
                write_text(events, "all runs", blocks)
                write_images(events, figures)
    return list(dict.fromkeys([folder, shown]))


def write_numbers(record: Record, numbers: pd.Series) -> None:
    """Write a run's known numbers into a second event file in its folder."""
    known = {str(tag): float(value) for tag, value in numbers.dropna().items()}
    if known:
        with replace_event_file(record.folder, SWEEP_SUFFIX) as events:
            events.scalars([Point(record.result.epochs, record.result.steps, time.time(), known)])


def curves_by_folder(sweep: SweepSummary, curves: Mapping[str, Sequence[Point]]) -> dict[str, Sequence[Point]]:
    """Return the configurations' curves by folder name."""
    settings = sweep.configurations[sweep.keys].to_dict("index")
    jobs = [[f"{key}={value}" for key, value in settings[name].items()] or [name] for name in curves]
    return dict(zip(run_names(jobs) if jobs else [], curves.values(), strict=True))


def write_configurations(folder: Path, curves: Mapping[str, Sequence[Point]]) -> None:
    """Write an event file per configuration, given curves by folder name, and remove those of other ones."""
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


def write_text(events: EventFile, title: str, markdown: Iterable[str | Sequence[str]]) -> None:
    """Write blocks to the Text tab: Markdown, or lines that keep their spacing."""
    blocks = (
        block if isinstance(block, str) else "\n".join(f"    {line}" for line in block) for block in markdown
    )
    events.text(title, "\n\n".join(blocks))


def write_images(events: EventFile, figures: Sequence[Path]) -> None:
    """Write the PNG files among the figures to the Images tab as ``figures/<name>``."""
    for path in figures:
        if path.suffix == ".png":
            events.image(f"figures/{path.stem}", path.read_bytes())
