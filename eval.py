"""Entry script: evaluate checkpoints of trained runs, without training; see ``python eval.py --help``."""

if __name__ == "__main__":  # before the other imports, in which a Ctrl-C could be lost
    from normlab.interrupts import interrupts

    interrupts.record_from_start()

import sys
from pathlib import Path

from normlab.cli import run_cli
from normlab.evaluation.command import evaluate


def main() -> None:
    """Evaluate the runs that the command line names, and write their metrics."""
    evaluate(sys.argv[1:], Path(__file__).parent / "conf")


if __name__ == "__main__":
    run_cli(main)
