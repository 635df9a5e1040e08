"""Schemas of the configuration: the keys of each section, their types and their limits.

Default values are in ``conf/``. A section with a ``_target_`` also accepts the arguments of that callable.
:func:`normlab.config.validation.check` validates a composed configuration against these dataclasses.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from normlab.errors import ConfigError, require, require_net_sizes

MINIMIZED = ("loss", "mse", "mae")
MAXIMIZED = ("r2", "acc")
OWN_METRICS = (*MINIMIZED, *MAXIMIZED, "lr")
REPLICATES = ("data", "seed")
RECORDS = ("folders", "packed")
DEFAULT_SAVE_EVERY = "10min"
"""Interval at which the state of a training is saved for ``trainer.save_every=null``."""
SCHEDULER_TIMING = ("interval", "frequency", "monitor")
"""Keys of a scheduler that are not arguments of its ``_target_``, as in Lightning."""
SELECTIONS = ("no_decay", "groups")
"""Keys of an optimizer that select parameters, and are not arguments of its ``_target_``."""
REPORT_KEYS = ("baseline", "margin", "pairs", "max_replicates")
"""Keys that only the report reads; they do not affect training."""

CORRUPTIONS = ("noise", "blur", "contrast")
DEFAULT_DATA_SEED = 42
POPULATION = "normlab.training.population_module.PopulationModule"
"""The LightningModule that trains runs as one stack of nets; any other trains each run alone."""
LIGHTNING = "normlab.training.norm_module.NormModule"
"""The LightningModule of ``module=lightning``."""

STATISTICS = ("running", "reestimated", "batch")
SEED_RANGE = "an integer from 0 to 2^63 - 1"


@dataclass(kw_only=True, eq=False)
class DataConfig:
    """Split sizes, batch size, the seed for drawing and splitting the data, standardization, corruption.

    ``standardize`` centers and scales the inputs of all splits with the training split's mean and standard
    deviation; ``standardize_target`` does so for regression targets, so that a squared error is in units of their
    variance. ``corrupt`` and ``severity`` corrupt the inputs of the test split, see
    :class:`normlab.data.corruption.Corruption`.
    """

    train: int
    val: int
    test: int
    batch_size: int
    seed: int = DEFAULT_DATA_SEED
    standardize: bool = False
    standardize_target: bool = False
    corrupt: str | None = None
    severity: float | None = None

    def __post_init__(self) -> None:
        require(self.train >= 1, "data.train", "at least 1 sample", self.train)
        require(self.val >= 0, "data.val", "0 or more samples", self.val)
        require(self.test >= 0, "data.test", "0 or more samples", self.test)
        require(0 <= self.seed < 2**63, "data.seed", SEED_RANGE, self.seed)
        require(self.batch_size >= 1, "data.batch_size", "at least 1", self.batch_size)
        fits = self.batch_size <= self.train
        require(fits, "data.batch_size", f"at most the {self.train} training samples", self.batch_size)
        self.check_corruption()

    def check_corruption(self) -> None:
        """Raise :class:`ConfigError` unless kind and severity of the corruption are both null or fit together."""
        kind, severity = self.corrupt, self.severity
        require(kind in (None, *CORRUPTIONS), "data.corrupt", "null, noise, blur or contrast", kind)
        if kind is None:
            require(severity is None, "data.severity", "null without data.corrupt", severity)
            return
        most = 1.0 if kind == "contrast" else math.inf
        expected = f"a number > 0{', at most 1,' * (most == 1)} for data.corrupt={kind}"
        positive = severity is not None and math.isfinite(severity) and 0 < severity <= most
        require(positive, "data.severity", expected, "null" if severity is None else severity)
        corruptible = "at least 1 sample for data.corrupt, which acts on the test split"
        require(self.test >= 1, "data.test", corruptible, self.test)


@dataclass
class ModelConfig:
    """A normalizer: a layer for rows, one for images and a weight transform; each null or a ``_target_``.

    ``branch_scale`` is the scale of the branches of ``net=resmlp`` in this arm; conf/net/resmlp.yaml reads it.
    """

    norm: Any = None
    norm2d: Any = None
    weight: Any = None
    branch_scale: Any = None

    def __post_init__(self) -> None:
        for part in ("norm", "norm2d", "weight"):
            value = getattr(self, part)
            instantiable = value is None or (isinstance(value, Mapping) and "_target_" in value)
            require(instantiable, f"model.{part}", "null or a node with a _target_", value)
            momentum, eps = (value.get(name) if value else None for name in ("momentum", "eps"))
            if momentum is not None:
                inside = isinstance(momentum, int | float) and 0 <= momentum <= 1
                require(inside, f"model.{part}.momentum", "null or a number in [0, 1]", momentum)
            if eps is not None:
                positive = isinstance(eps, int | float) and math.isfinite(eps) and eps > 0
                require(positive, f"model.{part}.eps", "a finite number > 0", eps)


@dataclass
class NetConfig:
    """An architecture; its keys are the arguments of its ``_target_``."""

    hidden: list[int] = field(default_factory=list)
    channels: list[int] = field(default_factory=list)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require_net_sizes({"hidden": self.hidden, "channels": self.channels}, self.dropout)


@dataclass
class OptimizerConfig:
    """Hyperparameters common to the optimizers; other keys are arguments of the ``_target_``.

    The defaults here only let validation pass for missing keys; training uses the defaults of the ``_target_``.
    """

    lr: float = 1.0
    weight_decay: float = 0.0
    momentum: float = 0.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    no_decay: list[str] = field(default_factory=list)
    groups: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        positive = math.isfinite(self.lr) and self.lr > 0
        require(positive, "optimizer.lr", "a finite number > 0", self.lr)
        decays = math.isfinite(self.weight_decay) and self.weight_decay >= 0
        require(decays, "optimizer.weight_decay", "a finite number of 0 or more", self.weight_decay)
        require(0 <= self.momentum <= 1, "optimizer.momentum", "a number in [0, 1]", self.momentum)
        pair = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        require(pair, "optimizer.betas", "two numbers in [0, 1)", self.betas)
        require(self.eps > 0, "optimizer.eps", "a number > 0", self.eps)
        for name, group in self.groups.items():
            key = f"optimizer.groups.{name}"
            require(isinstance(group, Mapping), key, "a node with match", group)
            match = group.get("match")
            named = isinstance(match, list) and match and all(isinstance(entry, str) for entry in match)
            require(bool(named), f"{key}.match", "a list of norm, bias, hidden or regular expressions", match)


@dataclass
class SchedulerConfig:
    """A schedule; its keys are the arguments of its ``_target_``, if it has one, and :data:`SCHEDULER_TIMING`."""

    step_size: int = 1
    gamma: float = 0.1
    factor: float = 0.1
    patience: int = 0
    threshold: float = 0.0
    cooldown: int = 0
    min_lr: float = 0.0
    eta_min: float = 0.0
    T_max: int = 1
    interval: str = "epoch"
    frequency: int = 1
    monitor: str | None = None

    def __post_init__(self) -> None:
        known = self.interval in ("epoch", "step")
        require(known, "scheduler.interval", "epoch or step", self.interval)
        require(self.frequency >= 1, "scheduler.frequency", "at least 1", self.frequency)
        require(self.step_size >= 1, "scheduler.step_size", "at least 1", self.step_size)
        require(self.gamma > 0, "scheduler.gamma", "a number > 0", self.gamma)
        require(0 < self.factor < 1, "scheduler.factor", "a number between 0 and 1", self.factor)
        for name in ("patience", "threshold", "cooldown", "min_lr", "eta_min", "T_max"):
            require(getattr(self, name) >= 0, f"scheduler.{name}", "0 or more", getattr(self, name))


@dataclass
class ModuleConfig:
    """The LightningModule; its keys are arguments of its ``_target_``."""

    _target_: str = MISSING


@dataclass
class LossConfig:
    """A loss; its keys are the arguments of its ``_target_``. Without one, the task's loss is used."""


@dataclass(frozen=True)
class SaveEvery:
    """The interval at which the state of a training is saved.

    Attributes:
        seconds: of the interval, ∞ without one in time.
        epochs: of the interval, 0 without one in epochs.
    """

    seconds: float = math.inf
    epochs: int = 0

    @classmethod
    def of(cls, value: Any) -> "SaveEvery":
        """Return the interval of ``trainer.save_every``.

        >>> SaveEvery.of("30s"), SaveEvery.of(5), SaveEvery.of(None).seconds
        (SaveEvery(seconds=30.0, epochs=0), SaveEvery(seconds=inf, epochs=5), 600.0)
        """
        if value is False:
            return cls()
        if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
            return cls(epochs=value)
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|min|h)", DEFAULT_SAVE_EVERY if value is None else str(value))
        expected = "a time such as 30s, 10min or 2h, a number of epochs, null or false"
        require(match is not None, "trainer.save_every", expected, value)
        assert match is not None
        return cls(seconds=float(match[1]) * {"s": 1, "min": 60, "h": 3600}[match[2]])

    @property
    def never(self) -> bool:
        """Whether the state is not saved, not even when the training is interrupted."""
        return self.seconds == math.inf and not self.epochs


@dataclass
class TrainerConfig:
    """Arguments of ``pytorch_lightning.Trainer`` with limits, and ``threads``, ``compile`` and ``save_every``.

    ``precision`` and ``devices`` may be anything that Lightning takes, unless the module is the population.
    """

    max_epochs: int = MISSING
    precision: Any = "32-true"
    check_val_every_n_epoch: int = 1
    gradient_clip_val: float | None = None
    gradient_clip_algorithm: str = "norm"
    threads: int | None = None
    compile: bool | None = None
    devices: Any = 1
    save_every: Any = None

    def __post_init__(self) -> None:
        require(self.max_epochs >= 0, "trainer.max_epochs", "0 or more", self.max_epochs)
        every = self.check_val_every_n_epoch
        require(every >= 1, "trainer.check_val_every_n_epoch", "at least 1", every)
        clip = self.gradient_clip_val
        require(clip is None or clip > 0, "trainer.gradient_clip_val", "null or a number > 0", clip)
        algorithm = self.gradient_clip_algorithm
        require(algorithm in ("norm", "value"), "trainer.gradient_clip_algorithm", "norm or value", algorithm)
        require(self.threads is None or self.threads >= 1, "trainer.threads", "null or at least 1", self.threads)
        SaveEvery.of(self.save_every)


@dataclass
class EarlyStoppingConfig:
    """Stop a run whose metric has not improved by ``min_delta`` for ``patience`` validations."""

    monitor: str
    patience: int
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        require(self.patience >= 1, "callbacks.early_stopping.patience", "at least 1", self.patience)
        require(self.min_delta >= 0, "callbacks.early_stopping.min_delta", "0 or more", self.min_delta)


@dataclass
class PruningConfig:
    """Stop a trial of a search by the median rule; set by ``hydra/sweeper/pruner=median``."""

    n_startup_trials: int
    n_warmup_epochs: int

    def __post_init__(self) -> None:
        require(
            self.n_startup_trials >= 1,
            "hydra.sweeper.pruner.n_startup_trials",
            "at least 1",
            self.n_startup_trials,
        )
        require(
            self.n_warmup_epochs >= 0, "hydra.sweeper.pruner.n_warmup_epochs", "0 or more", self.n_warmup_epochs
        )


@dataclass
class CallbacksConfig:
    """Early stopping, and in ``extra`` further Lightning callbacks by ``_target_``."""

    early_stopping: EarlyStoppingConfig | None = None
    pruning: PruningConfig | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class LoggerConfig:
    """Loggers besides ``curves.csv``: TensorBoard, and Lightning loggers by ``_target_`` in ``extra``."""

    tensorboard: bool = True
    flush_seconds: float = 5.0
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.flush_seconds >= 0, "logger.flush_seconds", "0 or more", self.flush_seconds)


@dataclass
class Config:
    """The top-level keys of a run; each group in :data:`SECTIONS` has its own schema."""

    seed: int
    optimized_metric: str
    direction: str | None = None
    target: float | None = None
    statistics: str = "running"
    stats_warmup_epochs: int = 0
    trainable: str = "all"
    train_eval_every: int | None = None
    retrain: bool = False
    ckpt_path: str | None = None
    timing: bool = False
    records: str = "folders"
    replicate: str = "data"
    baseline: str | None = None
    margin: float | None = None
    pairs: bool = False
    max_replicates: int | None = None
    claim: Any = None
    metrics: dict[str, Any] = field(default_factory=dict)
    probes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.replicate in REPLICATES, "replicate", " or ".join(REPLICATES), self.replicate)
        require(self.records in RECORDS, "records", " or ".join(RECORDS), self.records)
        every = self.train_eval_every
        require(every is None or every >= 1, "train_eval_every", "null or at least 1 epoch", every)
        named = self.baseline is None or self.baseline.strip() != ""
        require(named, "baseline", "null or one of the compared settings, such as ln", repr(self.baseline))
        close = self.margin is None or (math.isfinite(self.margin) and self.margin > 0)
        require(close, "margin", "null or a finite number > 0, such as 0.05 for 5 %", self.margin)
        most = self.max_replicates
        require(most is None or most >= 2, "max_replicates", "null or at least 2 replicates", most)
        require(self.stats_warmup_epochs >= 0, "stats_warmup_epochs", "0 or more epochs", self.stats_warmup_epochs)
        expected = "all, norm or a part of a parameter's name, or one of these after random:"
        require(self.trainable.removeprefix("random:") != "", "trainable", expected, repr(self.trainable))
        require(0 <= self.seed < 2**63, "seed", SEED_RANGE, self.seed)
        require(self.statistics in STATISTICS, "statistics", "running, reestimated or batch", self.statistics)
        for group in ("metrics", "probes"):
            for name, node in getattr(self, group).items():
                require_name(group, str(name))
                instantiable = isinstance(node, Mapping) and "_target_" in node
                require(instantiable, f"{group}.{name}", "a node with a _target_", node)
        direction_of(self.optimized_metric, self.direction, "optimized_metric")


def require_name(group: str, name: str) -> None:
    """Raise :class:`ConfigError` for metric or probe names unfit for files, or used by a task metric.

    >>> require_name("probes", "a,b")
    Traceback (most recent call last):
    normlab.errors.ConfigError: probes must have names of letters, digits, _ and -, got 'a,b'; rename it
    """
    if not re.fullmatch(r"[\w-]+", name):
        raise ConfigError(f"{group} must have names of letters, digits, _ and -, got {name!r}; rename it")
    if group == "metrics" and name in OWN_METRICS:
        own = ", ".join(OWN_METRICS)
        raise ConfigError(f"metrics.{name} must not have the name of a task metric ({own}); use metrics.my_{name}")


SECTIONS = {
    "data": DataConfig,
    "net": NetConfig,
    "model": ModelConfig,
    "optimizer": OptimizerConfig,
    "scheduler": SchedulerConfig,
    "module": ModuleConfig,
    "loss": LossConfig,
    "trainer": TrainerConfig,
    "callbacks": CallbacksConfig,
    "logger": LoggerConfig,
}

EXAMPLES = {
    "module._target_": "mylab.MyModule",
    "data.train": "600",
    "data.val": "200",
    "data.test": "200",
    "data.batch_size": "60",
    "optimizer.lr": "0.01",
    "trainer.max_epochs": "100",
    "callbacks.early_stopping.monitor": "val/loss",
    "callbacks.early_stopping.patience": "10",
    "seed": "0",
    "optimized_metric": "val/loss",
}
"""An example value for each key without a default, shown if the key is missing."""


def direction_of(metric: str, direction: str | None, key: str = "optimized_metric") -> str:
    """Return ``"min"`` or ``"max"``: ``direction`` if given, otherwise the known direction of the metric.

    >>> direction_of("val/loss", None), direction_of("val/acc", None), direction_of("val/f1", "max")
    ('min', 'max', 'max')
    """
    split, _, name = metric.partition("/")
    require(split in ("train", "val") and name != "", key, "train/… or val/…, such as val/loss", metric)
    if direction is None:
        known = name in MINIMIZED + MAXIMIZED
        require(known, key, f"one of {', '.join(MINIMIZED + MAXIMIZED)} unless direction is set", metric)
        return "min" if name in MINIMIZED else "max"
    require(direction in ("min", "max"), "direction", "min, max or null", direction)
    return direction
