"""What a person may choose, and what is refused before anything trains.

The values live in ``conf/``; the dataclasses here give each section its keys, types and limits. A section with a
``_target_`` may further hold whatever that callable takes by name: Hydra's ``_target_`` is the only registry.
"""

import difflib
import inspect
import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any, get_type_hints

from hydra.errors import InstantiationException
from hydra.utils import get_object
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

HYDRA_KEYS = ("_target_", "_partial_", "_args_", "_recursive_", "_convert_")

WORDS = {int: "a whole number", float: "a number", bool: "true or false", list[int]: "a list of whole numbers"}

MINIMIZED = ("loss", "mse", "mae")
MAXIMIZED = ("r2", "acc")


# What it logs about a _target_ that cannot be loaded, it raises as well.
logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)


class ConfigError(ValueError):
    """A choice that cannot be carried out, said in one line."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return the choice a person most likely meant by ``name``.

    >>> nearest("modle", ["data", "model", "seed"])
    'model'
    >>> nearest("learning_rate", ["betas", "eps", "lr"])
    'lr'
    """

    def likeness(choice: str) -> float:
        initials = "".join(word[0] for word in name.split("_") if word)
        return 1.0 if initials == choice else difflib.SequenceMatcher(None, name, choice).ratio()

    return max(choices, key=likeness)


def require(condition: bool, key: str, expected: str, got: object) -> None:
    """Raise :class:`ConfigError` in the one form that every limit is reported in.

    >>> require(False, "optimizer.lr", "a number > 0", -1)
    Traceback (most recent call last):
    normlab.config.ConfigError: optimizer.lr must be a number > 0, got -1
    """
    if not condition:
        raise ConfigError(f"{key} must be {expected}, got {got}")


@dataclass(kw_only=True, eq=False)
class DataConfig:
    """Sizes of the three splits, the batch, and the seed that the dataset is drawn and split with."""

    train: int
    val: int
    test: int
    batch_size: int
    seed: int
    standardize: bool = False

    def __post_init__(self) -> None:
        require(self.train >= 1, "data.train", "at least 1 sample", self.train)
        require(self.val >= 0, "data.val", "0 or more samples", self.val)
        require(self.test >= 0, "data.test", "0 or more samples", self.test)
        require(self.seed >= 0, "data.seed", "0 or more", self.seed)
        require(self.batch_size >= 1, "data.batch_size", "at least 1", self.batch_size)
        fits = self.batch_size <= self.train
        require(fits, "data.batch_size", f"at most the {self.train} training samples", self.batch_size)


@dataclass
class ModelConfig:
    """A normalizer: what a net puts into its slots; each part null or a ``_target_``."""

    norm: Any = None
    norm2d: Any = None
    weight: Any = None

    def __post_init__(self) -> None:
        for part in fields(self):
            value = getattr(self, part.name)
            made = value is None or (isinstance(value, Mapping) and "_target_" in value)
            require(made, f"model.{part.name}", "null or a node with a _target_", value)
            momentum = value.get("momentum") if value else None
            if momentum is not None:
                inside = isinstance(momentum, int | float) and 0 <= momentum <= 1
                require(inside, f"model.{part.name}.momentum", "null or a number in [0, 1]", momentum)


@dataclass
class NetConfig:
    """An architecture; its keys are the arguments of its ``_target_``, which checks their values."""

    hidden: list[int] = field(default_factory=list)


@dataclass
class OptimizerConfig:
    """The numbers that optimizers share; the rest are the arguments of its ``_target_``."""

    lr: float = MISSING
    weight_decay: float = 0.0
    momentum: float = 0.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])

    def __post_init__(self) -> None:
        positive = math.isfinite(self.lr) and self.lr > 0
        require(positive, "optimizer.lr", "a finite number > 0", self.lr)
        decays = math.isfinite(self.weight_decay) and self.weight_decay >= 0
        require(decays, "optimizer.weight_decay", "a finite number of 0 or more", self.weight_decay)
        require(0 <= self.momentum <= 1, "optimizer.momentum", "a number in [0, 1]", self.momentum)
        pair = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        require(pair, "optimizer.betas", "two numbers in [0, 1)", self.betas)


@dataclass
class SchedulerConfig:
    """A learning-rate schedule; its keys are the arguments of its ``_target_``, without which it has none."""


@dataclass
class TrainerConfig:
    """What the training loop adds to the arguments of ``pytorch_lightning.Trainer``."""

    max_epochs: int = MISSING
    precision: str = "32-true"
    check_val_every_n_epoch: int = 1
    gradient_clip_val: float | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        require(self.max_epochs >= 0, "trainer.max_epochs", "0 or more", self.max_epochs)
        precisions = ("32-true", "64-true")
        require(self.precision in precisions, "trainer.precision", " or ".join(precisions), self.precision)
        every = self.check_val_every_n_epoch
        require(every >= 1, "trainer.check_val_every_n_epoch", "at least 1", every)
        clip = self.gradient_clip_val
        require(clip is None or clip > 0, "trainer.gradient_clip_val", "null or a number > 0", clip)
        require(self.threads is None or self.threads >= 1, "trainer.threads", "null or at least 1", self.threads)


@dataclass
class EarlyStoppingConfig:
    """Stop a run whose metric has not improved by ``min_delta`` for ``patience`` validations."""

    monitor: str
    patience: int
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        direction_of(self.monitor, None, "callbacks.early_stopping.monitor")
        require(self.patience >= 1, "callbacks.early_stopping.patience", "at least 1", self.patience)
        require(self.min_delta >= 0, "callbacks.early_stopping.min_delta", "0 or more", self.min_delta)


@dataclass
class CallbacksConfig:
    """What watches a run; ``extra`` holds any further Lightning callback by its ``_target_``."""

    early_stopping: EarlyStoppingConfig | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class LoggerConfig:
    """Where curves go besides ``curves.csv``; ``extra`` holds further Lightning loggers by ``_target_``."""

    tensorboard: bool = True
    flush_seconds: float = 5.0
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.flush_seconds >= 0, "logger.flush_seconds", "0 or more", self.flush_seconds)


@dataclass
class Config:
    """A run: what ``python train.py`` composes, apart from the groups, each of which has a schema of its own."""

    seed: int
    optimized_metric: str
    direction: str | None = None

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**63, "seed", "0 or more", self.seed)
        direction_of(self.optimized_metric, self.direction, "optimized_metric")


SECTIONS = {
    "data": DataConfig,
    "net": NetConfig,
    "model": ModelConfig,
    "optimizer": OptimizerConfig,
    "scheduler": SchedulerConfig,
    "trainer": TrainerConfig,
    "callbacks": CallbacksConfig,
    "logger": LoggerConfig,
}


def direction_of(metric: str, direction: str | None, key: str = "optimized_metric") -> str:
    """Return ``"min"`` or ``"max"``: as given, or what the metric's name is known for.

    >>> direction_of("val/loss", None), direction_of("val/acc", None), direction_of("val/f1", "max")
    ('min', 'max', 'max')
    """
    split, _, name = metric.partition("/")
    require(split in ("train", "val") and name != "", key, "train/… or val/…, as val/loss", metric)
    if direction is None:
        known = name in MINIMIZED + MAXIMIZED
        require(known, key, f"one of {', '.join(MINIMIZED + MAXIMIZED)}, or come with direction", metric)
        return "min" if name in MINIMIZED else "max"
    require(direction in ("min", "max"), "direction", "min, max or null", direction)
    return direction


def check(config: DictConfig) -> None:
    """Refuse a composed config that has a key no schema knows, a value of another type, or an impossible one.

    Raises:
        ConfigError: the key, what was expected and what came, in one line.
    """
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(first_line(error)) from error
    assert isinstance(plain, dict)
    for key in plain:
        if key not in SECTIONS and key not in Config.__annotations__:
            refuse_key("", str(key), [*SECTIONS, *Config.__annotations__], "no such key")
    check_section("", Config, {key: value for key, value in plain.items() if key not in SECTIONS})
    for name in SECTIONS:
        check_group(name, json.dumps(plain.get(name)))
    metric, data = plain["optimized_metric"], plain["data"]
    require(data["val"] > 0 or metric.startswith("train/"), "optimized_metric", "train/… as data.val is 0", metric)


@lru_cache(maxsize=4096)
def check_group(name: str, text: str) -> None:
    """Check one group, given as JSON, once for all jobs that have it: a check takes milliseconds."""
    group = json.loads(text)
    for path, node in targets(group, name):
        check_target(path, node)
    check_section(name, SECTIONS[name], group)


def targets(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every mapping with a ``_target_`` below ``node``, with its dotted path."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield path, dict(node)
        for key, value in node.items():
            yield from targets(value, f"{path}.{key}" if path else str(key))


def parameters_of(path: str, target: str) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of the callable that ``target`` names."""
    try:
        return inspect.signature(get_object(target)).parameters
    except (InstantiationException, ImportError, AttributeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}._target_={target} cannot be loaded: {reason}") from error


def check_target(path: str, node: dict[str, Any]) -> None:
    """Refuse keys that the ``_target_`` does not take."""
    parameters = parameters_of(path, node["_target_"])
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    own = {f.name for f in fields(SECTIONS["trainer"])} if path == "trainer" else set()
    for key in node:
        if key not in HYDRA_KEYS and key not in parameters and key not in own:
            refuse_key(path, key, set(parameters) | own, f"{node['_target_']} takes no such argument")


def refuse_key(path: str, key: str, known: Iterable[str], reason: str) -> None:
    """Raise :class:`ConfigError` for an unknown key, with the nearest right one."""
    known = sorted(known)
    name = f"{path}.{key}" if path else key
    hint = f"; did you mean {path + '.' if path else ''}{nearest(key, known)}?" if known else ""
    raise ConfigError(f"{name}: {reason}{hint}")


def check_section(path: str, schema: type, node: Any) -> None:
    """Refuse keys that the schema does not have, values of another type, and values outside its limits."""
    if not isinstance(node, Mapping):
        raise ConfigError(f"{path} must be a group of keys, got {node}")
    known = {f.name for f in fields(schema)}
    if "_target_" not in node:
        for key in node:
            if key not in known:
                refuse_key(path, key, known, "no such key")
    given = {key: value for key, value in node.items() if key in known}
    try:
        OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), given))
    except OmegaConfBaseException as error:
        key = error.full_key or ""
        name = ".".join(part for part in (path, key) if part)
        if key not in given:
            raise ConfigError(f"{name}: {first_line(error)}") from error
        kind = get_type_hints(schema)[key]
        raise ConfigError(f"{name} must be {WORDS.get(kind, kind)}, got {given[key]}") from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
