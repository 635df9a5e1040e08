"""Ctrl-C and the signals with which a cluster ends a job, none of which is lost: :data:`interrupts`.

Python's own handler raises KeyboardInterrupt wherever the code is. Within a callback of C code, of a weak
reference or of the garbage collector the exception is discarded: every import ends with such a callback, and
torch goes on without NumPy if it comes while torch imports NumPy. Elsewhere it turns into another error, such as
that of a module imported in part. Each Ctrl-C is therefore also remembered until it is acted on.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

PREEMPTIONS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))
"""Signals that ask a job to end soon; SLURM sends them before a time limit or when others need the node."""


class Preempted(BaseException):
    """Ends a training that a signal of a cluster asked to stop; like KeyboardInterrupt, it is no Exception.

    Attributes:
        signum: number of the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = int(signum)

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.signum).name}"


class Interrupts:
    """Signals that this process has received and not acted on yet; :meth:`check` acts on them.

    There is one object per process, :data:`interrupts`.

    Attributes:
        pressed: whether Ctrl-C was pressed.
        preempted: the first signal of a cluster, 0 if there was none.
        recording: whether signals are only recorded, which is so while a training runs and before
            :meth:`remembered`.
    """

    def __init__(self) -> None:
        self.pressed, self.preempted, self.recording = False, 0, False

    def check(self) -> None:
        """Raise KeyboardInterrupt or :class:`Preempted` if a signal was received and has not been acted on.

        Call it wherever the work may stop: between steps, dry runs and populations.
        """
        if self.pressed:
            raise KeyboardInterrupt
        if self.preempted:
            raise Preempted(self.preempted)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Record a signal; raise KeyboardInterrupt at a second Ctrl-C, and at the first one outside a training."""
        if number != signal.SIGINT:
            self.preempted = self.preempted or number
            return
        again, self.pressed = self.pressed, True
        if again or not self.recording:
            raise KeyboardInterrupt

    def record_from_start(self) -> None:
        """Record Ctrl-C while a script imports its modules, until it calls :meth:`remembered`."""
        self.recording = bool(self.install(signal.SIGINT))

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Context manager around a training: records signals, so that it stops at the next :meth:`check`.

        A second Ctrl-C is raised at once, in case a step takes long. On entry and on exit, signals that were not
        acted on are raised. A signal that is ignored, as Ctrl-C in a worker process, stays ignored. Outside the
        main thread nothing is recorded, since Python allows no handlers there.
        """
        self.check()
        if self.recording or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = self.install(signal.SIGINT, *PREEMPTIONS)
        self.recording, acted_on = True, False
        try:
            yield
        except (KeyboardInterrupt, Preempted):
            acted_on = True
            raise
        finally:
            # Lightning sets handlers, too: one ignores the second Ctrl-C.
            for number, handler in before.items():
                signal.signal(number, handler)
            self.recording = False
            pending = Interrupts()
            pending.pressed, pending.preempted = self.pressed, self.preempted
            self.pressed, self.preempted = False, 0
            if not acted_on:
                pending.check()

    @contextmanager
    def remembered(self) -> Iterator[None]:
        """Context manager around a whole command: Ctrl-C is raised at once, and again if the exception was lost.

        An error while Ctrl-C is not acted on is its consequence, such as that of a module imported in part, and
        becomes KeyboardInterrupt.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self.recording = False
        before, hook = self.install(signal.SIGINT), sys.unraisablehook
        sys.unraisablehook = self.hide_discarded
        try:
            self.check()
            try:
                yield
            except Exception:
                self.check()
                raise
            self.check()
        finally:
            sys.unraisablehook = hook
            for number, handler in before.items():
                signal.signal(number, handler)
            self.pressed = False

    def install(self, *numbers: int) -> dict[int, Any]:
        """Handle these signals; return the handlers before by number, without those that are left in place.

        Left in place are signals that are ignored or handled in C, and Ctrl-C where it kills the process.
        """
        kept: dict[int, tuple[Any, ...]] = {signal.SIGINT: (None, signal.SIG_IGN, signal.SIG_DFL)}
        handlers = {number: signal.getsignal(number) for number in numbers}
        before = {
            number: handler
            for number, handler in handlers.items()
            if handler not in kept.get(number, (None, signal.SIG_IGN))
        }
        for number in before:
            signal.signal(number, self.handle)
        return before

    def hide_discarded(self, event: "sys.UnraisableHookArgs") -> None:
        """Print an exception that Python discards, except a KeyboardInterrupt that is raised again."""
        if not (self.pressed and issubclass(event.exc_type, KeyboardInterrupt)):
            sys.__unraisablehook__(event)


interrupts = Interrupts()
"""The signals of this process."""


@contextmanager
def blocked_ctrl_c() -> Iterator[None]:
    """Context manager in which processes are started that Ctrl-C in a terminal does not reach.

    They inherit that SIGINT is blocked. Ignoring it meanwhile would lose a Ctrl-C of this process; so it is
    handled at the latest on exit.
    """
    if os.name == "nt":
        yield
        return
    from multiprocessing import resource_tracker  # slow, and rarely needed

    resource_tracker.ensure_running()  # it unblocks SIGINT after its own start, which takes place with the first
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
