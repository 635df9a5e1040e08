"""Lightning's callbacks in a population: each member's own, with a Trainer and a module of that member.

The entry is :class:`MemberCallbacks`. K is the number of members.
"""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint, EarlyStopping, ModelSummary
from pytorch_lightning.loggers import Logger
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.types import LRSchedulerConfig
from torch import Tensor

from normlab.config.frozen import FrozenConfig, replaced
from normlab.data.datamodule import InMemoryData
from normlab.population.population import replace
from normlab.population.schedulers import Hyperparameters, groups_of
from normlab.training.extra import MemberLogger, as_number
from normlab.training.lightning_parts import make_single_module
from normlab.training.norm_module import NormModule
from normlab.training.population_module import PopulationModule
from normlab.training.run_folders import Run

EPOCH_HOOKS = (
    *("on_train_epoch_start", "on_train_batch_start", "on_train_batch_end", "on_train_epoch_end"),
    *("on_validation_start", "on_validation_epoch_start", "on_validation_batch_start"),
    *("on_validation_batch_end", "on_validation_epoch_end", "on_validation_end"),
)
"""Hooks that are called for members that still train; the batch of a population is an epoch."""
BEFORE_STEPS = ("on_train_epoch_start", "on_train_batch_start")
"""Those before the steps of an epoch, in order."""
RUN_HOOKS = (
    *("on_fit_start", "on_train_start", "on_train_end", "on_fit_end", "on_exception"),
    *("on_test_start", "on_test_epoch_start", "on_test_batch_start"),
    *("on_test_batch_end", "on_test_epoch_end", "on_test_end"),
)
"""Hooks that are called for every member."""


class MemberModule(NormModule):
    """A member's net as the LightningModule that a callback sees; its tensors are those of the population."""

    def log(self, name: str, value: Any, *args: Any, **keywords: Any) -> None:
        """Record a number with the epoch, whichever hook logs it."""
        number = as_number(value)
        self.trainer.callback_metrics[name] = torch.tensor(number)
        cast(MemberLogger, self.trainer.loggers[0]).numbers[name] = number

    def log_dict(self, dictionary: Any, *args: Any, **keywords: Any) -> None:
        """Record several numbers."""
        for name, value in dictionary.items():
            self.log(name, value)


class MemberTrainer:
    """The Trainer that the callbacks of member k see: its metrics, loggers, optimizer, module and checkpoints.

    All other attributes are those of the population's Trainer.

    Args:
        trainer: of the population.
        population: the population's module.
        k: the member.
        run: the member's configuration and folder.
        data: the datamodule.
        callbacks, loggers: of the run.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        population: PopulationModule,
        k: int,
        run: Run,
        data: InMemoryData,
        callbacks: Sequence[pl.Callback],
        loggers: Sequence[Logger],
    ) -> None:
        self.population_trainer, self.population, self.k = trainer, population, k
        self.default_root_dir = str(run.folder)
        # Lightning, too, calls checkpoints after the other callbacks.
        self.callbacks = sorted(callbacks, key=lambda callback: isinstance(callback, Checkpoint))
        self.loggers: list[Logger] = [MemberLogger(run.folder), *loggers]
        self.callback_metrics: dict[str, Tensor] = {}
        node = {"_target_": f"{__name__}.{MemberModule.__name__}"}
        config = FrozenConfig.of(replaced(run.config, {("module",): FrozenConfig.of(node)}))
        module, _ = make_single_module(config, data)
        self.lightning_module = cast(MemberModule, module)
        self.lightning_module._trainer = cast(pl.Trainer, self)
        self.optimizer_name = str(run.config.optimizer._target_).rpartition(".")[2]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.population_trainer, name)

    @property
    def model(self) -> MemberModule:
        """The member's module."""
        return self.lightning_module

    @property
    def logger(self) -> Logger:
        """The first logger."""
        return self.loggers[0]

    @property
    def logged_metrics(self) -> dict[str, Tensor]:
        """The latest metrics."""
        return self.callback_metrics

    @property
    def current_epoch(self) -> int:
        """The member's epoch, counted from 0."""
        return min(self.population_trainer.current_epoch, int(self.population.epochs[self.k]))

    @property
    def global_step(self) -> int:
        """The member's optimizer steps."""
        return int(self.population.steps[self.k])

    @property
    def should_stop(self) -> bool:
        """Whether the member stops after this epoch."""
        return bool(self.population.stopping[self.k])

    @should_stop.setter
    def should_stop(self, value: bool) -> None:
        self.population.stopping[self.k] = value

    @property
    def checkpoint_callbacks(self) -> list[Checkpoint]:
        """The member's checkpoint callbacks."""
        return [callback for callback in self.callbacks if isinstance(callback, Checkpoint)]

    @property
    def checkpoint_callback(self) -> Checkpoint | None:
        """The first of them."""
        return next(iter(self.checkpoint_callbacks), None)

    @property
    def early_stopping_callbacks(self) -> list[EarlyStopping]:
        """The member's callbacks of early stopping."""
        return [callback for callback in self.callbacks if isinstance(callback, EarlyStopping)]

    @property
    def early_stopping_callback(self) -> EarlyStopping | None:
        """The first of them."""
        return next(iter(self.early_stopping_callbacks), None)

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """An optimizer with the member's hyperparameters and no parameters, named as the configured one."""
        named = type(self.optimizer_name, (Hyperparameters,), {})
        (groups,) = groups_of(self.population.optimizer, [self.k])
        return [named(groups)]

    @property
    def lr_scheduler_configs(self) -> list[LRSchedulerConfig]:
        """The member's scheduler, with its interval."""
        scheduler = self.population.scheduler
        if scheduler is None:
            return []
        own = torch.optim.lr_scheduler.LRScheduler.__new__(torch.optim.lr_scheduler.LRScheduler)
        own.optimizer = self.optimizers[0]
        return [LRSchedulerConfig(own, interval=scheduler.interval, frequency=scheduler.frequency)]

    def save_checkpoint(self, filepath: str | Path, *args: Any, **keywords: Any) -> None:
        """Save the member in Lightning's format, without its optimizer; ``state_dict`` is that of NormModule."""
        checkpoint = {
            "epoch": self.current_epoch,
            "global_step": self.global_step,
            "pytorch-lightning_version": version("pytorch-lightning"),
            "state_dict": self.lightning_module.state_dict(),
            "callbacks": {callback.state_key: callback.state_dict() for callback in self.callbacks},
        }
        self.population_trainer.strategy.save_checkpoint(checkpoint, filepath)

    def resume_state(self) -> dict[str, Any]:
        """Return the states of the callbacks, the latest metrics, and the numbers logged since the last epoch."""
        return {
            "callbacks": [callback.state_dict() for callback in self.callbacks],
            "callback_metrics": dict(self.callback_metrics),
            "numbers": dict(cast(MemberLogger, self.loggers[0]).numbers),
        }

    def refresh(self) -> None:
        """Show the population's current tensors and metrics."""
        module, population = self.lightning_module, self.population
        module.to(device=population.device, dtype=population.dtype).train(population.training)
        parameters = dict(module.net.named_parameters())
        for name, tensor in population.population.state().items():
            own = tensor.detach()[self.k]
            if name in parameters:
                parameters[name].data = own
            else:
                replace(module.net, name, own)
        metrics = population.metrics.items()
        self.callback_metrics |= {name: values[self.k].detach() for name, values in metrics}


class MemberCallbacks(pl.Callback):
    """Calls the callbacks of each member at Lightning's hooks, and records the numbers that they log.

    Args:
        runs: the run of each member.
        data: the datamodule.
        callbacks, loggers: of each member.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        data: InMemoryData,
        callbacks: Sequence[Sequence[pl.Callback]],
        loggers: Sequence[Sequence[Logger]],
    ) -> None:
        self.restored: list[dict[str, Any]] = []
        self.parts = list(zip(runs, callbacks, loggers, strict=True))
        self.data = data
        self.members: list[MemberTrainer] = []

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Make the Trainer and the module of each member."""
        if not self.members:
            self.members = [
                MemberTrainer(trainer, pl_module, k, run, self.data, callbacks, loggers)
                for k, (run, callbacks, loggers) in enumerate(self.parts)
            ]
        self.call("setup", range(len(self.members)), stage)
        for member, state in zip(self.members, self.restored, strict=bool(self.restored)):
            for callback, own in zip(member.callbacks, state["callbacks"], strict=True):
                callback.load_state_dict(own)

    def go_on(self) -> None:
        """Restore the numbers of each member; the hooks before them are not called again, as in Lightning."""
        for member, state in zip(self.members, self.restored, strict=bool(self.restored)):
            member.callback_metrics = state["callback_metrics"]
            cast(MemberLogger, member.loggers[0]).numbers = dict(state["numbers"])
        self.restored = []

    def resume_state(self) -> list[dict[str, Any]]:
        """Return the state of each member, within an epoch."""
        return [member.resume_state() for member in self.members]

    def resume_from(self, state: list[dict[str, Any]]) -> None:
        """Keep a state until the members exist."""
        self.restored = state

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """End the callbacks."""
        self.call("teardown", range(len(self.members)), stage)

    def call(self, hook: str, members: Sequence[int], *arguments: Any) -> None:
        """Call a hook of the callbacks of members."""
        for k in members:
            member = self.members[k]
            member.refresh()
            for callback in member.callbacks:
                # The members' nets are equal but for their numbers, so that one summary is enough.
                if k == 0 or not isinstance(callback, ModelSummary):
                    getattr(callback, hook)(member, member.lightning_module, *arguments)

    def numbers(self, k: int) -> dict[str, float]:
        """Return the numbers that the callbacks of member k have logged since its last epoch."""
        return dict(cast(MemberLogger, self.members[k].loggers[0]).numbers) if self.members else {}

    def record(self, pl_module: PopulationModule) -> None:
        """Add the numbers that the members' callbacks have logged to the metrics of the epoch."""
        for k, member in enumerate(self.members):
            numbers = cast(MemberLogger, member.loggers[0]).numbers
            for name, number in numbers.items():
                unknown = torch.full((len(self.members),), torch.nan, dtype=torch.float64)
                pl_module.metrics.setdefault(name, unknown)[k] = number
            numbers.clear()


def _dispatch(hook: str) -> Any:
    """Return a hook that calls the members' callbacks."""

    def call(self: MemberCallbacks, trainer: pl.Trainer, pl_module: PopulationModule, *arguments: Any) -> None:
        members: Sequence[int] = range(len(self.members))
        if self.restored and hook in BEFORE_STEPS:
            if hook == BEFORE_STEPS[-1]:
                self.go_on()
            return
        if hook in EPOCH_HOOKS and trainer.state.fn == TrainerFn.FITTING:
            members = pl_module.active.nonzero().flatten().tolist()
        self.call(hook, members, *arguments)
        if hook == "on_train_epoch_end":
            self.record(pl_module)

    return call


for _hook in (*EPOCH_HOOKS, *RUN_HOOKS):
    setattr(MemberCallbacks, _hook, _dispatch(_hook))
