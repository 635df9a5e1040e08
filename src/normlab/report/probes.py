"""The figures of what the probes of a sweep found, ``probe_<name>.png`` and ``.svg``."""

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.figure import Figure

from normlab.report.figure_layout import GREY
from normlab.report.figures import drawing, save
from normlab.report.panels import panels
from normlab.report.probe_data import Measured, measured
from normlab.report.probe_gradient import along_gradient
from normlab.report.probe_landscape import curvature, gradient_lipschitz, line
from normlab.report.probe_layers import activations, covariate_shift, preactivations
from normlab.report.probe_panels import Panel, number_sheet
from normlab.report.sweep_summary import SweepSummary
from normlab.results.sweep import Record

if TYPE_CHECKING:
    from normlab.results.events import EventFile

FIGURES: dict[str, Callable[[Measured], Figure | None]] = {
    figure.__name__: figure
    for figure in (
        activations,
        along_gradient,
        covariate_shift,
        curvature,
        gradient_lipschitz,
        line,
        preactivations,
    )
}
ARMS = 6
"""How many arms a figure has at most, where the sweep has panels."""
ACROSS, AT_MOST = 3, 12
"""How many panels a probe that is not known here has in a row, and for each of its modes."""


def write_probe_figures(sweep: SweepSummary, records: Sequence[Record], folder: Path) -> list[Path]:
    """Draw a figure of each probe into ``folder``, each file whole or not at all, and return the files."""
    drawn = probe_figures(sweep, records)
    with drawing():
        return [save(figure, folder / f"{stem}.{kind}") for stem, figure, _ in drawn for kind in ("png", "svg")]


def probe_figures(sweep: SweepSummary, records: Sequence[Record]) -> Iterator[tuple[str, Figure, Measured]]:
    """Yield a figure of each probe, with what its file is called and with what is drawn.

    There is one for what was measured and for nothing else; where it would show too many arms, one for each panel
    of the sweep. A probe without a figure of its own, as a user's, has its numbers drawn as they are.
    """
    parts = panels(sweep) if len(sweep.arms) > ARMS else {"": sweep}
    for probe, (where, shown) in itertools.product(measured(sweep, records), parts.items()):
        of_part = probe.within(shown)
        with drawing():
            figure = (FIGURES.get(probe.name, plain)(of_part) or plain(of_part)) if of_part.arms else None
        if figure is not None:
            subtitle(figure, where)
            yield f"probe_{probe.name}" + f"_{file_name(where)}" * bool(where), figure, of_part


def last_numbers(probe: Measured) -> pd.DataFrame:
    """Return a row per arm and quantity: its median over the seeds when the probe last looked, layers apart."""
    rows = [
        {"arm": arm, "statistics": mode, "quantity": name, "median": probe.last(mode, name).reindex(runs).median()}
        for mode, name in probe.rows
        if "/" not in name
        for arm, runs in probe.ended.items()
    ]
    return pd.DataFrame(rows, columns=["arm", "statistics", "quantity", "median"])


def subtitle(figure: Figure, where: str) -> None:
    """Write below the title which panel of the sweep it is."""
    figure.text(0.5, 1 - 0.44 / figure.get_size_inches()[1], where, ha="center", fontsize=9, color=GREY)


def file_name(where: str) -> str:
    """Return a panel's name as a part of a file's.

    >>> file_name("hidden=[100, 100], init=kaiming")
    'hidden=[100,100],init=kaiming'
    """
    return re.sub(r"[^\w=,.\[\]-]", "", where)


def plain(probe: Measured) -> Figure | None:
    """Draw the numbers of a probe that are of no layer, or that a table has room for, as they are called."""
    rows = []
    for mode in probe.modes:
        names = [name for of, name in probe.rows if of == mode and probe.has(name, mode)]
        chosen = [name for name in names if "/" not in name or name in probe.headline] or names
        panels = [Panel(mode, name, name, name) for name in chosen[:AT_MOST]]
        rows += [panels[first : first + ACROSS] for first in range(0, len(panels), ACROSS)]
    return number_sheet(probe, probe.name, rows)[0] if rows else None


def write_images(events: "EventFile", figures: Sequence[Path]) -> None:
    """Show the figures that are PNG files in TensorBoard's Images tab, by their names."""
    for path in figures:
        if path.suffix == ".png":
            events.image(f"figures/{path.stem}", path.read_bytes())
