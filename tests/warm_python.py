"""Python processes that need not import torch: forked from a server that has imported it, :class:`WarmPython`.

Importing torch, Lightning and pandas takes three of the four seconds of a short sweep. Tests of several commands
start them here. normlab itself is imported by each process, and every process has its own environment, folder and
exit. Tests of the start of a process (Ctrl-C during imports, installed packages, what is imported) start Python.
"""

import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any, Self

PRELOADED = (
    *("torch", "torch.func", "torch.utils.tensorboard", "pytorch_lightning", "torchmetrics", "hydra", "pandas"),
    *("scipy.stats", "sklearn.datasets", "sklearn.preprocessing", "jinja2", "matplotlib.backends.backend_svg"),
)
"""Modules that the server imports; not those of normlab, which read the environment and the clock at import."""


class WarmProcess:
    """A process of the server, used as a ``subprocess.Popen`` with pipes.

    Attributes:
        args: the words after ``python``.
        pid: its process id.
        returncode: None until its end was noticed.
    """

    def __init__(self, args: Sequence[str], connection: socket.socket, output: tuple[Path, Path]) -> None:
        self.args, self.returncode = list(args), None
        self._connection, self._output = connection, output
        self._lines = connection.makefile("r")
        self.pid = int(self._lines.readline())

    def poll(self) -> int | None:
        """Return the exit code, None if the process runs."""
        if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
            self.returncode = int(self._lines.readline())
            self._lines.close()
            self._connection.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the process and return its exit code.

        Raises:
            subprocess.TimeoutExpired: if it runs for longer.
        """
        if self.returncode is None and not select.select([self._connection], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        code = self.poll()
        assert code is not None
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end of the process, and return what it wrote to stdout and stderr."""
        self.wait(timeout)
        out, err = (path.read_text() for path in self._output)
        return out, err

    def send_signal(self, number: int) -> None:
        """Send a signal to the process, unless its end was noticed."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process."""
        self.send_signal(signal.SIGKILL)


class WarmPython:
    """A server that forks Python processes.

    Args:
        folder: for the output of processes; its path must be short, as it holds a Unix socket.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._numbers = folder, count()

    def __enter__(self) -> Self:
        # The server ends when its stdin does, as it does if this process is killed.
        command = [sys.executable, __file__, str(self.folder / "socket")]
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE)
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.kill()
        self._server.communicate()

    def start(self, words: Sequence[object], cwd: Path, env: Mapping[str, str] | None = None) -> WarmProcess:
        """Start ``python script …`` or ``python -m module …`` in a session of its own, without stdin.

        Args:
            words: the words after ``python``.
            cwd: its folder.
            env: its environment, by default that of this process.
        """
        number = next(self._numbers)
        output = (self.folder / f"{number}.out", self.folder / f"{number}.err")
        args = [str(word) for word in words]
        request = {
            "words": args,
            "cwd": str(cwd),
            "env": dict(os.environ if env is None else env),
            "output": [str(path) for path in output],
        }
        connection = self._connect()
        connection.sendall(json.dumps(request).encode() + b"\n")
        return WarmProcess(args, connection, output)

    def run(
        self, words: Sequence[object], cwd: Path, env: Mapping[str, str] | None = None, timeout: float = 300
    ) -> subprocess.CompletedProcess:
        """Run ``python script …`` or ``python -m module …`` to its end, as ``subprocess.run`` does."""
        process = self.start(words, cwd, env)
        try:
            out, err = process.communicate(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return subprocess.CompletedProcess(process.args, process.wait(), out, err)

    def _connect(self) -> socket.socket:
        path = self.folder / "socket"
        while not path.exists():
            assert self._server.poll() is None, "the server of processes has ended"
            time.sleep(0.01)
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(path))
        return connection


def serve(path: Path) -> dict[str, Any]:
    """Fork a process for every request; returns, with the request, in these processes alone."""
    for name in PRELOADED:
        import_module(name)
    listener = socket.socket(socket.AF_UNIX)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        listener.bind(f"{folder}/s")
        listener.listen(64)
        Path(folder, "s").rename(path)  # who sees the socket can connect
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended keepers are forgotten
    while True:
        if sys.stdin in select.select([listener, sys.stdin], [], [])[0]:
            os._exit(0)
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return keep(connection)
        connection.close()


def keep(connection: socket.socket) -> dict[str, Any]:
    """Fork the process of a request, and tell its id and its exit code; returns in the forked process alone."""
    with connection.makefile("r") as lines:
        request = json.loads(lines.readline())
    process = os.fork()
    if process == 0:
        connection.close()
        return request
    for name in ("stdin", "stdout", "stderr"):
        getattr(sys, name).close()
    connection.sendall(f"{process}\n".encode())
    _, status = os.waitpid(process, 0)
    connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def become(words: Sequence[str], cwd: str, env: Mapping[str, str], output: Sequence[str]) -> None:
    """Give this process its folder, environment, files and Python's state, and run the script or module."""
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    write = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    for number, file in enumerate([os.open(os.devnull, os.O_RDONLY), *(os.open(path, write) for path in output)]):
        os.dup2(file, number)
        os.close(file)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.path[1:1] = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path and path not in sys.path]
    if words[0] == "-m":
        sys.argv, sys.path[0] = list(words[1:]), cwd
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        script = Path(words[0]).absolute()
        sys.argv, sys.path[0] = list(words), str(script.parent)
        main = sys.modules["__main__"] = ModuleType("__main__")
        main.__file__ = str(script)
        exec(compile(script.read_bytes(), script, "exec"), vars(main))  # runpy would change sys.argv


if __name__ == "__main__":
    become(**serve(Path(sys.argv[1])))
