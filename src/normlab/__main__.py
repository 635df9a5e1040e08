"""The command ``normlab``, which has a subcommand for each task: :func:`main`."""

import logging
import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from normlab.interrupts import interrupts

COMMANDS = {
    "train": ("normlab.train", "train one run, or a sweep with -m; same as python train.py in a clone"),
    "report": ("normlab.report.__main__", "write the report of one sweep, or of several together"),
    "status": ("normlab.status", "show the progress of a sweep"),
    "eval": ("normlab.evaluation.command", "evaluate checkpoints of trained runs"),
    "claims": ("normlab.claims.__main__", "test published claims and write a page of the answers"),
    "new": ("normlab.project", "write a small project of your own into a new folder"),
}
"""The module of each subcommand, which has a function ``main()``, and its description."""
COMPLETION = ("-sc", "--shell-completion")
LINE = "COMP_LINE"
"""Environment variable with the line that the shell completes."""


def main() -> None:
    """Run the subcommand that the command line names."""
    interrupts.record_from_start()  # before the other imports, in which a Ctrl-C could be lost
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
    elif words[0] == "--version":
        import normlab

        print(f"normlab {normlab.__version__}")
    elif words[0] in COMPLETION:
        complete(words)
    elif words[0] in COMMANDS:
        sys.path.insert(0, str(Path.cwd()))  # as python -m does, for the modules of a project
        run(words[0], words[1:])
    else:
        from normlab.errors import nearest

        meant, names = nearest(words[0], COMMANDS), ", ".join(COMMANDS)
        sys.exit(f"error: {words[0]}: no such command; did you mean {meant}? There are {names}")


def run(command: str, words: list[str]) -> None:
    """Call the function of a subcommand with its arguments in ``sys.argv``."""
    sys.argv = [f"normlab {command}", *words]
    logging.raiseExceptions = False  # with a closed pipe, as in `normlab claims --list | head`
    start: Callable[[], None] = import_module(COMMANDS[command][0]).main
    try:
        start()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes stdout at exit
        sys.exit(1)


def complete(words: list[str]) -> None:
    """Answer the shell's questions, which Hydra asks with ``normlab -sc``: subcommands, and overrides of train."""
    line = os.environ.get(LINE, "").split(maxsplit=2)
    if words[-1].startswith("query=") and line[1:2] != ["train"]:
        print(" ".join(COMMANDS))
        return
    os.environ[LINE] = " ".join(["normlab", *line[2:]])
    run("train", words)


def usage() -> str:
    """Return the help text."""
    lines = [f"  normlab {name:8} {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "normlab compares normalization layers in controlled training experiments.",
            "",
            *lines,
            "",
            "normlab COMMAND --help shows the options of a command. The folder conf/ in the current folder adds",
            "options of your own: conf/model/mine.yaml is model=mine.",
        ]
    )


if __name__ == "__main__":
    main()
