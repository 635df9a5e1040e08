"""Simulate sweeps, tests and intervals with known truth; print error rates, power and coverage.

    python benchmarks/simulations.py [--only NAME ...] [--share 1.0] [--processes 2] [--seed 0] [--write]

Most simulations analyze whole sweeps, from the runs to the verdict. ``SIMULATIONS`` lists them with their sizes.
``--write`` inserts the tables into docs/statistics.md.
"""

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import array_simulations
import numpy as np
import power_simulations
import split_simulations
import sweep_simulations
from interval_simulations import descriptions
from simulation_tables import Simulation, Tables, printed, written

PAGE = Path(__file__).parents[1] / "docs" / "statistics.md"
SIMULATIONS: dict[str, tuple[Simulation, int]] = {
    "epochs": (sweep_simulations.epochs, 1000),
    "replicates": (sweep_simulations.replicates, 1000),
    "splits": (split_simulations.splits, 1000),
    "settings": (split_simulations.settings, 1000),
    "shapes": (array_simulations.shapes, 4000),
    "sweep_shapes": (sweep_simulations.shapes, 1000),
    "looks": (array_simulations.looks, 4000),
    "sweep_looks": (sweep_simulations.looks, 400),
    "identical": (sweep_simulations.identical, 500),
    "power": (power_simulations.power, 500),
    "plan": (array_simulations.power, 4000),
    "coverage": (array_simulations.coverage, 2000),
    "margins": (power_simulations.margins, 500),
    "equivalence": (array_simulations.equivalent, 4000),
    "interactions": (sweep_simulations.interactions, 500),
    "failures": (sweep_simulations.failures, 1000),
    "descriptions": (descriptions, 4000),
}
"""Each simulation with its number of repetitions."""


def simulate(name: str, share: float, seed: int) -> Tables:
    """Run a simulation with its own random generator, and return its tables.

    Args:
        name: a key of ``SIMULATIONS``.
        share: fraction of the repetitions to run.
        seed: combined with the position of the name, seeds the generator.
    """
    simulation, size = SIMULATIONS[name]
    generator = np.random.default_rng([seed, list(SIMULATIONS).index(name)])
    return simulation(max(1, round(size * share)), generator)


def main() -> None:
    """Run the simulations, print their tables and, with ``--write``, insert them into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SIMULATIONS), default=list(SIMULATIONS))
    parser.add_argument("--share", type=float, default=1.0, help="fraction of the repetitions")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help=f"write the tables into {PAGE.name}")
    arguments = parser.parse_args()
    started = time.perf_counter()
    with ProcessPoolExecutor(arguments.processes) as pool:
        tasks = {pool.submit(simulate, name, arguments.share, arguments.seed): name for name in arguments.only}
        for task in as_completed(tasks):
            name, tables = tasks[task], task.result()
            print(f"{time.perf_counter() - started:6.0f} s  {name}", file=sys.stderr, flush=True)
            print("\n\n".join(printed(title, table) for title, table in tables.items()), end="\n\n", flush=True)
            if arguments.write:
                PAGE.write_text(written(PAGE.read_text(), name, tables))


if __name__ == "__main__":
    main()
