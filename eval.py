"""Entry script: evaluate checkpoints of trained runs, without training; see ``python eval.py --help``."""

import sys
from pathlib import Path

from normlab.cli import run_cli
from normlab.evaluation.command import evaluate


def main() -> None:
    """Evaluate the runs that the command line names, and write their metrics."""
    evaluate(sys.argv[1:], Path(__file__).parent / "conf")


if __name__ == "__main__":
    run_cli(main)
