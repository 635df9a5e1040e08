"""Simulations of whole sweeps without true differences, analyzed by ``analyze``: false-positive rates.

Each simulation takes the number of repetitions and a generator, and returns tables by title.
"""

from dataclasses import replace
from functools import partial

import numpy as np
from array_simulations import KINDS, LOOKS, mixtures
from simulated_sweeps import LOSS, Sweep, analyse, declared, declared_rate, pair, rates
from simulation_tables import Table, Tables

from normlab.stats.analysis import Analysis
from normlab.stats.comparison import ALPHA
from normlab.stats.design import Scope
from normlab.stats.estimates import final_mean
from normlab.stats.looks import History


def epochs(size: int, generator: np.random.Generator) -> Tables:
    """Compare arms that differ only in epoch noise (sd 0.25 and 0.5; seed sd 0.3), by two outcomes."""
    table: Table = {"best of 100 epochs": {}, "mean of the last 10": {}}
    spread = np.array([0.25, 0.5])[:, None, None]
    for n in (12, 24):
        runs, budget = Sweep(seeds=n).frame(), np.full(2 * n, 100)
        found: dict[str, list[bool]] = {outcome: [] for outcome in table}
        for _ in range(size):
            curves = 3.0 + spread * generator.normal(size=(2, n, 100)) + 0.3 * generator.normal(size=(2, n, 1))
            flat = curves.reshape(2 * n, 100)
            for outcome, values in zip(table, (flat.min(axis=-1), final_mean(flat, budget)), strict=True):
                filled = runs.assign(validation=values, **{LOSS.name: values})
                found[outcome].append(bool(declared(analyse(filled, generator))["declared"]))
        for outcome, row in table.items():
            row[f"n = {n}"] = float(np.mean(found[outcome]))
    return {"equal expected curves, one with noisier epochs: declared": table}


def replicates(size: int, generator: np.random.Generator) -> Tables:
    """Compare arms that are equal on average over splits: one split per replicate, or one for all.

    The standard deviation of the difference between splits is 0.5 or 1.0 times that between seeds.
    """
    table: Table = {}
    for scope, title in ((Scope.DRAW, "replicate=data"), (Scope.SEED, "replicate=seed")):
        for ratio in (0.5, 1.0):
            for n in (12, 24):
                of_split, of_seed, shared = (
                    scale * generator.normal(size=(size, count))
                    for scale, count in ((ratio, n if scope == Scope.DRAW else 1), (1.0, n), (1.0, n))
                )
                sweeps = map(partial(pair, scope=scope), of_split + of_seed, shared)
                rate = rates(sweeps, declared, generator)["declared"]
                table.setdefault(f"{title}, split sd {ratio}", {})[f"n = {n}"] = rate
    return {"arms that are equal over splits: declared": table}


def shapes(size: int, generator: np.random.Generator) -> Tables:
    """Estimate false-positive rate and coverage for differences of several shapes with pseudomedian 0."""
    draws = {kind: draw for kind, (draw, _) in KINDS.items()} | mixtures()
    tables: Tables = {"declared by the full analysis": {}, "coverage of the 95 % interval of the effect": {}}
    for kind, draw in draws.items():
        for n in (12, 32):
            sweeps = map(pair, draw(generator, (size, n)), generator.normal(size=(size, n)))
            by_name = rates(sweeps, declared_and_covered, generator)
            for table, name in zip(tables.values(), ("declared", "covered"), strict=True):
                if name == "declared" or kind in KINDS:
                    table.setdefault(kind, {})[f"n = {n}"] = by_name[name]
    return tables


def declared_and_covered(analysis: Analysis) -> dict[str, float]:
    """Return two indicators: a difference is declared, and the interval contains the ratio 1."""
    row = analysis.comparisons.iloc[0]
    return declared(analysis) | {"covered": bool(row["estimate_low"] <= 1.0 <= row["estimate_high"])}


FOLDERS = {
    "one learning rate": (Sweep((1, 1), LOOKS[-1]), 0),
    "best of 3 equal rates": (Sweep((3, 3), LOOKS[-1] + 4), 4),
    "best of 5 unequal rates": (Sweep((5, 5), LOOKS[-1] + 4, steep=True), 4),
}
"""Sweeps that are repeated with more seeds, and their number of tuning seeds."""


def looks(size: int, generator: np.random.Generator) -> Tables:
    """Estimate false-positive rates of three rules for looks after 8, 12, … 40 reported replicates."""
    table: Table = {}
    for title, (sweep, tuning) in FOLDERS.items():
        frame, counts = sweep.frame(), [n + tuning for n in LOOKS]
        found: dict[str, list[bool]] = {"p ≤ 5 % at any look": [], "α/(k(k + 1))": [], "max_replicates=40": []}
        for _ in range(size):
            runs = sweep.fill(frame, generator)
            for rule, max_replicates in (("α/(k(k + 1))", None), ("max_replicates=40", LOOKS[-1])):
                history, p, any_declared = History(max_replicates), [], False
                for count in counts:
                    analysis = analyse(runs[runs["seed"] < count], generator, history=history)
                    any_declared |= bool(declared(analysis)["declared"])
                    p.append(float(analysis.comparisons["p_near_best"].iloc[0]))
                found[rule].append(any_declared)
            found["p ≤ 5 % at any look"].append(min(p) <= ALPHA)
        for rule, rows in found.items():
            table.setdefault(rule, {})[title] = float(np.mean(rows))
    return {"a folder with 8, 12, … 40 reported replicates: declared": table}


IDENTICAL = {
    "2 arms": Sweep((1, 1), 12),
    "4 arms": Sweep((1, 1, 1, 1), 12),
    "2 arms, 3 rates each": Sweep((3, 3), 18),
    "2 arms, 5 unequal rates": Sweep((5, 5), 18, steep=True),
    "4 arms, 3 rates each": Sweep((3, 3, 3, 3), 18),
    "8 rates against 1": Sweep((1, 8), 18),
    "8 unequal rates against 1": Sweep((1, 8), 18, steep=True),
    "8 rates against 1, 4 arms": Sweep((1, 8, 8, 8), 18),
    "12 against 36 seeds": Sweep((2, 2), (12, 36)),
    "3 panels": Sweep((2, 2), 18, panels=3),
    "3 data seeds, pooled": Sweep((1, 1), 12, splits=3),
    "ties, loss and accuracy": Sweep((2, 2), 18, coarse=True),
    "10 % diverge": Sweep((2, 2), 18, diverging=0.1),
    "30 % diverge": Sweep((2, 2), 18, diverging=0.3),
    "20 % untrained": Sweep((2, 2), 18, untrained=0.2),
}
"""Sweeps of identical arms. Of 18 seeds, 6 are for tuning and 12 are reported."""

OTHER_RUNS = ("2 arms, 3 rates each", "2 arms, 5 unequal rates", "8 rates against 1")
"""Sweeps of ``IDENTICAL`` that are also simulated with skewed and heavy-tailed noise."""


def identical(size: int, generator: np.random.Generator) -> Tables:
    """Estimate false-positive rates for identical arms: many designs, each scope, and the first look."""
    table: Table = {}
    for title, sweep in IDENTICAL.items():
        row = table.setdefault(title, {})
        for scope in Scope:
            if scope != Scope.SPLIT or not (sweep.steep and len(set(sweep.rates)) > 1):
                row[f"scope {scope}"] = declared_rate(scoped(sweep, scope), size, generator)
        row["draw, first look"] = declared_rate(sweep, size, generator, history=History)
    kinds: Table = {}
    for kind in ("skewed", "heavy-tailed"):
        for title in OTHER_RUNS:
            kinds.setdefault(kind, {})[title] = declared_rate(
                replace(IDENTICAL[title], kind=kind), size, generator
            )
    return {
        "identical arms: declared": table,
        "identical arms with other run distributions, scope draw: declared": kinds,
    }


def scoped(sweep: Sweep, scope: Scope) -> Sweep:
    """Return a sweep with another scope, and for splits without luck shared by validation and test.

    With splits, each replicate tunes its own rate. Shared luck would then favour arms with more rates, which
    have more chances to be lucky.
    """
    return replace(sweep, scope=scope, luck=0.0 if scope == Scope.SPLIT else sweep.luck)


def failures(size: int, generator: np.random.Generator) -> Tables:
    """Estimate how often equal shares of diverged or untrained runs are declared different."""
    table: Table = {}
    for share in (0.1, 0.3):
        for n in (12, 32):
            sweep = Sweep((1, 1), n, diverging=share / 2, untrained=share / 2)
            frame = sweep.frame()
            fractions = rates((sweep.fill(frame, generator) for _ in range(size)), failed_more, generator)
            table.setdefault(f"{100 * share:.0f} %", {})[f"n = {n}"] = fractions["declared"]
    return {"equal shares of diverged or untrained runs: shares declared different": table}


def failed_more(analysis: Analysis) -> dict[str, float]:
    """Return 1 under ``declared`` if the shares of diverged or untrained runs are declared different, else 0."""
    return {"declared": bool((analysis.comparisons["failure_p_adjusted"] <= ALPHA).any())}


def interactions(size: int, generator: np.random.Generator) -> Tables:
    """Estimate how often an effect of 1 sd, equal in three panels, is declared to differ between them."""
    table: Table = {}
    for kind, (draw, sd) in KINDS.items():
        for n in (12, 32):
            sweeps = map(pair, draw(generator, (size, 3, n)) / sd + 1.0, generator.normal(size=(size, 3, n)))
            table.setdefault(kind, {})[f"n = {n}"] = rates(sweeps, changed, generator)["changed"]
    return {"the same effect of 1 sd in 3 panels: declared to change": table}


def changed(analysis: Analysis) -> dict[str, float]:
    """Return 1 under ``changed`` if an effect is declared to differ between panels, else 0."""
    return {"changed": bool((analysis.interactions["p_adjusted"] <= ALPHA).any())}
