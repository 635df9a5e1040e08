"""What the statistics of a sweep do on runs whose truth is known: coverage, false declarations, and power.

Runs are normal, skewed (log-normal), heavy-tailed (Student's t with 3 degrees of freedom), or normal of which one
in ten diverges. Runs of one seed are correlated (0.5 before they are made skewed or heavy-tailed). Sweeps go the
whole way that those of trained nets go, from their design to what is declared.

    python benchmarks/simulations.py [--simulations 4000] [--seed 0] [--json] [--tests NAME ...]

Sweeps are simulated half as often as intervals. With ``--tests`` the tests for the next verdicts are simulated
instead, see ``verdict_simulations.py``.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import integrate, special, stats
from verdict_simulations import SIMULATIONS, simulate_tests

from normlab.analysis.comparing import BETTER, WORSE
from normlab.analysis.design import design_of
from normlab.analysis.estimates import Estimate, difference, improvement, mean, ratio, share
from normlab.analysis.findings import find
from normlab.analysis.planning import ALPHA, ENOUGH, detectable
from normlab.analysis.resampling import Draws
from normlab.analysis.significance import holm, sign_flip
from normlab.analysis.times import time_ratio

Numbers = NDArray[np.float64]
Table = dict[str, dict[str, float]]
"""Rows of columns."""
STARTED = time.perf_counter()
SAME = 0.5
"""How far the runs of one seed are correlated, as normal numbers."""
FEW, MANY = (2, 3, 4, 5, 6, 7), (8, 32)
SHIFT, SPREAD, STEPS, EVERY = 0.5, 0.4, 304.0, 10.0
"""How far arms are apart when intervals are simulated; of times, their spread and middle, and the steps between
evaluations."""
GRID = [f"{0.001 * 2**k:g}" for k in range(8)]
COSTS = {"flat": np.zeros(8), "steep": 0.4 * np.abs(np.arange(8) - 2.0)}
"""What each learning rate adds to a loss, in standard deviations of a paired difference."""
NO_CURVES = pd.DataFrame({"run": [], "step": [], "seconds": [], "value": []})


@dataclass(frozen=True)
class Runs:
    """A distribution of runs: its quantiles and probabilities, as functions of and to standard normal numbers."""

    of: Callable[[Numbers], Numbers]
    back: Callable[[Numbers], Numbers]

    def draw(self, generator: np.random.Generator, size: tuple[int, ...]) -> Numbers:
        """Return runs whose last axis are seeds, ``size``; those of one seed are correlated."""
        shared = generator.normal(size=size[-1])
        return self.of(np.sqrt(SAME) * shared + np.sqrt(1 - SAME) * generator.normal(size=size))

    def iqm(self) -> float:
        """Return the true interquartile mean, ``2 ∫ q(u) du`` between the quartiles."""
        return 2 * integrate.quad(lambda u: self.of(special.ndtri(u)), 0.25, 0.75)[0]

    def improvement(self) -> float:
        """Return the probability that a run is lower than another that is ``SHIFT`` higher, ties one half."""
        ends = float(special.ndtr(self.back(np.array(1e300))))

        def wins(u: float) -> float:
            return 1.0 - float(special.ndtr(self.back(self.of(special.ndtri(u)) - SHIFT)))

        return integrate.quad(wins, 0.0, ends, limit=200)[0] + (1 - ends) ** 2 / 2

    @cached_property
    def deviation(self) -> float:
        """The standard deviation of the difference of two runs of one seed, from 4 million pairs."""
        a, b = self.draw(np.random.default_rng(0), (2, 4_000_000))
        both = np.isfinite(a) & np.isfinite(b)
        return float((a[both] - b[both]).std())


def diverging(z: Numbers) -> Numbers:
    """Return normal runs of which the highest tenth diverged."""
    return np.where(z < special.ndtri(0.9), z, np.inf)


KINDS = {
    "normal": Runs(lambda z: z, lambda x: x),
    "skewed": Runs(np.exp, lambda x: np.log(np.maximum(x, 1e-300))),
    "heavy-tailed": Runs(
        lambda z: special.stdtrit(3, special.ndtr(z)), lambda x: special.ndtri(special.stdtr(3, x))
    ),
    "diverging": Runs(diverging, lambda x: np.minimum(x, special.ndtri(0.9))),
}
PLAIN = ("normal", "skewed", "heavy-tailed")


def on_grid(times: Numbers) -> Numbers:
    """Return at which evaluation a time is noticed."""
    return np.ceil(times / EVERY) * EVERY


def coverage(kind: Runs, n: int, simulations: int, generator: np.random.Generator) -> dict[str, float]:
    """Return in which share of simulations each interval holds the truth, of those that give one."""
    middle = float(kind.of(np.array(0.0)))
    times = [float(on_grid(STEPS * np.exp(SPREAD * (middle - shift)))) for shift in (SHIFT, 0.0)]
    truth = {"interquartile mean": kind.iqm(), "paired difference": -SHIFT}
    if n in MANY:
        truth |= {"paired ratio": float(np.exp(-SPREAD * SHIFT)), "improvement": kind.improvement()}
        truth["ratio of median times"] = times[0] / times[1]
    inside: dict[str, list[bool]] = {name: [] for name in truth}
    for _ in range(simulations):
        draws = Draws(generator)
        a, b = kind.draw(generator, (2, n)) - np.array([[SHIFT], [0.0]])
        found = {"interquartile mean": mean(b, draws), "paired difference": difference(a, b, True, draws)}
        if n in MANY:
            found |= others(a, b, draws)
        for name, estimate in found.items():
            if not np.isnan(estimate.low):
                tiny = 1e-9 * abs(truth[name])
                inside[name].append(estimate.low - tiny <= truth[name] <= estimate.high + tiny)
    return {name: float(np.mean(held)) for name, held in inside.items()}


def others(a: Numbers, b: Numbers, draws: Draws) -> dict[str, Estimate]:
    """Return the estimates that are simulated where there are seeds enough for a verdict."""
    ours, theirs = np.exp(SPREAD * a), np.exp(SPREAD * b)
    return {
        "paired ratio": ratio(ours, theirs, True, draws),
        "improvement": improvement(a, b, True, draws),
        "ratio of median times": time_ratio(on_grid(STEPS * ours), on_grid(STEPS * theirs), True, draws),
    }


def shares(n: int) -> dict[str, float]:
    """Return how often Wilson's interval holds a share that is reached by n seeds, exactly."""
    held = {}
    for truth in (0.5, 0.7, 0.9):
        ends = [share(count, n) for count in range(n + 1)]
        inside = [count for count, end in enumerate(ends) if end.low <= truth <= end.high]
        held[f"{100 * truth:.0f} %"] = float(stats.binom.pmf(inside, n, truth).sum())
    return held


@dataclass(frozen=True)
class Sweep:
    """A simulated sweep: how many learning rates each arm has, the first being the baseline, and its seeds."""

    rates: tuple[int, ...]
    seeds: int

    def frame(self, best: int) -> pd.DataFrame:
        """Return its runs without values; a single learning rate is the best one."""
        given = [GRID[best : best + 1] if count == 1 else GRID[:count] for count in self.rates]
        rows = [(f"arm{arm}", rate) for arm, rates in enumerate(given) for rate in rates]
        runs = pd.DataFrame(
            [(*row, seed, "finished") for row in rows for seed in range(self.seeds)],
            columns=["model", "optimizer.lr", "seed", "status"],
        )
        return runs.astype({"seed": "Int64"})


def declared(
    kind: Runs, sweep: Sweep, cost: Numbers, shift: float, simulations: int, generator: np.random.Generator
) -> dict[str, float]:
    """Return in which share of sweeps any difference is declared, and would be without regard to rivals.

    Args:
        kind: what runs are like.
        sweep: its design.
        cost, shift: what each learning rate adds, and every arm but the baseline, in standard deviations of the
            paired differences.
        simulations: how many sweeps.
        generator: what is drawn from.
    """
    frame, unit = sweep.frame(int(cost.argmin())), kind.deviation
    shape = (len(frame) // sweep.seeds, sweep.seeds)
    added = frame["optimizer.lr"].map(dict(zip(GRID, cost, strict=True))).to_numpy(dtype=float)
    added = unit * (added + shift * (frame["model"] != "arm0").to_numpy(dtype=float))
    keys = [key for key in ("model", "optimizer.lr") if frame[key].nunique() > 1]
    found, alone = [], []
    for _ in range(simulations):
        values = kind.draw(generator, shape).ravel() + added
        runs = frame.assign(value=values, status=np.where(np.isinf(values), "diverged", "finished"))
        design = design_of(runs, keys, "loss", "min", baseline="arm0")
        rows = find(runs, NO_CURVES, design, generator, resamples=0).comparisons
        found.append(bool(rows["verdict"].isin([BETTER, WORSE]).any() or rows["declared"].any()))
        alone.append(bool((holm(rows["p"].to_numpy()) <= ALPHA).any()))
    return {"declared": float(np.mean(found)), "without rivals": float(np.mean(alone))}


def planned(n: int, simulations: int, generator: np.random.Generator) -> dict[str, float]:
    """Return what can be found with n seeds, in standard deviations of the differences, and how often it is."""
    difference = detectable(n)
    values = generator.normal(size=(simulations, n)) + difference
    power = float(np.mean([sign_flip(row, generator) <= ALPHA for row in values]))
    return {"difference": difference, "power": power}


TUNED, UNTUNED = 3 * ENOUGH // 2, ENOUGH
SWEEPS = {
    "2 arms": Sweep((8, 8), TUNED),
    "4 arms": Sweep((8, 8, 8, 8), TUNED),
    "8 rates against 1": Sweep((1, 8), TUNED),
    "8 against 1, 4 arms": Sweep((1, 8, 8, 8), TUNED),
}
POWER = {"one learning rate": Sweep((1, 1), UNTUNED), "best of 8": Sweep((8, 8), TUNED)}


def simulate(simulations: int, seed: int) -> dict[str, Table]:
    """Return all tables, by their titles."""
    streams = iter(np.random.default_rng(seed).spawn(1000))
    return {
        **intervals(simulations, streams),
        "coverage of the 95 % interval: share": {f"n = {n}": shares(n) for n in MANY},
        **identical(simulations // 2, streams),
        f"power at 1.5 standard deviations, {ENOUGH} report seeds": powers(simulations // 2, streams),
        "the difference found with 80 % power, and how often it is": {
            f"n = {n}": planned(n, simulations // 2, next(streams)) for n in (8, 10, 16, 32)
        },
    }


def intervals(simulations: int, streams: Iterator[np.random.Generator]) -> dict[str, Table]:
    """Return tables of the coverage of each interval."""
    tables: dict[str, Table] = {}
    for n, name in [*product(FEW, PLAIN), *product(MANY, KINDS)]:
        for statistic, held in coverage(KINDS[name], n, simulations, next(streams)).items():
            title = f"coverage of the 95 % interval: {statistic}"
            tables.setdefault(title, {}).setdefault(name, {})[f"n = {n}"] = held
        said(f"coverage, n = {n}, {name}")
    return tables


def identical(simulations: int, streams: Iterator[np.random.Generator]) -> dict[str, Table]:
    """Return tables of how often a difference is declared of arms that are the same."""
    tables: dict[str, Table] = {}
    for slope, title, name in [*product(COSTS, SWEEPS, PLAIN), ("flat", "2 arms", "diverging")]:
        found = declared(KINDS[name], SWEEPS[title], COSTS[slope], 0.0, simulations, next(streams))
        for of, share_of_sweeps in found.items():
            about = f"identical arms, learning rates {slope}: {of}"
            tables.setdefault(about, {}).setdefault(name, {})[title] = share_of_sweeps
        said(f"identical arms, {slope}, {title}, {name}")
    return tables


def powers(simulations: int, streams: Iterator[np.random.Generator]) -> Table:
    """Return how often a difference of 1.5 standard deviations is declared."""
    table: Table = {}
    for title, name in product(POWER, PLAIN):
        found = declared(KINDS[name], POWER[title], COSTS["flat"], 1.5, simulations, next(streams))
        table.setdefault(name, {})[title] = found["declared"]
        said(f"power, {title}, {name}")
    return table


def said(progress: str) -> None:
    """Print how far it is, beside the tables."""
    print(f"{time.perf_counter() - STARTED:6.0f} s  {progress}", file=sys.stderr, flush=True)


def printed(title: str, table: Table) -> str:
    """Return a table as text: shares in percent, differences as they are."""
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    widths = [max(len(column), 8) + 2 for column in columns]
    margin = max(16, *(len(name) + 1 for name in table))
    lines = [title, " " * margin + "".join(f"{c:>{w}}" for c, w in zip(columns, widths, strict=True))]
    for name, row in table.items():
        cells = [cell(column, row.get(column)) for column in columns]
        lines.append(f"{name:{margin}}" + "".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True)))
    return "\n".join(lines)


def cell(column: str, value: float | None) -> str:
    """Return what stands in a cell."""
    if value is None:
        return "-"
    if column.startswith("pairs"):
        return f"{value:.0f}"
    return f"{value:.3f}" if column.startswith("difference") else f"{100 * value:.2f} %"


def main() -> None:
    """Simulate, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--tests", nargs="+", choices=list(SIMULATIONS), help="simulate these instead")
    arguments = parser.parse_args()
    if arguments.tests:
        tables = simulate_tests(arguments.tests, arguments.simulations, arguments.seed)
    else:
        tables = simulate(arguments.simulations, arguments.seed)
    if arguments.json:
        print(json.dumps(tables))
        return
    print("\n\n".join(printed(title, table) for title, table in tables.items()))


if __name__ == "__main__":
    main()
