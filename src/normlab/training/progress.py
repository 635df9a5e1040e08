"""The terminal of a training: the progress bar, :class:`Progress`, and log lines, :class:`Console`."""

import importlib.util
import logging
import sys
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

log = logging.getLogger("normlab")
BAR_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
SWEEP_BAR_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}{postfix}]"


class Progress:
    """Shows a bar over epochs on a terminal and in a notebook, and nothing where stderr is piped.

    Args:
        label: text before the bar.
        epochs: total over all runs.
        runs: number of runs.
        shown: whether the bar is shown.

    Attributes:
        population_label: text after the bar, such as ``population 1 of 3``.
        epochs: number of epochs that the current population has trained, over its runs.
    """

    epochs = 0

    def __init__(self, label: str, epochs: int, runs: int = 1, shown: bool = True) -> None:
        self.population_label = ""
        self.warned: set[str] = set()
        notebook = in_notebook()
        self.bar: Any = (notebook_bar() if notebook else tqdm)(
            desc=label,
            total=epochs,
            unit="epoch",
            leave=False,
            disable=not (shown and (notebook or sys.stderr.isatty())),
            bar_format=BAR_FORMAT if runs == 1 else SWEEP_BAR_FORMAT,
        )

    def __enter__(self) -> Self:
        """Show the bar."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the bar."""
        self.bar.close()

    def advance(self, epochs: int, status: str = "") -> None:
        """Advance by epochs summed over runs, and show a status text after the bar."""
        self.epochs += epochs
        if self.bar.update(epochs):
            self.bar.set_postfix_str(", ".join(filter(None, (self.population_label, status))), refresh=False)

    def check(self) -> None:
        """Raise KeyboardInterrupt if another process stops the training; nothing stops one in this process."""

    def warn_once(self, notice: str) -> None:
        """Log a warning, unless it was logged for an earlier population."""
        if notice not in self.warned:
            self.warned.add(notice)
            log.warning(notice)

    def advance_to(self, epochs: int) -> None:
        """Advance to a total, which also counts epochs of runs that were skipped or stopped early."""
        self.bar.update(epochs - self.bar.n)


class WorkerProgress(Progress):
    """Reports the progress of a population in a worker process to the main process, which shows the bar.

    Args:
        done: shared array with the epochs done of each population.
        index: of this population in ``done``.
        stop: shared event that the main process sets on Ctrl-C.
    """

    def __init__(self, done: Any, index: int, stop: Any) -> None:
        self.done, self.index, self.stop = done, index, stop
        self.warned = set()

    def check(self) -> None:
        """Raise KeyboardInterrupt if the main process has set ``stop``."""
        if self.stop.is_set():
            raise KeyboardInterrupt

    def advance(self, epochs: int, status: str = "") -> None:
        """Count epochs; raise KeyboardInterrupt if the main process has set ``stop``."""
        self.check()
        self.epochs += epochs
        self.done[self.index] += epochs


def in_notebook() -> bool:
    """Return True in the kernel of a Jupyter notebook."""
    return (
        "ipykernel" in sys.modules and type(sys.modules["IPython"].get_ipython()).__name__ == "ZMQInteractiveShell"
    )


def notebook_bar() -> Any:
    """Return tqdm's class for notebooks; without ipywidgets, which it needs, that for terminals."""
    if importlib.util.find_spec("ipywidgets") is None:
        return tqdm
    from tqdm.notebook import tqdm as widget

    return widget


def rounded_time(seconds: float) -> str:
    """Return a duration in seconds, at least 1, in minutes, hours or days, rounded to one or two digits.

    >>> [rounded_time(seconds) for seconds in (4.2, 95, 8000, 2e5)]
    ['4 s', '2 min', '2.2 h', '2.3 days']
    """
    for limit, unit, name in ((90, 1, "s"), (90 * 60, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            value = max(1.0, seconds) / unit
            return f"{value:.1f} h" if name == "h" else f"{value:.0f} {name}"
    return f"{seconds / 86400:.1f} days"


class Console(logging.StreamHandler):
    """Logging handler that writes lines above the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Clear the bar, write the line, and redraw the bar."""
        with tqdm.external_write_mode():
            super().emit(record)
