"""The best metric against the learning rate, a panel for each of the other settings: which of them train."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from normlab.analysis.arms import label, natural, replicates
from normlab.report.figures import LOOK, save
from normlab.report.overview import Overview
from normlab.report.palette import Style, styles
from normlab.report.probe_sheet import ABOVE, Entry, Row, head, scale, sheet
from normlab.report.tables import short_names

LR, ARM = "optimizer.lr", "model"
AT_LEAST, ACROSS, AT_MOST = 3, 3, 12
"""Learning rates, panels in a row, and panels in all."""


def write_learning_rates(sweep: Overview, folder: Path) -> list[Path]:
    """Draw ``learning_rates.png`` and ``.svg`` if at least three learning rates were swept; return the files."""
    if LR not in sweep.keys or sweep.arms[LR].nunique() < AT_LEAST or not sweep.arms["finished"].any():
        return []
    panels = panels_of(sweep)
    if not 1 <= len(panels) <= AT_MOST:
        return []
    with rc_context(LOOK):
        looks = looks_of(sweep)
        title = f"Which learning rates train: the best {sweep.metric}"
        figure, axes = sheet(title, rows_of(list(panels)), [legend(looks)], caption(sweep))
        places = [(place, place is row[0]) for row in axes for place in row]
        drawn = [draw(place, sweep, runs, looks) for (place, _), runs in zip(places, panels.values(), strict=True)]
        for (place, first), name in zip(places, panels, strict=True):
            head(place, name.split("\n"), "learning rate", sweep.metric if first else "")
            place.set_xscale("log")
            place.xaxis.set_minor_locator(NullLocator())
            scale(place, np.concatenate(drawn))
        level([place for place, _ in places])
        for (place, _), runs in zip(places, panels.values(), strict=True):
            crosses(place, sweep, runs, looks)
        return [save(figure, folder / f"learning_rates.{kind}") for kind in ("png", "svg")]


def panels_of(sweep: Overview) -> dict[str, pd.DataFrame]:
    """Return the runs of each setting but normalizer and learning rate, by its name."""
    others = [key for key in sweep.keys if key not in (LR, ARM)]
    if not others:
        return {"": sweep.runs}
    groups = {tuple(brief(str(text)) for text in group): runs for group, runs in sweep.runs.groupby(others)}
    names = short_names(others)
    ordered = sorted(groups, key=lambda group: [natural(text) for text in group])
    return {label(names, group).replace(", ", "\n"): groups[group] for group in ordered}


def brief(setting: str) -> str:
    """Return a setting in few letters: a list of equal sizes as their number times the size.

    >>> brief("[100, 100, 100]"), brief("[10, 20]"), brief("kaiming")
    ('3 × 100', '[10,20]', 'kaiming')
    """
    sizes = setting.strip("[]").replace(" ", "").split(",")
    if setting.startswith("[") and len(set(sizes)) == 1:
        return f"{len(sizes)} × {sizes[0]}"
    return setting.replace(", ", ",")


def rows_of(names: Sequence[str]) -> list[Row]:
    """Return rows for panels with these names."""
    above = ABOVE + 0.17 * (max(name.count("\n") for name in names) - 0.5)
    counts = [min(ACROSS, len(names) - first) for first in range(0, len(names), ACROSS)]
    return [Row(count, above=above, shared=True, of=counts[0]) for count in counts]


def looks_of(sweep: Overview) -> dict[str, Style]:
    """Return the colour and line of each normalizer, of all runs together where there is but one."""
    arms = sweep.arms[ARM].unique().tolist() if ARM in sweep.keys else [""]
    return dict(zip(arms, styles([(arm,) for arm in arms]), strict=True))


def legend(looks: dict[str, Style]) -> list[Entry]:
    """Return the legend of the normalizers, if there are several."""
    if len(looks) == 1:
        return []
    return [
        (Line2D([], [], color=look.colour, linestyle=look.line, marker="o", markersize=3), arm)
        for arm, look in looks.items()
    ]


def arms_of(sweep: Overview, runs: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Return the runs of each normalizer, each seed once."""
    known = replicates(runs)
    if ARM not in sweep.keys:
        return [("", known)]
    return [(str(arm), own) for arm, own in known.groupby(ARM, sort=False)]


def draw(axes: Axes, sweep: Overview, runs: pd.DataFrame, looks: dict[str, Style]) -> np.ndarray:
    """Draw the median over seeds of each normalizer, and their range; return the medians that are finite."""
    drawn = [np.array([])]
    for arm, own in arms_of(sweep, runs):
        values = own.assign(lr=own[LR].astype(float)).groupby("lr")["best"]
        median = values.median()
        finite, look = np.isfinite(median), looks[arm]
        low, high = (values.quantile(q).where(finite) for q in (0.0, 1.0))
        style = {"color": look.colour, "linestyle": look.line, "marker": "o", "markersize": 3}
        axes.plot(median.index, median.where(finite), **style)
        axes.fill_between(median.index, low, high.where(np.isfinite(high)), color=look.colour, alpha=0.15, lw=0)
        drawn.append(median[finite].to_numpy())
    return np.concatenate(drawn)


def level(places: Sequence[Axes]) -> None:
    """Give all panels one value axis."""
    limits = np.array([place.get_ylim() for place in places])
    for place in places:
        place.set_ylim(limits[:, 0].min(), limits[:, 1].max())


def crosses(axes: Axes, sweep: Overview, runs: pd.DataFrame, looks: dict[str, Style]) -> None:
    """Mark at the worse edge the learning rates with which runs diverged."""
    edge = axes.get_ylim()[1 if sweep.direction == "min" else 0]
    for number, (arm, own) in enumerate(arms_of(sweep, runs)):
        diverged = own.loc[own["status"] == "diverged", LR].astype(float).unique()
        shifted = diverged * 1.06**number
        axes.plot(shifted, [edge] * len(shifted), "x", color=looks[arm].colour, markersize=6, clip_on=False)


def caption(sweep: Overview) -> list[str]:
    """Return what line, band and cross stand for."""
    seeds = int(sweep.arms["seeds"].max())
    words = [f"line: median over {seeds} seeds", "band: all seeds"] if seeds > 1 else ["one seed: no spread"]
    return [*words, *["×: some seeds diverged"] * bool((sweep.runs["status"] == "diverged").any())]
