"""Simulations of whole sweeps with different arms, analyzed by ``analyze``: power and equivalence."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from array_simulations import KINDS
from simulated_sweeps import UNIT, Sweep, analyse, declared_rate, pair
from simulation_tables import Table, Tables

from normlab.stats.analysis import Analysis
from normlab.stats.comparison import ALPHA
from normlab.stats.looks import History

PLAIN = ("normal", "skewed", "heavy-tailed")
MARGIN = 0.05
FOUND: dict[str, tuple[Sweep, Callable[[], History | None]]] = {
    "not tuned": (Sweep((1, 1), 12), lambda: None),
    "max_replicates=12": (Sweep((1, 1), 12), lambda: History(12)),
    "first look": (Sweep((1, 1), 12), History),
    "best of 8 equal rates": (Sweep((8, 8), 18), lambda: None),
    "best of 5 unequal rates": (Sweep((5, 5), 18, steep=True), lambda: None),
}
"""Sweeps of two arms with 12 reported replicates, each with a factory of the folder's history of looks."""


def power(size: int, generator: np.random.Generator) -> Tables:
    """Estimate the power to declare a difference between two arms with 12 independent replicates."""
    table: Table = {}
    for kind in PLAIN:
        for shift in (1.0, 1.5):
            for title, (sweep, history) in FOUND.items():
                rate = declared_rate(replace(sweep, kind=kind), size, generator, shift, history)
                table.setdefault(f"{kind}, {shift} sd", {})[title] = rate
    return {"12 reported replicates: declared": table}


def margins(size: int, generator: np.random.Generator) -> Tables:
    """Estimate how often arms at a margin of 5 % (1 sd), and equal arms, are declared equivalent."""
    table: Table = {}
    margin = np.log1p(MARGIN) / UNIT
    for kind, (draw, sd) in KINDS.items():
        for n in (12, 32):
            for title, shift in (("at the upper end", 1.0), ("at the lower end", -1.0), ("no difference", 0.0)):
                differences = margin * (draw(generator, (size, n)) / sd + shift)
                sweeps = map(pair, differences, generator.normal(size=(size, n)))
                declared = [equivalent(analyse(runs, generator, margin=MARGIN)) for runs in sweeps]
                table.setdefault(f"{kind}, n = {n}", {})[title] = float(np.mean(declared))
    return {"two arms, margin 5 % = 1 sd: equivalent": table}


def equivalent(analysis: Analysis) -> bool:
    """Return True if the arms are declared equivalent."""
    return bool(analysis.comparisons["equivalence_p_adjusted"].iloc[0] <= ALPHA)
