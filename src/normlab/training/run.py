"""Training a population: from the configurations of its runs to the folders that they leave."""

import logging
import signal
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.conf import HydraConf
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from normlab.config import direction_of, first_line
from normlab.records import curves, hparams
from normlab.records.curves import Point
from normlab.records.environment import environment
from normlab.records.events import PREFIX, EventFile
from normlab.records.folder import earlier_result, plain, require_writable
from normlab.records.names import run_name
from normlab.records.result import Moment, Objective, Result, Status
from normlab.training.build import make_data, make_module, make_trainer, rehearse
from normlab.training.callbacks import BestState, EarlyStopping, EpochBar, Recorder, worst
from normlab.training.population import State

log = logging.getLogger("normlab")


@dataclass(frozen=True)
class Run:
    """A configuration, and the folder that its run is to leave."""

    config: DictConfig
    folder: Path
    name: str
    choices: dict[str, str]
    overrides: list[str]

    @classmethod
    def composed(cls, config: DictConfig, hydra: HydraConf) -> "Run":
        """Return the run that Hydra composed ``config`` for."""
        folder = Path(hydra.runtime.output_dir)
        overrides = list(hydra.overrides.task)
        choices = {group: option for group, option in hydra.runtime.choices.items() if isinstance(option, str) and "/" not in group}
        swept = hydra.mode == RunMode.MULTIRUN
        name = folder.name if swept else run_name(overrides) or f"model={choices['model']}"
        return cls(config, folder, name, choices, overrides)


def train(runs: Sequence[Run]) -> list[Result]:
    """Train runs that differ in their seeds alone as one population, and return their results in order.

    A run that its folder holds the end of already is not trained again.

    Raises:
        ConfigError: for a configuration that cannot be trained, or a folder that belongs to another one.
    """
    results = [earlier_result(run.folder, run.config) for run in runs]
    to_train = [k for k, result in enumerate(results) if result is None or not result.status.done]
    for run in runs if not to_train else ():
        log.info("%s is done already: its result is returned, from %s", run.name, run.folder)
    if to_train:
        for notice in rehearse(runs[0].config):
            log.warning(notice)
        for k, result in zip(to_train, Training([runs[k] for k in to_train]).results(), strict=True):
            results[k] = result
    return [result for result in results if result is not None]


class Training:
    """One population on its way: what is built for it, and what it leaves at its end, whichever that is."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = runs
        self.config = runs[0].config
        self.metric = self.config.optimized_metric
        self.direction = direction_of(self.metric, self.config.direction)
        self.started = now()
        for run in runs:
            clear(run.folder)
        self.events = [EventFile(run.folder) for run in runs if self.config.logger.tensorboard]
        for run, file in zip(runs, self.events, strict=bool(self.events)):
            file.start(hparams.flat(plain(run.config), run.choices), hparams.group(plain(run.config), run.choices))
            file.text("config", "    " + OmegaConf.to_yaml(run.config, resolve=True).replace("\n", "\n    "))
        self.data = make_data(self.config)
        self.module = make_module(self.config, self.data, [run.config.seed for run in runs])
        self.recorder = Recorder([run.folder for run in runs], self.events, self.config.logger.flush_seconds)
        self.best = BestState(self.metric, self.direction)
        self.trainer = make_trainer(self.config, self.callbacks())

    def callbacks(self) -> list[pl.Callback]:
        """Return our callbacks; what records an epoch comes before what changes who is active."""
        label = self.runs[0].name if len(self.runs) == 1 else f"{len(self.runs)} runs"
        watching: list[pl.Callback] = [self.recorder, self.best, EpochBar(label, self.metric)]
        stopping = self.config.callbacks.early_stopping
        if stopping is not None:
            direction = direction_of(stopping.monitor, None)
            watching.append(
                EarlyStopping(stopping.monitor, direction, stopping.patience, stopping.get("min_delta", 0.0))
            )
        return watching

    def results(self) -> list[Result]:
        """Train, test, write everything, and return each run's result.

        Raises:
            KeyboardInterrupt: on Ctrl-C, when what there is so far has been written.
        """
        with threads(self.config.trainer.threads), interrupts(self):
            torch.manual_seed(self.config.seed)
            try:
                self.trainer.fit(self.module, datamodule=self.data)
                self.save("last", self.module.population.state())
                tests = self.test()
            except BaseException as error:
                self.save("last", self.module.population.state())
                stopped = isinstance(error, KeyboardInterrupt | SystemExit)
                self.end(Status.STOPPED if stopped else Status.FAILED, {}, error)
                raise
            return self.end(Status.FINISHED, tests)

    def test(self) -> dict[str, torch.Tensor]:
        """Measure each member's best state on the test split: metrics ``(K,)`` by name."""
        if not self.data.test or not self.module.epochs.any():
            return {}
        self.module.population.load_state(self.best.state)
        self.module.metrics = {}
        self.trainer.test(self.module, datamodule=self.data, verbose=False)
        return self.module.metrics

    def save(self, name: str, state: State) -> None:
        """Write a checkpoint of each run: plain tensors and numbers, which ``weights_only=True`` loads."""
        for k, run in enumerate(self.runs):
            path = run.folder / "checkpoints" / f"{name}.pt"
            path.parent.mkdir(exist_ok=True)
            beside = path.with_suffix(".tmp")
            moment = self.best_moment(k) if name == "best" else self.last_moment(k)
            torch.save(
                {
                    "state_dict": {key: tensor[k].detach().clone() for key, tensor in state.items()},
                    "epoch": moment.epoch if moment else 0,
                    "step": moment.step if moment else 0,
                    "metrics": moment.metrics if moment else {},
                },
                beside,
            )
            beside.replace(path)

    def best_moment(self, k: int) -> Moment | None:
        """Return where member k's metric was best."""
        best = self.best
        if not hasattr(best, "epoch") or best.epoch[k] == 0:
            return None
        metrics = {name: values[k].item() for name, values in best.metrics.items()}
        return Moment(int(best.epoch[k]), int(best.step[k]), metrics)

    def last_moment(self, k: int) -> Moment | None:
        """Return where member k ended."""
        point = self.recorder.last[k]
        return point and Moment(point.epoch, point.step, point.metrics)

    def end(self, status: Status, tests: dict[str, torch.Tensor], error: BaseException | None = None) -> list[Result]:
        """Write what each run leaves, ``result.json`` last, and return the results."""
        self.save("best", self.best.state)
        results = [self.result(k, status, tests, error) for k in range(len(self.runs))]
        for k, result in enumerate(results):
            if result.best is not None:
                final = {**result.test, f"best/{self.metric}": result.best.metrics[self.metric]}
                self.recorder.points[k].append(Point(result.best.epoch, result.best.step, now().timestamp(), final))
        self.recorder.flush()
        for file, result in zip(self.events, results, strict=bool(self.events)):
            file.end(succeeded=result.status == Status.FINISHED)
        for run, result in zip(self.runs, results, strict=True):
            if error is not None:
                (run.folder / "error.txt").write_text("".join(traceback.format_exception(error)))
            result.write(run.folder)
        return results

    def result(self, k: int, status: Status, tests: dict[str, torch.Tensor], error: BaseException | None) -> Result:
        """Return what is known of member k now."""
        run, module, best = self.runs[k], self.module, self.best_moment(k)
        if module.diverged[k]:
            status = Status.DIVERGED
        done_well = status == Status.FINISHED and best is not None
        value = best.metrics[self.metric] if best is not None and done_well else worst(self.direction)
        return Result(
            name=run.name,
            status=status,
            config=plain(run.config),
            choices=run.choices,
            overrides=run.overrides,
            objective=Objective(self.metric, self.direction, value),
            best=best,
            last=self.last_moment(k),
            test={name: values[k].item() for name, values in tests.items()} if done_well else {},
            epochs=int(module.epochs[k]),
            steps=int(module.steps[k]),
            seconds=module.seconds / len(self.runs),
            started=self.started.isoformat(timespec="seconds"),
            ended=now().isoformat(timespec="seconds"),
            error=first_line(error) if error is not None and status == Status.FAILED else None,
            environment=environment(),
        )


def now() -> datetime:
    """Return the time, in UTC."""
    return datetime.now(UTC)


def clear(folder: Path) -> None:
    """Remove what a run of the same configuration left that did not come to its end: it is trained again."""
    require_writable(folder)
    for path in (*folder.glob(f"{PREFIX}*"), *folder.glob("checkpoints/*.pt")):
        path.unlink()
    for name in (curves.FILE, "error.txt", "result.json"):
        (folder / name).unlink(missing_ok=True)


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Compute on this many threads.

    One, unless told otherwise: for nets of this size a second thread costs more than it gives.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(number or 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def interrupts(training: Training) -> Iterator[None]:
    """Let Ctrl-C end the whole sweep: Lightning turns it into an exit and ignores the next one."""
    handler: Any = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if training.trainer.interrupted:
            raise KeyboardInterrupt from error
        raise
    finally:
        if handler is not None and signal.getsignal(signal.SIGINT) is not handler:
            signal.signal(signal.SIGINT, handler)
