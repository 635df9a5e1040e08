"""Handles Ctrl-C during a training, which stops between two optimizer steps; see :class:`Interrupts`."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Interrupts:
    """Records Ctrl-C while a training runs, so that it stops at the next safe point.

    Python raises KeyboardInterrupt at any point of the code. Within a callback that compiled or C++ code calls,
    such as a guard of a compiled step, the exception is discarded and the Ctrl-C is lost. The handler therefore
    only sets a flag, and the training calls :meth:`check` between steps. A second Ctrl-C is raised at once, in
    case a step takes long.
    """

    def __init__(self) -> None:
        self.was_pressed = False

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed since the training began."""
        if self.was_pressed:
            raise KeyboardInterrupt

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Set the flag at the first Ctrl-C; raise KeyboardInterrupt at the second."""
        if self.was_pressed:
            raise KeyboardInterrupt
        self.was_pressed = True

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Context manager that records Ctrl-C, and restores the previous handler on exit.

        A Ctrl-C after the last :meth:`check` is raised on exit. Where Ctrl-C is ignored, as in a worker process,
        it stays ignored. Outside the main thread nothing is recorded, since Python allows no handlers there.
        """
        before: Any = signal.getsignal(signal.SIGINT)
        in_main_thread = threading.current_thread() is threading.main_thread()
        if not in_main_thread or before in (None, signal.SIG_IGN, signal.SIG_DFL):
            yield
            return
        self.was_pressed = False
        signal.signal(signal.SIGINT, self.handle)
        try:
            yield
        finally:
            # Lightning sets a handler, too, which ignores the second Ctrl-C.
            signal.signal(signal.SIGINT, before)
        self.check()
