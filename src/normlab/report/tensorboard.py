"""What TensorBoard shows of a sweep beside its runs: arms, the HParams tab, custom scalars, text and images.

``arms/<arm>`` below the sweep's folder is a run to TensorBoard: its curves are the medians over an arm's seeds.
What is said of them all is beside them, so that it is seen with the arms alone.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from normlab.report.arm_curves import arm_curves
from normlab.report.custom_scalars import layout
from normlab.report.hparams_tab import hyperparameters, run_numbers
from normlab.report.probes import write_images
from normlab.report.sweep_summary import SweepSummary
from normlab.results.curves import Point
from normlab.results.events import CLOSED, OURS, EventFile, replaced
from normlab.results.names import run_names
from normlab.results.sweep import Record

ARMS, TABLE = "arms", "table/"
ABOUT_ARMS = """\
`arms/…` has the median over the seeds of each arm, and `quartiles/…` what is around it. From where a run diverged
it counts as the worst value there is: a curve breaks off where half of the seeds have diverged, a band where a
quarter have. Runs that were stopped or failed are left out, and a median ends where its first seed stopped. What
is neither good nor bad, as `activation/…` and `probe/…`, is of the finished seeds alone."""
ABOUT_TABLE = """\
`table/…` has the numbers of summary.csv, and the HParams tab their means over the seeds: infinite where a run
diverged or, for `epochs_to_target`, did not get there. `reached` and `diverged` are shares of the seeds."""


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
    traced = [number for number in sweep.runs.index if any(records[number].folder.glob(OURS))]
    if not traced or any(record.folder == folder for record in records):
        return [folder] if traced else []
    numbers = run_numbers(sweep, records).add_prefix(TABLE)
    for number in traced:
        write_numbers(records[number], numbers.loc[number])
    # A person may have called runs so: their event files are not to be replaced.
    free = not any(record.folder.is_relative_to(folder / ARMS) for record in records)
    curves = arm_curves(sweep, records) if free and len(sweep.runs) > len(sweep.arms) else {}
    if free:
        write_arms(folder / ARMS, named(sweep, curves))
    metrics = {str(tag): str(tag).removeprefix(TABLE) for tag in numbers if numbers[tag].notna().any()}
    tags = dict.fromkeys(tag for points in curves.values() for point in points for tag in point.metrics)
    # Of more than 40 runs TensorBoard selects none for these tabs: what is called arms is found all at once.
    shown = folder / ARMS if curves else folder
    for place in dict.fromkeys([folder, shown]):
        with replaced(place) as events:
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
        with replaced(record.folder, CLOSED) as events:
            events.scalars([Point(record.result.epochs, record.result.steps, time.time(), known)])


def named(sweep: SweepSummary, curves: Mapping[str, Sequence[Point]]) -> dict[str, Sequence[Point]]:
    """Return the arms' curves by the names of their folders."""
    settings = sweep.arms[sweep.keys].to_dict("index")
    jobs = [[f"{key}={value}" for key, value in settings[arm].items()] or [arm] for arm in curves]
    return dict(zip(run_names(jobs) if jobs else [], curves.values(), strict=True))


def write_arms(folder: Path, curves: Mapping[str, Sequence[Point]]) -> None:
    """Write an event file for each arm, by its name, and remove what an earlier close wrote of others."""
    for name, points in curves.items():
        with replaced(folder / name) as events:
            events.scalars(points)
    stale = [path for path in folder.glob(f"*/{OURS}") if path.parent.name not in curves]
    for path in [*stale, *([] if curves else folder.glob(OURS))]:
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
