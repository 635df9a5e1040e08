"""Entry script: evaluate checkpoints of trained runs, without training; see ``python eval.py --help``."""

if __name__ == "__main__":  # before the other imports, in which a Ctrl-C could be lost
    from normlab.interrupts import interrupts

    interrupts.record_from_start()

from pathlib import Path

from normlab.evaluation.command import main

if __name__ == "__main__":
    main(Path(__file__).parent / "conf")
