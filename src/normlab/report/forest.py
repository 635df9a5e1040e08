"""The first table of the report page: effects with their intervals on a common axis; see :func:`effect_groups`."""

import math
import re
from collections.abc import Sequence

import pandas as pd
from matplotlib.ticker import MaxNLocator

from normlab.report.console import effect_text, num
from normlab.report.effects import value_pair
from normlab.report.page import Effect, EffectGroup
from normlab.report.report_data import ReportData, TableRow, table_rows
from normlab.report.sections import styles_of
from normlab.stats.comparison import BETTER, RATIO, WORSE
from normlab.stats.design import Metric
from normlab.stats.sentences import p_value

MARGIN, TICK_GAP = 0.08, 0.2
"""Empty share of the axis at each end, and the smallest distance of two ticks as a share of it."""
WIDE, VERY_WIDE = 3.0, 1000.0
"""Ratios that span more than these factors have ticks at 1, 2 and 5 times a power of ten, and at powers of ten."""


def effect_groups(data: ReportData, table: pd.DataFrame) -> list[EffectGroup]:
    """Return the rows of :func:`normlab.report.effects.effect_table`, formatted, by metric."""
    rows = {str(metric): table_rows(part) for metric, part in table.groupby("metric", sort=False)}
    metrics = [metric for metric in data.analysis.design.metrics if metric.name in rows]
    return [effect_group(data, metric, rows[metric.name]) for metric in metrics]


def effect_group(data: ReportData, metric: Metric, rows: Sequence[TableRow]) -> EffectGroup:
    """Format the effects by one metric."""
    axis = Axis.of(rows)
    one_baseline = len({row["baseline"] for row in rows}) == 1
    better = "lower is better" if metric.direction == "min" else "higher is better"
    effects = [formatted(data, row, axis, one_baseline) for row in rows]
    meaning = ", ".join(filter(None, [metric.question, better]))
    if axis is None:
        return EffectGroup(metric.name, meaning, effects)
    return EffectGroup(metric.name, meaning, effects, axis.ticks(), axis.place(axis.same))


def formatted(data: ReportData, row: TableRow, axis: "Axis | None", one_baseline: bool) -> Effect:
    """Format an effect."""
    arm = row["arm"] if one_baseline else f"{row['arm']} vs. {row['baseline']}"
    label = ": ".join(filter(None, [short_panel(row["panel"]), arm])) or single_name(data)
    shown = {**row, "estimate_low": row["low"], "estimate_high": row["high"]}
    known = not math.isnan(row["estimate"])
    declared, within = row["verdict"] in (BETTER, WORSE), f"within {row['margin']}"
    equivalence = f"{row['verdict']}, {within}" if declared else f"equivalent {within}"
    return Effect(
        label=label,
        effect=effect_text(shown) if known else "",
        p="" if math.isnan(row["p"]) else p_value(row["p"]),
        verdict=equivalence if row["equivalent"] else row["verdict"],
        value="" if math.isnan(row["value"]) else value_pair(row, "value"),
        best="" if math.isnan(row["best_epoch"]) else value_pair(row, "best_epoch"),
        colour=styles_of(data)[row["arm"]].colour,
        declared=declared,
        place=axis.places(row) if axis and known else None,
    )


def single_name(data: ReportData) -> str:
    """Return the name of the configuration, or "all runs" if there are several."""
    names = data.summary.configurations.index
    return str(names[0]) if len(names) == 1 else "all runs"


def short_panel(panel: str) -> str:
    """Return the name of a panel with the last parts of its keys.

    >>> short_panel("data.batch_size=64, net=mlp")
    'batch_size=64, net=mlp'
    """
    return re.sub(r"[A-Za-z_]\w*\.(?=[\w.]+=)", "", panel)


class Axis:
    """The common axis of effects: logarithmic for ratios.

    Attributes:
        same: the value of equality, 1 for ratios and else 0.
        low, high: the ends.
    """

    def __init__(self, same: float, low: float, high: float) -> None:
        self.same, self.low, self.high = same, low, high

    @classmethod
    def of(cls, rows: Sequence[TableRow]) -> "Axis | None":
        """Return the axis of all estimates and ends; None without estimates, or for several kinds of effect."""
        known = [row for row in rows if not math.isnan(row["estimate"])]
        if len({row["effect"] for row in known}) != 1:
            return None
        same = 1.0 if known[0]["effect"] == RATIO else 0.0
        numbers = [row[name] for row in known for name in ("estimate", "low", "high")]
        finite = [x for x in numbers if math.isfinite(x) and (x > 0 or not same)]
        axis = cls(same, min([*finite, same]), max([*finite, same]))
        if axis.low == axis.high:
            axis.low, axis.high = (0.9, 1 / 0.9) if same else (-1.0, 1.0)
        return axis

    def place(self, value: float) -> float:
        """Return the place of a value in percent of the width; beyond an end for an infinite one."""
        if math.isinf(value) or (self.same and value <= 0):
            return 100.0 if value > 0 else 0.0
        low, high, at = (math.log(x) if self.same else x for x in (self.low, self.high, value))
        return round(100 * (MARGIN + (1 - 2 * MARGIN) * (at - low) / (high - low)), 2)

    def places(self, row: TableRow) -> tuple[float, float, float]:
        """Return the places of an estimate and of the ends of its interval, which is unbounded where unknown."""
        low, high = (
            self.place(unbounded if math.isnan(row[name]) else row[name])
            for name, unbounded in (("low", -math.inf), ("high", math.inf))
        )
        return self.place(row["estimate"]), low, high

    def ticks(self) -> list[tuple[str, float]]:
        """Return texts and places of ticks; that of equality is always there."""
        if self.same and self.high / self.low > WIDE:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            digits = (1, 2, 5) if self.high / self.low < VERY_WIDE else (1,)
            values = [digit * 10.0**power for power in powers for digit in digits]
        else:
            values = list(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]).tick_values(self.low, self.high))
        kept = [self.same]
        for value in sorted(values, key=lambda value: abs(self.place(value) - self.place(self.same))):
            inside = 0 <= self.place(value) <= 100
            far = all(abs(self.place(value) - self.place(other)) >= 100 * TICK_GAP for other in kept)
            kept += [value] if inside and far else []
        return [(num(value), self.place(value)) for value in sorted(kept)]


def split_groups(groups: Sequence[EffectGroup], most: int) -> tuple[list[EffectGroup], list[EffectGroup]]:
    """Divide groups into those that are shown at first and those that are collapsed.

    With more than ``most`` effects, only as many of the first metric are shown.
    """
    if sum(len(group.effects) for group in groups) <= most:
        return list(groups), []
    first, *others = groups
    shown, rest = (
        EffectGroup(first.metric, first.meaning, effects, first.ticks, first.same)
        for effects in (first.effects[:most], first.effects[most:])
    )
    return [shown], [*[rest] * bool(rest.effects), *others]
