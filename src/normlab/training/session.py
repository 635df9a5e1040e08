"""Trains one population and writes the results of its runs; the entry is :class:`TrainingSession`."""

import logging
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor

from normlab.config.frozen import is_population, recorded
from normlab.config.schema import SaveEvery, direction_of
from normlab.data.datamodule import InMemoryData
from normlab.data.loaders import MinibatchData
from normlab.errors import first_line, require
from normlab.interrupts import Preempted, interrupts
from normlab.population.evaluation import constant_predictor_loss
from normlab.population.kernels import tune_malloc
from normlab.population.population import seed_globally, state_on_cpu
from normlab.population.resources import threads, threads_for
from normlab.results.provenance import environment, sources_of
from normlab.results.result import Objective, Result, Status, worst_value
from normlab.results.series import Point
from normlab.training.build import (
    make_data,
    make_module,
    make_probes,
    make_task,
    make_trainer,
    measuring_options,
)
from normlab.training.callbacks import (
    BestState,
    CallbackList,
    CurveRecorder,
    EarlyStopping,
    FinalMetrics,
    ProgressCallback,
)
from normlab.training.extra import (
    EpochLogger,
    as_trained,
    begin_loggers,
    end_loggers,
    make_callbacks,
    make_loggers,
    tensorboard_logger,
    without_loggers,
)
from normlab.training.lightning_parts import make_single_module
from normlab.training.median_pruning import MedianPruning, MedianRule, read_values
from normlab.training.member_callbacks import MemberCallbacks
from normlab.training.packed_runs import run_records
from normlab.training.population_module import PopulationModule
from normlab.training.population_state import PopulationSaver
from normlab.training.probe_callback import ProbeCallback
from normlab.training.processes import process_seed, processes
from normlab.training.progress import Progress
from normlab.training.run_folders import (
    Run,
    population_line,
    population_name,
    result_without_metrics,
    run_line,
)
from normlab.training.saving import SaveTimer, State, StateFile, read_state
from normlab.training.single_run import Observer, SingleRun
from normlab.training.single_run_state import RunSaver, read_run_state, run_header
from normlab.training.stackability import DryRun, choose_stacking, should_compile

log = logging.getLogger("normlab")


class TrainingSession:
    """Builds the module, callbacks and Trainer of a population, trains it and writes its results.

    Args:
        runs: of the population; their configurations have one population key.
        progress: the progress bar, shared with other populations.
        trial: the dry run of their population key.
        populations: number of populations with this key in the sweep, for the decision to compile.
        data, module: a datamodule and a module to use instead of the configured ones.
        state_file: of the state that an interrupted training goes on from; None: it is neither saved nor read.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        progress: Progress,
        trial: DryRun,
        populations: int = 1,
        data: InMemoryData | None = None,
        module: PopulationModule | None = None,
        state_file: Path | None = None,
    ) -> None:
        config = as_trained(runs[0].config)
        self.runs, self.config, self.progress, self.trial = runs, config, progress, trial
        self.metric = config.optimized_metric
        self.direction = direction_of(self.metric, config.direction)
        self.data = data or make_data(*(run.config for run in runs))
        self.sources = sources_of(config)
        self.trained, self.loaders, self.module = self.make_modules(module)
        alone = not is_population(config)
        self.saved = self.find_state(state_file) if state_file else None
        self.threads, self.checkpoint = 0, config.get("ckpt_path")
        if is_population(config):
            self.choose_step(populations)
        self.folders = run_records(runs, self.saved.kept if self.saved else ())
        logger = tensorboard_logger(config, runs[0].folder)
        self.folders.open_events([logger.writer] if logger else None)
        self.best = BestState(self.module.population, self.metric, self.direction)
        series, events = self.folders.series, self.folders.events
        flush_seconds = config.logger.flush_seconds
        probes = make_probes(config)
        kinds = {"keeps": alone, "continues": bool(self.saved and self.saved.found)}
        self.probes = ProbeCallback(probes, runs, series, events, flush_seconds, **kinds) if probes else None
        self.final = FinalMetrics()
        self.recorder = CurveRecorder(series, events, flush_seconds, **kinds)
        self.extra = [make_callbacks(run) for run in runs]
        self.loggers = [make_loggers(run) for run in runs]
        parts = runs, self.data, self.extra, self.loggers
        self.members = MemberCallbacks(*parts) if any(self.extra) and not alone else None
        self.trainer = self.make_trainer(logger)
        if self.saved and self.saved.found:
            self.go_on(self.saved, self.saved.found)

    def make_modules(
        self, module: PopulationModule | None
    ) -> tuple[pl.LightningModule, pl.LightningDataModule, PopulationModule]:
        """Return the LightningModule and the datamodule for the Trainer, and the module whose state is recorded.

        For a population, all but the datamodule are one object.
        """
        config, data = self.config, self.data
        if is_population(config):
            population = module or make_module([run.config for run in self.runs], data)
            return population, data, population
        trained, net = make_single_module(config, data)
        alone = f"none with module._target_={config.module._target_}, which takes no net"
        require(net is not None or not config.probes, "probes", alone, ", ".join(config.probes))
        task, options = make_task(data, config.loss), measuring_options(config)
        run = SingleRun(trained, net, task, config.seed, data, **options)
        return trained, MinibatchData(data, config.seed), run

    def make_trainer(self, logger: Logger | None) -> pl.Trainer:
        """Return the Trainer; in a population, callbacks and loggers act on each member.

        Args:
            logger: the TensorBoardLogger of a single module.
        """
        folder, callbacks = str(self.runs[0].folder), self.callbacks()
        timer = SaveTimer(SaveEvery.of(self.config.trainer.get("save_every")))
        if isinstance(self.module, SingleRun):
            observer = Observer(self.module, callbacks, recorded(self.runs[0].config))
            loggers = [*([logger] if logger else []), *self.loggers[0]]
            trainer = make_trainer(self.config, [*self.extra[0], observer], loggers, folder)
            trainer.callbacks.append(  # type: ignore[attr-defined]
                RunSaver(self.saved, timer, observer, self.folders, self.progress)
            )
            return trainer
        if self.saved is not None:
            parts = callbacks, self.members, self.folders, self.progress
            callbacks = [PopulationSaver(self.saved, timer, *parts), *callbacks]
        recorders = CallbackList(callbacks)
        if self.members is not None:
            return make_trainer(self.config, [self.members, recorders], folder=folder)
        trainer = make_trainer(self.config, [recorders], folder=folder)
        trainer.limit_val_batches = 0  # nothing listens to the hooks of a validation; the module validates
        return trainer

    def choose_step(self, populations: int) -> None:
        """Decide whether the step of a population is compiled, and how its members are stacked."""
        if self.saved and self.saved.found:
            self.module.compiles = self.saved.found["compiles"]
        elif self.config.trainer.compile is None and should_compile(self.trial, len(self.runs), populations):
            log.info(
                "compiling the step of %s: this should save more time than it takes",
                population_name(self.runs),
            )
            self.module.compiles = True
        choose_stacking(self.module, self.trial, self.progress.warn_once)

    def find_state(self, path: Path) -> StateFile | None:
        """Return the state file; None for a run in several processes, whose state is not saved."""
        if is_population(self.config):
            return StateFile(path, self.runs, self.sources, read_state)
        if self.config.trainer.devices not in (1, "1"):
            return None
        return StateFile(path, self.runs, self.sources, read_run_state, run_header)

    def go_on(self, file: StateFile, state: State) -> None:
        """Begin with a state; a population restores the rest once its optimizer exists, as Lightning does."""
        header = file.header_of(state)
        file.log_start()
        self.threads = header["threads"]
        self.folders.started = datetime.fromisoformat(header["started"])
        if not is_population(self.config):
            self.checkpoint, file.found = str(file.path), None
        if self.members is not None:
            self.members.resume_from(state["callbacks"][type(self.members).__name__])

    def callbacks(self) -> list[pl.Callback]:
        """Return the callbacks; early stopping is last, so that the others record the epoch first."""
        progress = ProgressCallback(self.progress, self.metric)
        callbacks: list[pl.Callback] = [self.recorder, self.best, self.final, progress]
        callbacks += [self.probes] if self.probes else []
        # Lightning logs the metrics of a single module.
        if self.config.logger.extra and is_population(self.config):
            callbacks.append(EpochLogger(self.loggers))
        stopping = self.config.callbacks.early_stopping
        if stopping is not None:
            monitor, patience, min_delta = stopping.monitor, stopping.patience, stopping.get("min_delta", 0.0)
            direction = self.direction if monitor == self.metric else direction_of(monitor, None)
            callbacks.append(EarlyStopping(len(self.runs), monitor, direction, patience, min_delta))
        pruning = self.config.callbacks.get("pruning")
        if pruning is not None:
            earlier = read_values(self.runs[0].sweep)
            rule = MedianRule(self.direction, pruning.n_startup_trials, pruning.n_warmup_epochs, earlier)
            callbacks.append(MedianPruning(len(self.runs), self.metric, rule))
        return callbacks

    def run(self) -> list[Result]:
        """Train, test, write all files, and return the result of each run.

        Raises:
            KeyboardInterrupt: on Ctrl-C, after the results so far have been written.
            Preempted: on another signal, without results.
        """
        share = threads_for(self.trial.footprint, len(self.runs)) // self.trainer.world_size
        # The sums of an operation may be rounded otherwise with another number of threads.
        thread_count = self.threads or self.config.trainer.threads or max(1, share)
        tune_malloc()
        begin_loggers(self.runs, self.loggers)
        hidden, closed = hide_lightning_warnings(), self.folders.closed_on_error()
        with threads(thread_count), interrupts.recorded(), hidden, closed:
            if self.saved and self.saved.kept:  # of this run itself
                warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
            seed_globally(process_seed(self.config.seed, self.trainer.global_rank))
            try:
                with processes(self.trainer, self.runs[0], self.trial):
                    try:
                        self.trainer.fit(self.trained, datamodule=self.loaders, ckpt_path=self.checkpoint)
                        if self.config.statistics == "reestimated":
                            self.recorder.revise(self.reestimated())
                    finally:
                        if not isinstance(sys.exception(), Preempted):
                            self.save_last()
                    tests = self.test()
            except Preempted:
                self.leave()
                raise
            except BaseException as error:
                # Lightning turns Ctrl-C into SystemExit, and resets ``interrupted`` when it tests.
                interrupted = self.trainer.interrupted and isinstance(error, SystemExit)
                self.finish_early(error)
                if interrupted:
                    raise KeyboardInterrupt from error
                raise
            results = self.finish(Status.FINISHED, tests)
            if self.saved is not None:
                self.saved.remove()
            return results

    def leave(self) -> None:
        """Close the files without writing results, as the training goes on when the command is repeated."""
        for writer in self.folders.events:
            writer.close()
        for logger in (logger for own in self.loggers for logger in own):
            logger.finalize("aborted")
        kept = self.saved is not None and self.saved.path.exists()
        remedy = "repeat the command to go on" if kept else "the repeated command starts from the first epoch"
        log.info("%s is interrupted by a signal; %s", population_name(self.runs), remedy)

    def finish_early(self, error: BaseException) -> None:
        """Write the results after an exception; members that had stopped before count as finished."""
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)
        tests: dict[str, Tensor] = {}
        try:
            if not self.module.active.all() and self.trainer.world_size == 1:
                tests = self.test()
        finally:
            self.finish(Status.STOPPED if stopped else Status.FAILED, tests, error)

    def reestimated(self) -> dict[str, Tensor]:
        """Re-estimate the statistics of the current state, and return its metrics on the validation split."""
        self.module.reestimate(self.data)
        self.module.metrics = {}
        if is_population(self.config):
            self.module.validate_members()
        elif self.data.val:
            with without_loggers(self.trainer):  # the curves keep the values measured in training
                self.trainer.validate(self.trained, datamodule=self.loaders, verbose=False)
        return self.module.metrics

    def test(self) -> dict[str, Tensor]:
        """Evaluate each member's best state on the test split; return metrics ``(K,)`` by name."""
        if not self.best.epoch.any():
            return {}
        self.module.population.load_state(self.best.state)
        if self.config.statistics == "reestimated":
            self.best.revise(self.module.population, self.reestimated())
        if not (self.data.test and is_overridden("test_step", self.trained)):
            return {}
        self.module.metrics = {}
        self.trainer.test(self.trained, datamodule=self.loaders, verbose=False)
        return self.module.metrics

    def save_last(self) -> None:
        """Write the checkpoint of each member's last state."""
        state = state_on_cpu(self.module.population.state())
        for k in range(len(self.runs)):
            member = self.module.population.member(k, state)
            self.folders.save(k, "last", member, self.recorder.epoch_metrics(k))

    def finish(self, status: Status, tests: dict[str, Tensor], error: BaseException | None = None) -> list[Result]:
        """Write checkpoints, curves, probes and, last, ``result.json`` of each run; return the results."""
        best_epochs = [self.best.epoch_metrics(k) for k in range(len(self.runs))]
        state = state_on_cpu(self.best.state)
        for k, best in enumerate(best_epochs):
            self.folders.save(k, "best", self.module.population.member(k, state), best)
        final = self.final.means(self.module.epochs)
        results = [self.result(k, status, tests, final, error) for k in range(len(self.runs))]
        for k, (best, result) in enumerate(zip(best_epochs, results, strict=True)):
            if best is not None:
                ends = {**result.test, f"best/{self.metric}": best.metrics[self.metric]}
                self.recorder.points[k].append(Point(best.epoch, best.step, time.time(), ends))
            if self.members is not None and (late := self.members.numbers(k)):
                self.recorder.points[k].append(Point(result.epochs, result.steps, time.time(), late))
            end_loggers(self.loggers[k], result, result.test if is_population(self.config) else {})
        self.recorder.flush()
        if self.probes is not None:
            self.probes.flush()
            self.probes.write_arrays()
        lines = [run_line(result, self.folders.error_file) for result in results]
        self.folders.finish(results, lines, error)
        log.info(lines[0] if len(lines) == 1 else population_line(results))
        return results

    def result(
        self,
        k: int,
        status: Status,
        tests: dict[str, Tensor],
        final: dict[str, np.ndarray],
        error: BaseException | None,
    ) -> Result:
        """Return the result of member k in its current state."""
        run, module, best = self.runs[k], self.module, self.best.epoch_metrics(k)
        data = self.data.members[k % len(self.data.members)]
        table = data.parts[0]
        if module.diverged[k]:
            status = Status.DIVERGED
        elif module.pruned[k]:
            status = Status.PRUNED
        elif not module.active[k] and (tests or not self.data.test):
            status = Status.FINISHED
        reached = best.metrics[self.metric] if best and status != Status.DIVERGED else worst_value(self.direction)
        tested = best is not None and status == Status.FINISHED
        return replace(
            result_without_metrics(run, status, first_line(error) if error and status == Status.FAILED else None),
            objective=Objective(self.metric, self.direction, reached),
            best=best,
            last=self.recorder.epoch_metrics(k),
            test={name: values[k].item() for name, values in tests.items()} if tested else {},
            final={name: float(values[k]) for name, values in final.items()},
            chance=constant_predictor_loss(module.task, table.y, table.out_features),
            probes=self.probes.latest[k] if self.probes else {},
            epochs=int(module.epochs[k]),
            steps=int(module.steps[k]),
            seconds=module.seconds / len(self.runs),
            started=self.folders.started.isoformat(timespec="seconds"),
            ended=datetime.now(UTC).isoformat(timespec="seconds"),
            environment=environment(),
            data=data.description(),
            sources=self.sources,
        )


@contextmanager
def hide_lightning_warnings() -> Iterator[None]:
    """Context manager that hides irrelevant warnings of Lightning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        warnings.filterwarnings("ignore", message="Total length of `WholeSplit`")
        warnings.filterwarnings("ignore", message=".*does not have many workers")
        warnings.filterwarnings("ignore", message="The `srun` command is available")
        warnings.filterwarnings("ignore", message="You have overridden `transfer_batch_to_device` in `Li")
        yield
