"""How arms are told apart in figures: one colour and one line for each, the same everywhere.

The colours are those of Okabe and Ito, which readers of every kind of colour vision tell apart, without the
yellow, which is too pale for a line on white.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES: tuple[Any, ...] = (
    "-",
    (0, (4, 1.5)),
    (0, (1, 1.2)),
    (0, (5, 1.2, 1, 1.2)),
    (0, (5, 1.2, 1, 1.2, 1, 1.2)),
    (0, (10, 2)),
)


@dataclass(frozen=True)
class Style:
    """An arm's colour and line, as matplotlib takes them."""

    colour: str
    line: Any


def styles(arms: Sequence[tuple[str, ...]]) -> list[Style]:
    """Return a style for each arm, given what varies from arm to arm.

    The first thing that varies is the colour and the rest the line, where there are enough of both; otherwise
    one colour after the other, then the same with the next line.

    >>> [(style.colour[:3], style.line) for style in styles([("bn", "64"), ("nobn", "64")])]
    [('#00', '-'), ('#D5', '-')]
    """
    colours = list(dict.fromkeys(arm[0] for arm in arms if arm))
    lines = list(dict.fromkeys(arm[1:] for arm in arms))
    if len(colours) <= len(COLOURS) and 1 < len(lines) <= len(LINES):
        return [Style(COLOURS[colours.index(arm[0])], LINES[lines.index(arm[1:])]) for arm in arms]
    pairs = itertools.cycle(itertools.product(LINES, COLOURS))
    return [Style(colour, line) for _, (line, colour) in zip(arms, pairs, strict=False)]
