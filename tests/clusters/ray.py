"""A Ray cluster of two nodes on this machine's loopback interface: :class:`RayCluster`."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Self

import psutil
from tests.clusters.processes import free_ports, kill_processes, start_daemon, stop, wait_until

HEAD, SECOND = "127.0.0.2", "127.0.0.3"
"""Addresses of the nodes; Ray would replace 127.0.0.1 by one that other machines reach."""
RAY = str(Path(sys.executable).with_name("ray"))
STORE_BYTES = 100_000_000
AGENTS = ("DashboardAgent", "RuntimeEnvAgent")
"""Ray's own processes beside a node's workers; a node ends without them."""


class RayCluster:
    """A Ray head and a second node, each with ``cpus`` CPUs, without dashboard and usage statistics.

    Args:
        folder: for sockets and logs; its path must be short, as it holds Unix sockets.
        cpus: of each node, whether the machine has them or not.
    """

    def __init__(self, folder: Path, cpus: int = 1) -> None:
        self.folder, self.cpus = folder, cpus
        self.port, self.client_port = free_ports(2)
        self.address = f"{HEAD}:{self.port}"
        """Address for a driver: ``ray.init(address)``."""
        self.environment = {"RAY_ADDRESS": self.address, "RAY_USAGE_STATS_ENABLED": "0"}
        """What a driver needs in its environment."""
        self.nodes: dict[str, subprocess.Popen] = {}
        """The ``ray start --block`` of each node, by address; its end is the end of the node."""

    def __enter__(self) -> Self:
        try:
            # The second waits for the head to open its port.
            ports = f"--port={self.port}", f"--ray-client-server-port={self.client_port}"
            self._launch(HEAD, "--head", *ports, "--include-dashboard=false")
            self._launch(SECOND, f"--address={self.address}")
            for ip in self.nodes:
                self._wait_for(ip)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()

    def full_environment(self) -> dict[str, str]:
        """Return the environment of this process for a process that uses the cluster."""
        outside = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        return {**outside, **self.environment}

    def workers(self) -> dict[int, str]:
        """Return the processes that run tasks or wait for them: the task, or IDLE, by process id."""
        titles = {}
        for node in self.nodes.values():
            for process in psutil.Process(node.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    titles[process.pid] = " ".join(process.cmdline()).strip()
        names = {number: title.removeprefix("ray::") for number, title in titles.items() if "ray::" in title}
        return {number: name for number, name in names.items() if name not in AGENTS}

    def kill_worker(self, process: int | None = None) -> int:
        """Kill a worker with SIGKILL, by default one that runs a task, and return its process id."""
        if process is None:
            process = next(number for number, task in self.workers().items() if task != "IDLE")
        os.kill(process, signal.SIGKILL)
        return process

    def _launch(self, ip: str, *options: str) -> None:
        common = ["--block", f"--node-ip-address={ip}", f"--num-cpus={self.cpus}"]
        store = [f"--object-store-memory={STORE_BYTES}", "--disable-usage-stats", "--include-log-monitor=false"]
        # By default the agents of all clusters on a machine would open the same port.
        own = [f"--temp-dir={self.folder / ip}", "--dashboard-agent-listen-port=0"]
        command = [RAY, "start", *common, *store, *own, *options]
        self._log(ip).unlink(missing_ok=True)
        self.nodes[ip] = start_daemon(command, self._log(ip), self.full_environment())

    def _wait_for(self, ip: str) -> None:
        def has_joined() -> bool:
            text = self._log(ip).read_text()
            assert self.nodes[ip].poll() is None, f"ray start ended:\n{text}"
            return "Ray runtime started" in text

        wait_until(has_joined, 90, f"the Ray node {ip} has joined")

    def _log(self, ip: str) -> Path:
        return self.folder / f"{ip}.log"

    def _stop(self) -> None:
        for node in reversed(self.nodes.values()):
            stop(node, 10)
        self.nodes.clear()
        kill_processes(f"{self.folder}/")
