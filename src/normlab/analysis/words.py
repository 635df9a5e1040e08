"""One sentence for each comparison, from its numbers alone."""

import math
from collections.abc import Mapping
from typing import Any

from normlab.analysis.comparing import ALIKE, BETTER, NOT_COMPARABLE, TOO_FEW, WORSE
from normlab.analysis.coverage import coverage_of
from normlab.analysis.design import Design
from normlab.analysis.planning import ALPHA, ENOUGH

Row = Mapping[Any, Any]


def sentence(row: Row, design: Design) -> str:
    """Return what a comparison says: the verdict with its numbers, then the times to the target.

    Args:
        row: of the table of comparisons.
        design: the sweep's.
    """
    return "; ".join([*verdict_clauses(row, design), *time_clauses(row)])


def verdict_clauses(row: Row, design: Design) -> list[str]:
    """Return the parts of the sentence about the metric."""
    arm, baseline, verdict, metric = row["arm"], row["baseline"], row["verdict"], design.metric
    where = f" at {row['panel']}" if row["panel"] else ""
    against = f"{arm} against {baseline}{where}: {verdict}"
    if verdict.startswith(NOT_COMPARABLE):
        return [against]
    if verdict == TOO_FEW:
        why = f"of {ENOUGH} that it needs" if row["seeds"] < ENOUGH else "which tuned as well"
        return [f"{against}, {seeds(row)} {why}", *measured(row, metric)]
    numbers = f"p = {p_value(row['p_holm'])}, {seeds(row)}"
    if verdict == ALIKE:
        alone = [f"{each}, which declares nothing by itself" for each in measured(row, metric)]
        return [f"{against} in {metric}, {numbers}", *(alone if is_apart(row) else excluded(row))]
    if verdict in (BETTER, WORSE):
        return [f"{arm} is {verdict} than {baseline} in {metric}{where}, {numbers}", *measured(row, metric)]
    apart = f"the mean and the middle half of {metric} point to different sides"
    return [f"{against}, {numbers}: {apart}", *measured(row, metric)]


def measured(row: Row, metric: str) -> list[str]:
    """Return how far the arms are apart: as a ratio, else as a difference, else by how often one is better."""
    if not math.isnan(row["ratio"]):
        said = f"{metric} is {number(row['ratio'])} times that of {row['baseline']}"
        ends = interval(row["ratio_low"], row["ratio_high"], "–")
    elif not math.isnan(row["difference"]):
        said = f"{metric} differs by {number(row['difference'], plus=True)}"
        ends = interval(row["difference_low"], row["difference_high"], " to ")
    elif not math.isnan(row["improvement"]):
        said = f"more than a quarter of the runs of an arm diverged, and one of {row['arm']} is better in "
        said += f"{percent(row['improvement'])} of pairs"
        ends = percents(row["improvement_low"], row["improvement_high"])
    else:
        return []
    coverage = coverage_of(row["seeds"])
    if coverage is not None and ends:
        ends += f", which with {row['seeds']} seeds holds the truth in {percent(coverage)} of simulations"
    return [said + ends]


def is_apart(row: Row) -> bool:
    """Return whether the interval that is told leaves out that the arms are the same."""
    name, same = ("difference", 0) if math.isnan(row["ratio"]) else ("ratio", 1)
    return bool(row[f"{name}_low"] > same or row[f"{name}_high"] < same)


def excluded(row: Row) -> list[str]:
    """Return which differences the interval excludes, where nothing was declared."""
    low, high = row["ratio_low"], row["ratio_high"]
    if math.isfinite(low) and math.isfinite(high):
        if max(1 - low, high - 1) < 1:
            most = percent(max(1 - low, high - 1), up=True)
            return [f"differences above {most} are excluded by the 95 % interval"]
        return [f"ratios below {number(low)} and above {number(high)} are excluded by the 95 % interval"]
    low, high = row["difference_low"], row["difference_high"]
    if math.isfinite(low) and math.isfinite(high):
        return [f"differences above {number(max(-low, high))} are excluded by the 95 % interval"]
    return ["no difference is excluded by a 95 % interval"]


def time_clauses(row: Row) -> list[str]:
    """Return the parts of the sentence about steps and seconds to the target, if there is one."""
    arm, baseline = row["arm"], row["baseline"]
    if math.isnan(row["reached"]) or math.isnan(row["baseline_reached"]):
        return []
    if math.isnan(row["steps_ratio"]):
        shares = [
            f"{percent(row[name])} of {who}{percents(row[f'{name}_low'], row[f'{name}_high'])}"
            for name, who in (("reached", arm), ("baseline_reached", baseline))
        ]
        return [f"the target is reached by {' and by '.join(shares)}"]
    ratios = [
        f"{number(row[f'{name}_ratio'])} times the {name} of {baseline}"
        + interval(row[f"{name}_ratio_low"], row[f"{name}_ratio_high"], "–")
        for name in ("steps", "seconds")
        if not math.isnan(row[f"{name}_ratio_low"])
    ]
    return [f"{arm} reaches the target in {', and in '.join(ratios)}, {seeds(row)}"] if ratios else []


def seeds(row: Row) -> str:
    """Return how many seeds there are.

    >>> seeds({"seeds": 32, "paired": True}), seeds({"seeds": 1, "paired": False})
    ('32 paired seeds', '1 seed, not paired')
    """
    if row["paired"]:
        return f"{row['seeds']} paired seed{'s' * (row['seeds'] != 1)}"
    return f"{row['seeds']} seed{'s' * (row['seeds'] != 1)}, not paired"


def interval(low: float, high: float, between: str) -> str:
    """Return an interval behind its estimate; an infinite end is no end.

    >>> interval(0.38, 0.51, "–"), interval(0.38, math.inf, "–"), interval(-math.inf, 2.0, " to ")
    (', 95 % CI 0.38–0.51', ', 95 % CI more than 0.38', ', 95 % CI less than 2')
    >>> interval(-math.inf, math.inf, " to "), interval(math.nan, math.nan, "–")
    (', 95 % CI without ends', '')
    """
    if math.isnan(low) or math.isnan(high):
        return ""
    if math.isinf(high):
        return ", 95 % CI without ends" if math.isinf(low) else f", 95 % CI more than {number(low)}"
    if math.isinf(low):
        return f", 95 % CI less than {number(high)}"
    return f", 95 % CI {number(low)}{between}{number(high)}"


def percents(low: float, high: float) -> str:
    """Return the interval of a share, in brackets.

    >>> percents(0.5, 0.876), percents(math.nan, math.nan)
    (' (95 % CI 50–88 %)', '')
    """
    return "" if math.isnan(low) else f" (95 % CI {100 * low:.0f}–{100 * high:.0f} %)"


def percent(share: float, up: bool = False) -> str:
    """Return a share in percent, with one digit more below 10; rounded up where it is a bound.

    >>> percent(0.875), percent(0.0312, up=True), percent(0.5)
    ('88 %', '3.2 %', '50 %')
    """
    digits = 1 if up and share < 0.1 else 0
    value = 100 * share
    if up:
        value = math.ceil(value * 10**digits - 1e-9) / 10**digits
    return f"{value:.{digits}f}".removesuffix(".0") + " %"


def number(value: float, plus: bool = False) -> str:
    """Return a number with two digits that count, three from 1 on.

    >>> number(0.4312), number(12.345), number(3.2e-07), number(0.05, plus=True)
    ('0.43', '12.3', '3.2e-07', '+0.05')
    """
    digits = 3 if abs(value) >= 1 else 2
    return f"{value:{'+' if plus else ''}.{digits}g}"


def p_value(p: float) -> str:
    """Return p with two digits, rounded so that what is not declared is never shown as 0.05.

    >>> p_value(0.0078125), p_value(0.0501), p_value(1e-7)
    ('0.0078', '0.051', '1e-07')
    """
    text = f"{p:.2g}"
    return f"{math.ceil(p * 1000) / 1000:g}" if p > ALPHA >= float(text) else text
