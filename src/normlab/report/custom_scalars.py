"""The layout of TensorBoard's Custom Scalars tab."""

import re
from collections.abc import Collection

from tensorboard.plugins.custom_scalar.layout_pb2 import (
    Category,
    Chart,
    Layout,
    MarginChartContent,
    MultilineChartContent,
)

from normlab.report.arm_curves import AT_ITS_BEST, QUARTILES, bands

LOSSES = "losses and metrics"


def layout(tags: Collection[str], metric: str) -> Layout:
    """Return charts for all tags, by category: bands where there are quartiles, lines for what is more or else.

    The optimized ``metric`` and the losses come first, and what is neither is closed.
    """
    first = [name for name in (metric, "val/loss", "train/loss") if name in tags]
    categories: dict[str, dict[str, list[str]]] = {LOSSES: {}}
    for tag in dict.fromkeys([*first, *tags]):
        if not tag.startswith((QUARTILES, *AT_ITS_BEST)):
            category, quantity = place(tag)
            categories.setdefault(category, {}).setdefault(quantity, []).append(tag)
    found = Layout()
    for category, quantities in categories.items():
        banded = [tag for of in quantities.values() for tag in of if bands(tag)[0] in tags]
        rest = {title: of for title, of in quantities.items() if len(of) > 1 or of[0] not in banded}
        # TensorBoard shows charts with bands from the last to the first, after those of lines.
        charts = [with_band(tag) for tag in reversed(banded)], [with_lines(*chart) for chart in rest.items()]
        for title, chart in zip((f"{category}: median and quartiles", category), charts, strict=True):
            found.category.extend([Category(title=title, chart=chart, closed=category != LOSSES)] if chart else [])
    return found


def place(tag: str) -> tuple[str, str]:
    """Return a tag's category, and the name of the chart that it shares with other splits and layers.

    >>> place("val/loss"), place("activation/hidden1/before_std")
    (('losses and metrics', 'loss'), ('activation', 'before_std'))
    >>> place("probe/activations/batch/hidden1/std"), place("probe/curvature/frozen/trace")
    (('probe activations', 'std (batch)'), ('probe curvature', 'trace (frozen)'))
    """
    first, *rest = tag.split("/")
    if first == "probe":
        return f"probe {rest[0]}", f"{rest[-1]} ({rest[1]})"
    return (LOSSES, "/".join(rest)) if first in ("train", "val") else (first, rest[-1] if rest else first)


def with_band(tag: str) -> Chart:
    """Return a chart of a tag's median, the band between its other quartiles around it."""
    lower, median, upper = bands(tag)
    series = MarginChartContent.Series(value=median, lower=lower, upper=upper)
    return Chart(title=tag, margin=MarginChartContent(series=[series]))


def with_lines(title: str, tags: list[str]) -> Chart:
    """Return a chart with a line for each tag."""
    return Chart(title=title, multiline=MultilineChartContent(tag=[f"^{re.escape(tag)}$" for tag in tags]))
