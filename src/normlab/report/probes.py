"""The figures of what the probes of a sweep found, ``probe_<name>.png`` and ``.svg``."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib import rc_context
from matplotlib.figure import Figure

from normlab.records.sweep import Record
from normlab.report.figures import LOOK, save
from normlab.report.overview import Overview
from normlab.report.probe_data import Measured, measured
from normlab.report.probe_gradient import along_gradient
from normlab.report.probe_landscape import curvature, gradient_lipschitz, line
from normlab.report.probe_layers import activations, covariate_shift, preactivations
from normlab.report.probe_panels import Panel, number_sheet

if TYPE_CHECKING:
    from normlab.records.events import EventFile

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
ACROSS, AT_MOST = 3, 12
"""How many panels a probe that is not known here has in a row, and for each of its modes."""


def write_probe_figures(sweep: Overview, records: Sequence[Record], folder: Path) -> list[Path]:
    """Draw a figure of each probe into ``folder``, each file whole or not at all, and return the files.

    There is one for what was measured and for nothing else. A probe without a figure of its own, as a user's, has
    its numbers drawn as they are.
    """
    files = []
    with rc_context(LOOK):
        for probe in measured(sweep, records):
            figure = FIGURES.get(probe.name, plain)(probe) or plain(probe)
            if figure is not None:
                files += [save(figure, folder / f"probe_{probe.name}.{kind}") for kind in ("png", "svg")]
    return files


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
