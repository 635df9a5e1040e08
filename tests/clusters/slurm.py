"""A SLURM cluster of one node on this machine, on private ports: :class:`SlurmCluster`."""

import getpass
import os
import secrets
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Self

from tests.clusters.processes import free_ports, kill_processes, start_daemon, stop, wait_until

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol", "squeue")
PACKAGES = "slurmctld slurmd slurm-client munge"
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
"""The search path with the folders of daemons, which a user's may lack."""

# A requeued job waits for cred_expire + 1 seconds before it starts; 5 is the least that SLURM takes.
CONFIG = """
ClusterName=normlab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
PlugStackConfig={folder}/plugstack.conf
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1,requeue_setup_env_fail
JobRequeue=1
KillWait=2
MinJobAge=300
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=30
DefMemPerCPU=256
NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cpus} Sockets=1 \
CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory={megabytes} State=UNKNOWN
PartitionName={partition} Nodes={node} Default=YES MaxTime=INFINITE State=UP
"""


def missing_programs() -> list[str]:
    """Return the programs of SLURM and MUNGE that this machine lacks."""
    return [program for program in PROGRAMS if shutil.which(program, path=PATH) is None]


class SlurmCluster:
    """A SLURM controller and one node with ``cpus`` CPUs, more than the machine may have, all run by this user.

    Args:
        folder: for configuration, state, keys and logs; its path must be short, as it holds a Unix socket.
        cpus, megabytes: of the node, whether the machine has them or not.
    """

    node = "node1"
    partition = "debug"

    def __init__(self, folder: Path, cpus: int = 8, megabytes: int = 32000) -> None:
        self.folder = folder
        self.cpus, self.megabytes = cpus, megabytes
        self.config = folder / "slurm.conf"
        self.environment = {"SLURM_CONF": str(self.config)}
        """What a process needs in its environment to use this cluster."""
        self._daemons: list[subprocess.Popen] = []

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.cancel_jobs()
        self._stop()

    def run(self, *command: str, seconds: float = 30, cwd: Path | None = None) -> str:
        """Run a command on this cluster, such as ``sbatch --parsable job.sh``, and return what it prints.

        Raises:
            AssertionError: if it fails, with its stderr.
        """
        environment = self.full_environment()
        done = subprocess.run(
            command, env=environment, cwd=cwd, timeout=seconds, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout.strip()

    def full_environment(self) -> dict[str, str]:
        """Return the environment of this process for a process that uses the cluster."""
        outside = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_"))}
        return {**outside, "PATH": PATH, **self.environment}

    def states(self) -> dict[str, str]:
        """Return the state of every job since the cluster started, such as ``{"1_0": "RUNNING"}``."""
        lines = self.run("squeue", "--noheader", "--array", "--states=all", "--format=%i %T").splitlines()
        return dict(line.split() for line in lines)

    def wait_for(self, job: str, *states: str, seconds: float = 20) -> str:
        """Wait until a job has one of ``states``, by default a final one, and return its state."""
        states = states or ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
        wait_until(lambda: self.states().get(job) in states, seconds, f"job {job} {'|'.join(states)}")
        return self.states()[job]

    def cancel_jobs(self, seconds: float = 10) -> None:
        """Cancel all jobs, and wait until the node runs none; kill what is left then."""
        if jobs := self._queued():
            self.run("scancel", *jobs)
            try:
                wait_until(lambda: not self._queued(), seconds, "the cancelled jobs end", interval=0.1)
            except TimeoutError:
                self.run("scancel", "--signal=KILL", "--full", *jobs)
                wait_until(lambda: not self._queued(), seconds, "the killed jobs end", interval=0.1)

    def logs(self) -> str:
        """Return the ends of the daemons' logs."""
        texts = {path.name: path.read_text(errors="replace")[-3000:] for path in self.folder.glob("*.log")}
        return "\n".join(f"--- {name}\n{text}" for name, text in texts.items())

    def _queued(self) -> list[str]:
        return self.run("squeue", "--noheader", "--format=%A").split()

    def _start(self) -> None:
        self._write_files()
        folder = self.folder
        munged = [f"--{name}-file={folder / file}" for name, file in MUNGE_FILES.items()]
        # Forced, since others need not reach its socket: the folder is this user's alone.
        self._daemon("munged", "--foreground", "--force", f"--socket={folder / 'munge.socket'}", *munged)
        wait_until((folder / "munge.socket").exists, 10, "munged opens its socket")
        self._daemon("slurmctld", "-D", "-f", str(self.config))
        self._daemon("slurmd", "-D", "-f", str(self.config))
        try:
            wait_until(self._is_idle, 15, "the node is idle")
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.logs()}") from error

    def _write_files(self) -> None:
        folder = self.folder
        for name in ("state", "spool"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        key = folder / MUNGE_FILES["key"]
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(64))
        (folder / "plugstack.conf").touch()
        controller_port, node_port = free_ports(2)
        text = CONFIG.format(
            **{"host": socket.gethostname().partition(".")[0], "user": getpass.getuser(), "folder": folder},
            **{"controller_port": controller_port, "node_port": node_port},
            **{"node": self.node, "partition": self.partition, "cpus": self.cpus, "megabytes": self.megabytes},
        )
        self.config.write_text(text)

    def _daemon(self, program: str, *options: str) -> None:
        command = [shutil.which(program, path=PATH) or program, *options]
        log = self.folder / f"{program}.output.log"
        self._daemons.append(start_daemon(command, log, self.full_environment()))

    def _is_idle(self) -> bool:
        for daemon in self._daemons:
            assert daemon.poll() is None, f"{daemon.args} ended with {daemon.returncode}\n{self.logs()}"
        command = ["sinfo", "--noheader", "--format=%T"]
        done = subprocess.run(command, env=self.full_environment(), capture_output=True, text=True, check=False)
        return done.stdout.strip() == "idle"

    def _stop(self) -> None:
        for daemon in reversed(self._daemons):
            stop(daemon)
        self._daemons.clear()
        # Steps outlive the daemon of their node, by design.
        kill_processes(str(self.config))


MUNGE_FILES = {"key": "munge.key", "pid": "munged.pid", "log": "munged.log", "seed": "munged.seed"}
"""The files of munged by the name of their option."""
