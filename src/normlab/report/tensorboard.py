"""Write a sweep's TensorBoard files: HParams, Custom Scalars, text and images.

:func:`write_events` is the main entry. Each ``arms/<configuration>`` in the sweep's folder is a TensorBoard run
with the medians over the seeds. Text and images about the sweep are in ``arms/`` too, so that they are shown when
only these are selected.
"""

import math
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.custom_scalar.layout_pb2 import (
    Category,
    Chart,
    Layout,
    MarginChartContent,
    MultilineChartContent,
)

from normlab.report.console import is_metric
from normlab.report.factors import short_names
from normlab.report.sweep_summary import BANDS, SweepSummary, counted_runs, quartile_curves, worst_of
from normlab.results.events import (
    EVENT_FILES,
    GROUPS,
    SWEEP_SUFFIX,
    flatten_hparams,
    hparams_columns,
    image,
    layout_event,
    replace_event_file,
    scalars,
    tag_of,
    text,
)
from normlab.results.folder import run_names
from normlab.results.result import Status
from normlab.results.series import CURVE_COLUMNS, Point
from normlab.results.sweep import Record

LOSSES_CATEGORY = "losses and metrics"
HPARAM_COLUMNS = (*GROUPS, "data.seed", "optimizer.lr", "data.batch_size", "trainer.max_epochs")
ARMS, TABLE, MEDIAN = "arms", "table/", "median"
ABOUT_CONFIGURATIONS = """\
`arms/…` has the median over the seeds of each configuration, `~quartiles/…` the bounds of the bands. Once a run
has diverged it has the worst possible value: a curve ends where half of the seeds have diverged, a band where a
quarter have. Stopped and failed runs are left out, and a median ends where the first seed stopped. Quantities that
are neither good nor bad, such as `~val_activation/…` and `~probe/…`, are of the finished seeds alone."""
ABOUT_TABLE = """\
`~table/…` has the numbers of summary.csv, and the HParams tab their means over the seeds: infinite where a run
diverged or, for `epochs_to_target`, did not reach the target. `reached` and `diverged` are shares of the seeds."""


def layout(names: Collection[str], metric: str) -> Layout:
    """Return the Custom Scalars layout: a category per group of quantities, with band charts and line charts.

    Quantities with quartiles have a band chart. A line chart shows one quantity together, such as of all layers.
    The optimized ``metric`` and the losses come first, activations last; other categories are collapsed.
    """
    first = [name for name in (metric, "val/loss", "train/loss") if name in names]
    categories: dict[str, dict[str, list[str]]] = {LOSSES_CATEGORY: {}}
    for name in dict.fromkeys([*first, *sorted(names, key=lambda name: name.startswith("activation/"))]):
        if tag_of(name) and not name.startswith((QUARTILES, *AT_ITS_BEST)):
            category, quantity = chart_group(name)
            categories.setdefault(category, {}).setdefault(quantity, []).append(name)
    result = Layout()
    for category, quantities in categories.items():
        banded = [name for group in quantities.values() for name in group if bands(name)[0] in names]
        rest = {title: group for title, group in quantities.items() if len(group) > 1 or group[0] not in banded}
        # TensorBoard shows band charts in reverse order, after line charts.
        charts = [*map(band_chart, reversed(banded))], [line_chart(*chart) for chart in rest.items()]
        for title, chart in zip((f"{category}: median and quartiles", category), charts, strict=True):
            result.category.extend(
                [Category(title=title, chart=chart, closed=category != LOSSES_CATEGORY)] if chart else []
            )
    return result


def chart_group(name: str) -> tuple[str, str]:
    """Return a quantity's category and the title of its line chart, which other splits and layers share.

    >>> chart_group("val/loss"), chart_group("activation/hidden1/before_std")
    (('losses and metrics', 'loss'), ('activation', 'before_std'))
    >>> chart_group("probe/activations/batch/hidden1/std"), chart_group("probe/curvature/frozen/trace")
    (('probe activations', 'std (batch)'), ('probe curvature', 'trace (frozen)'))
    """
    first, *rest = name.split("/")
    if first == "probe":
        return f"probe {rest[0]}", f"{rest[-1]} ({rest[1]})"
    return (LOSSES_CATEGORY, "/".join(rest)) if first in ("train", "val") else (first, rest[-1] if rest else first)


@cache
def curve_tag(name: str) -> str:
    """Return the TensorBoard tag of a quantity of a configuration: its median, or the bound of a band.

    Runs must lack these tags, because TensorBoard warns about each run that has only some tags of a band chart.

    >>> [curve_tag(name) for name in ("val/loss", "quartiles/val/loss/lower", "quartiles/val/loss/median")]
    ['val/loss/median', '~quartiles/val/loss/lower', '']
    """
    metric, _, bound = name.removeprefix(QUARTILES).rpartition("/")
    if not name.startswith(QUARTILES):
        return tag_of(name) and f"{tag_of(name)}/{MEDIAN}"
    return "" if bound == MEDIAN or not tag_of(metric) else tag_of(name)


def band_chart(name: str) -> Chart:
    """Return a chart of a quantity's median with the band between its quartiles."""
    lower, _, upper = map(curve_tag, bands(name))
    series = MarginChartContent.Series(value=curve_tag(name), lower=lower, upper=upper)
    return Chart(title=name, margin=MarginChartContent(series=[series]))


def line_chart(title: str, names: list[str]) -> Chart:
    """Return a chart with a line for each quantity of runs and configurations; their tags are matched exactly."""
    patterns = [f"^{re.escape(tag_of(name))}(/{MEDIAN})?$" for name in names]
    return Chart(title=title, multiline=MultilineChartContent(tag=patterns))


def hyperparameters(sweep: SweepSummary) -> list[str]:
    """Return the columns of the HParams tab: keys that vary, and keys of ``HPARAM_COLUMNS``.

    A key of ``HPARAM_COLUMNS`` is left out if it differs between the runs of a configuration, because the tab
    shows the values of one run per configuration.
    """
    keys = [*sweep.keys, *sweep.named]
    results = [sweep.records[number].result for number in sweep.runs.index]
    flat = pd.DataFrame([flatten_hparams(result.config, result.choices) for result in results], sweep.runs.index)
    differs = flat.groupby(sweep.runs["configuration"]).nunique().max() > 1
    return [
        key for key in dict.fromkeys([*keys, *HPARAM_COLUMNS]) if key in flat and (key in keys or not differs[key])
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
    kept = [name for name in others if name not in main and tag_of(str(name).removeprefix("last/"))]
    others = others[kept].where(finished, np.nan, axis=0)
    for name in others:
        others[name] = others[name].mask(diverged, worst_of(str(name).removeprefix("last/"), sweep))
    probes = sweep.probe_numbers.loc[runs.index].where(finished, np.nan, axis=0)
    return pd.concat([pd.DataFrame(main), others, probes], axis=1).astype(float)


def write_events(
    folder: Path,
    sweep: SweepSummary,
    figures: Sequence[Path],
    markdown: Iterable[str | Sequence[str]],
) -> dict[str, Path]:
    """Replace a sweep's event files; return the folders to open in TensorBoard by description, best view first.

    The folders are that of the configurations, if the sweep has more runs than these, and the sweep's; none if the
    runs have no event files. If ``folder`` is itself a run, nothing is written. Packed runs have no event files;
    they are part of the configurations, which are then written even if they have a run each.

    Args:
        folder: of the sweep.
        sweep: its summary.
        figures: images to show.
        markdown: blocks of the Text tab, either Markdown or lines that keep their spacing.
    """
    numbers_of_runs = sweep.runs.index
    traced = [number for number in numbers_of_runs if any(sweep.records[number].folder.glob(EVENT_FILES))]
    packed = any(is_packed_trace(sweep.records[number]) for number in numbers_of_runs)
    if not (traced or packed) or any(record.folder == folder for record in sweep.records):
        return {"curves": folder} if traced else {}
    numbers = run_numbers(sweep).add_prefix(TABLE)
    for number in traced:
        write_numbers(sweep.records[number], numbers.loc[number])
    # Runs of the user may lie in a folder of that name; their event files must stay.
    free = not any(record.folder.is_relative_to(folder / ARMS) for record in sweep.records)
    several = packed or len(sweep.runs) > len(sweep.configurations)
    curves = configuration_curves(sweep) if free and several else {}
    if free:
        write_configurations(folder / ARMS, sweep, curves)
    metrics = {tag_of(str(name)): str(name).removeprefix(TABLE) for name in numbers if numbers[name].notna().any()}
    names = dict.fromkeys(name for points in curves.values() for point in points for name in point.metrics)
    shown = [
        layout_event(layout(names or dict.fromkeys(sweep.curves["metric"].unique()), sweep.metric)),
        text("all runs", text_blocks([*markdown, *([ABOUT_CONFIGURATIONS] if curves else []), ABOUT_TABLE])),
        *image_events(figures),
    ]
    columns = hparams_columns(hyperparameters(sweep), metrics, sweep.keys)
    # TensorBoard selects none of more than 40 runs for these tabs; those below arms/ can be selected at once.
    if traced:
        replace_event_file(folder, [columns] if curves else [columns, *shown])
    if not curves:
        return {"curves of all runs": folder} if traced else {}
    replace_event_file(folder / ARMS, shown)
    all_runs = {"all runs and hyperparameters": folder} if traced else {}
    return {"median curves of the configurations": folder / ARMS, **all_runs}


def is_packed_trace(record: Record) -> bool:
    """Return True for a packed run with ``logger.tensorboard=true``."""
    return record.packed is not None and bool((record.result.config.get("logger") or {}).get("tensorboard"))


def write_numbers(record: Record, numbers: pd.Series) -> None:
    """Write a run's known numbers into a second event file in its folder."""
    known = {str(name): float(value) for name, value in numbers.dropna().items()}
    if known:
        point = Point(record.result.epochs, record.result.steps, time.time(), known)
        replace_event_file(record.folder, [scalars(point)], SWEEP_SUFFIX)


def write_configurations(folder: Path, sweep: SweepSummary, curves: Mapping[str, Sequence[Point]]) -> None:
    """Write an event file per configuration; remove earlier ones, and folders that are left empty."""
    for path in [*folder.glob(EVENT_FILES), *folder.glob(f"*/{EVENT_FILES}")]:
        path.unlink()
    settings = sweep.configurations[sweep.keys].set_axis(short_names(sweep.keys), axis="columns").to_dict("index")
    jobs = [[f"{key}={value}" for key, value in settings[name].items()] or [name] for name in curves]
    for name, points in zip(run_names(jobs), curves.values(), strict=True):
        replace_event_file(folder / name, [scalars(point, curve_tag) for point in points])
    for emptied in [*folder.glob("*/"), folder]:
        with suppress(OSError):
            emptied.rmdir()


def image_events(figures: Sequence[Path]) -> Iterator[Event]:
    """Yield an event for the Images tab, ``figures/<name>``, for each PNG file among the figures."""
    return (image(f"figures/{path.stem}", path.read_bytes()) for path in figures if path.suffix == ".png")


def text_blocks(blocks: Iterable[str | Sequence[str]]) -> str:
    """Join blocks of the Text tab: Markdown, or lines that keep their spacing."""
    return "\n\n".join(
        block if isinstance(block, str) else "\n".join(f"    {line}" for line in block) for block in blocks
    )


QUARTILES, AT_ITS_BEST = "quartiles/", ("best/", "test/")


def configuration_curves(sweep: SweepSummary) -> dict[str, list[Point]]:
    """Return the TensorBoard points of each configuration that has any finished or diverged runs.

    The median has the name of its metric; losses, other metrics with a direction and headline numbers of probes
    have the tags of :func:`bands` too.
    """
    names = counted_runs(sweep)
    ended = sweep.runs["status"].isin([Status.FINISHED, Status.DIVERGED])
    curves = quartile_curves(sweep, curve_rows(sweep), names[ended.reindex(names.index)])
    headline = {name for record in sweep.records for name in record.result.probes}
    has_band = {
        name: name in headline or not math.isnan(worst_of(name, sweep)) for name in curves["metric"].unique()
    }
    now = time.time()
    points: dict[str, dict[tuple[int, int], dict[str, float]]] = {
        str(name): {} for name in sweep.configurations.index
    }
    for name, metric, epoch, step, *three in curves.itertuples(index=False, name=None):
        metrics = points[name].setdefault((epoch, step), {})
        metrics[metric] = three[1]
        if has_band[metric]:
            metrics |= dict(zip(bands(metric), three, strict=True))
    return {
        name: [Point(epoch, step, now, metrics) for (epoch, step), metrics in sorted(of_name.items())]
        for name, of_name in points.items()
        if of_name
    }


def curve_rows(sweep: SweepSummary) -> pd.DataFrame:
    """Return the training curves and the headline numbers of probes, a row per run, metric and step."""
    names = [name for name in sweep.curves["metric"].unique() if not name.startswith(AT_ITS_BEST)]
    curves = sweep.curves[sweep.curves["metric"].isin(names)]
    return pd.concat([curves, *probe_rows(sweep.probes)], ignore_index=True).astype({"metric": "category"})


def probe_rows(rows: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Yield the numbers of probes with the columns of curves, if there are any."""
    if len(rows):
        source = ["probe", "mode", "quantity"]
        groups, distinct = rows.groupby(source, observed=True).ngroup(), rows[source].drop_duplicates()
        tags = "probe/" + distinct.astype(str).agg("/".join, axis=1)
        yield rows.assign(metric=groups.map(tags.set_axis(groups[tags.index])))[list(CURVE_COLUMNS)]


def bands(metric: str) -> list[str]:
    """Return the TensorBoard tags of the quartiles of a metric.

    >>> bands("val/loss")
    ['quartiles/val/loss/lower', 'quartiles/val/loss/median', 'quartiles/val/loss/upper']
    """
    # Runs must lack these tags: TensorBoard warns about each run that has only some tags of a chart with a band.
    return [f"{QUARTILES}{metric}/{name}" for name in BANDS]
