"""One progress bar, of a run or of all the runs of a sweep."""

import logging
import sys
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

log = logging.getLogger("normlab")
BAR_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
OF_MANY = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}{postfix}]"


class Progress:
    """A bar over epochs on a terminal, and nothing where the output is piped.

    Args:
        label: whose progress it is.
        epochs: of all runs together.
        runs: how many runs it is of.
    """

    def __init__(self, label: str, epochs: int, runs: int = 1) -> None:
        self.part = ""
        self.said: set[str] = set()
        self.bar: Any = tqdm(
            desc=label,
            total=epochs,
            unit="epoch",
            leave=False,
            disable=not sys.stderr.isatty(),
            bar_format=BAR_FORMAT if runs == 1 else OF_MANY,
        )

    def __enter__(self) -> Self:
        """Show the bar."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away."""
        self.bar.close()

    def advance(self, epochs: int, words: str = "") -> None:
        """Move on, and show words on how it goes."""
        if self.bar.update(epochs):
            self.bar.set_postfix_str(", ".join(filter(None, (self.part, words))), refresh=False)

    def tell(self, notice: str) -> None:
        """Say what a person should know, once and not again for each population."""
        if notice not in self.said:
            self.said.add(notice)
            log.warning(notice)

    def reach(self, epochs: int) -> None:
        """Move to where everything before has ended, also what was done already or has stopped early."""
        self.bar.update(epochs - self.bar.n)


class Remote(Progress):
    """The progress of a population in a process of its own: the bar, and Ctrl-C, are another's.

    Args:
        done: the epochs done of each population, an array that both processes have.
        place: of this population in it.
        stop: an event that the other sets on Ctrl-C.
    """

    def __init__(self, done: Any, place: int, stop: Any) -> None:
        self.done, self.place, self.stop = done, place, stop
        self.said = set()

    def advance(self, epochs: int, words: str = "") -> None:
        """Count the epochs, and stop if the other process says so."""
        if self.stop.is_set():
            raise KeyboardInterrupt
        self.done[self.place] += epochs


class Console(logging.StreamHandler):
    """Writes log lines above the bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line while the bar is away."""
        with tqdm.external_write_mode():
            super().emit(record)
