"""The processes of a run that trains on several devices, one for each: :func:`processes`.

The first is the process that trains the run anyway, and the only one that writes its files. Each other one builds
the same run in a temporary folder and calls the same methods, so that all take part in each exchange of tensors.
"""

import logging
import multiprocessing
import os
import signal
import tempfile
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NoReturn

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

from normlab.config.frozen import FrozenConfig, KeyPath, replaced
from normlab.data.sampling import derive_seed
from normlab.errors import ConfigError, require
from normlab.interrupts import PREEMPTIONS, blocked_ctrl_c
from normlab.training.progress import Progress
from normlab.training.run_folders import Run
from normlab.training.stackability import DryRun
from normlab.training.strategy import SharedBatchStrategy

LAST_SECONDS = 60.0
"""Seconds that the other processes have to end after the first has ended."""
RANK = "LOCAL_RANK"
"""Environment variable in which Lightning finds the number of a process."""


def process_seed(seed: int, rank: int) -> int:
    """Return the seed of a process's global generators, from which layers of torch draw, such as its dropout."""
    return derive_seed(seed, "process", rank) if rank else seed


def share_sizes(config: FrozenConfig, sizes: Sequence[int], number: int, net: nn.Module) -> list[int]:
    """Return the sizes of minibatches that each layer of a net must take, where a number of processes share them.

    Layers that use the statistics of all processes are not tried with less than a whole minibatch.

    Raises:
        ConfigError: if a process would have no samples.
    """
    if number == 1:
        return []
    enough = f"enough for at least one sample per process with trainer.devices={config.trainer.devices}"
    require(min(sizes) >= number, "data.batch_size", enough, f"a minibatch of {min(sizes)}")
    if any(getattr(layer, "sync", False) for layer in net.modules()):
        return []
    return sorted({share for size in sizes for share in (size // number, -(-size // number))})


@contextmanager
def processes(trainer: pl.Trainer, run: Run, trial: DryRun) -> Iterator[None]:
    """Context manager in which the other processes of a run train, too; without effect if it has only this one.

    All of them have ended on exit. If one failed, and this one cannot reach it any more, that is the error raised.

    Args:
        trainer: of this process.
        run: that all processes train.
        trial: its dry run.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, SharedBatchStrategy) or strategy.store:
        yield
        return
    if strategy.global_rank:
        raise ConfigError(
            f"{RANK} must be unset or 0, got {strategy.global_rank}; start train.py once, without it"
        )
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        strategy.store = str(Path(folder) / "store")
        others: list[OtherProcess] = []
        try:
            for rank in range(1, trainer.world_size):
                others.append(OtherProcess(rank, run, trial, folder))
            for other in others:
                other.wait_until_ready()
            yield
            for other in others:
                other.process.join(LAST_SECONDS)
        except RuntimeError as error:
            for other in others if is_lost_connection(error) else ():
                other.raise_failure_after(error)
            raise
        finally:
            for other in others:
                other.process.kill()
                other.process.join()
            strategy.store = ""
            if dist.is_initialized():
                dist.destroy_process_group()


def is_lost_connection(error: RuntimeError) -> bool:
    """Return True for errors of gloo or NCCL, which have no class of their own in every version of torch."""
    return isinstance(error, dist.DistError) or any(name in str(error) for name in ("gloo", "NCCL"))


class OtherProcess:
    """Starts a process of a run, other than the first.

    It is spawned and given the run itself: Lightning's launcher would repeat the command with all of its runs, and
    a fork would copy locks of torch's threads.

    Args:
        rank: its number, from 1.
        run: that it trains.
        trial: the dry run.
        folder: a temporary folder that all processes of the run share.
    """

    def __init__(self, rank: int, run: Run, trial: DryRun, folder: str) -> None:
        self.rank = rank
        changes: dict[KeyPath, Any] = {("trainer", "threads"): torch.get_num_threads()}
        changes |= {("logger", "tensorboard"): False, ("logger", "extra"): {}}  # the first process logs
        copy = replace(run, config=FrozenConfig.of(replaced(run.config, changes)), folder=Path(folder) / f"{rank}")
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe(duplex=False)
        arguments = (rank, copy, trial, folder, theirs)
        self.process = context.Process(target=train_share, args=arguments, daemon=True)
        with blocked_ctrl_c():
            self.process.start()
        theirs.close()

    def wait_until_ready(self) -> None:
        """Wait until the process has built its run; raise RuntimeError if it fails."""
        wait([self.connection, self.process.sentinel])
        message = self.received()
        if message != "":
            self.raise_failure(message)

    def received(self) -> str | None:
        """Return the next message, empty for a process that is ready, or a traceback; None if there is none."""
        try:
            return self.connection.recv() if self.connection.poll() else None
        except EOFError:
            return None

    def raise_failure_after(self, cause: BaseException) -> None:
        """Raise RuntimeError if the process failed, so that this one lost it; return if it lost this one, too."""
        self.process.join(LAST_SECONDS / 10)
        message = self.received()
        if message is not None or self.process.exitcode not in (None, 0):
            self.raise_failure(message, cause)

    def raise_failure(self, message: str | None, cause: BaseException | None = None) -> NoReturn:
        """Raise RuntimeError with the last line of a traceback; None if the process has sent none."""
        reason = message.splitlines()[-1] if message else "it was killed, possibly because memory ran out"
        error = RuntimeError(f"process {self.rank} of this run failed: {reason}")
        error.add_note(message or "")
        raise error from cause


def train_share(rank: int, run: Run, trial: DryRun, folder: str, connection: Connection) -> None:
    """Train a run in another process than its first one, and send the traceback if that fails."""
    # Imported here, as the session imports this module.
    from normlab.training.session import TrainingSession

    os.environ[RANK] = str(rank)
    # The first process stops at signals, logs and warns, for all.
    for number in (signal.SIGINT, *PREEMPTIONS):
        signal.signal(number, signal.SIG_IGN)
    logging.disable()
    warnings.simplefilter("ignore")
    tqdm.set_lock(
        threading.RLock()
    )  # its own lock has a semaphore, which this process would leave if it is killed
    threading.Thread(target=exit_with_parent, daemon=True).start()
    try:
        session = TrainingSession([run], Progress("", 0, shown=False), trial)
        strategy: Any = session.trainer.strategy
        strategy.store = str(Path(folder) / "store")
        connection.send("")
        session.run()
    except BaseException as error:
        if not (isinstance(error, RuntimeError) and is_lost_connection(error)):
            connection.send("".join(traceback.format_exception(error)))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def exit_with_parent() -> None:
    """End this process if the first one was killed, also while it waits for others."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
