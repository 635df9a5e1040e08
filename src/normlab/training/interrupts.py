"""Ctrl-C during a training: the training stops between two optimizer steps."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Interrupts:
    """Record Ctrl-C while a training runs, for the training to stop at the next safe point.

    Python raises KeyboardInterrupt wherever it happens to be. Where that is a callback that compiled or C++ code
    calls, such as a guard of a compiled step, the exception is discarded and the Ctrl-C is lost. So the handler
    only sets a flag, and the training calls :meth:`check` between steps. A second Ctrl-C is raised at once, for
    a step that takes long.
    """

    def __init__(self) -> None:
        self.came = False

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C came since the training began."""
        if self.came:
            raise KeyboardInterrupt

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Set the flag at the first Ctrl-C, and raise the next one."""
        if self.came:
            raise KeyboardInterrupt
        self.came = True

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Context manager in which Ctrl-C is recorded; afterwards it acts as before.

        One that came after the last :meth:`check` is raised at the end.
        Where Ctrl-C is ignored, as in a worker process, it stays ignored. Python allows handlers in the main
        thread alone.
        """
        before: Any = signal.getsignal(signal.SIGINT)
        in_main_thread = threading.current_thread() is threading.main_thread()
        if not in_main_thread or before in (None, signal.SIG_IGN, signal.SIG_DFL):
            yield
            return
        self.came = False
        signal.signal(signal.SIGINT, self.handle)
        try:
            yield
        finally:
            # Lightning, too, sets a handler: after Ctrl-C it ignores the next one.
            signal.signal(signal.SIGINT, before)
        self.check()
