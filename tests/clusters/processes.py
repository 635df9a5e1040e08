"""Processes of a cluster that a test starts: private ports, daemons that end with the test process, waiting."""

import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

PR_SET_PDEATHSIG = 1


def free_ports(count: int) -> list[int]:
    """Return TCP ports that no process uses."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def start_daemon(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen:
    """Start a process in a session of its own that gets SIGTERM if this one dies, its output going to ``log``."""
    libc = ctypes.CDLL(None)

    def end_with_parent() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )


def stop(daemon: subprocess.Popen, seconds: float = 5) -> None:
    """End a daemon with SIGTERM, and with SIGKILL if it has not ended in time."""
    daemon.terminate()
    try:
        daemon.wait(seconds)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def kill_processes(mark: str) -> list[int]:
    """Kill the processes that have ``mark`` in their command line or environment, and return their ids."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        process = int(folder.name)
        with suppress(OSError):  # it has ended, or is another user's
            text = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
            if mark.encode() in text and process != os.getpid():
                os.kill(process, signal.SIGKILL)
                found.append(process)
    return found


def wait_until(condition: Callable[[], object], seconds: float, what: str, interval: float = 0.05) -> None:
    """Wait until ``condition()`` is true.

    Raises:
        TimeoutError: after ``seconds``.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(interval)
