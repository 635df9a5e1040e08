"""Composes the jobs of a sweep as Hydra does, ten times as fast; the entry is :class:`Composer`."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.core.utils import env_override
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict, read_write

from hydra_plugins.normlab.override_checks import parse
from normlab.config.frozen import FrozenConfig, replaced
from normlab.config.validation import resolve
from normlab.errors import ConfigError
from normlab.interrupts import interrupts
from normlab.results.folder import to_yaml
from normlab.results.result import write_atomically

NodeRef = tuple[DictConfig | ListConfig, Any]
HYDRA_VALUE = re.compile(r"\$\{\s*hydra:")


def job_environment(config: DictConfig) -> AbstractContextManager[None]:
    """Context manager that sets the environment variables ``hydra.job.env_set`` of a job."""
    return env_override(config.hydra.job.env_set)


@contextmanager
def current_job(config: DictConfig) -> Iterator[None]:
    """Context manager that sets HydraConfig and the job's environment variables, as Hydra does for a job."""
    instance, readonly = HydraConfig.instance(), config.hydra._get_node_flag("readonly")
    before = instance.cfg
    instance.set_config(config)
    try:
        with job_environment(config):
            yield
    finally:
        instance.cfg = before
        # HydraConfig made config.hydra read-only, but Hydra's launchers still write the job number into it.
        OmegaConf.set_readonly(config.hydra, readonly)


def task_config(config: DictConfig) -> DictConfig:
    """Copy a job's config without its ``hydra`` node; only ``${hydra:…}`` interpolations are resolved."""
    task = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    resolve_hydra_values(task, config)
    return task


def resolve_hydra_values(task: DictConfig, config: DictConfig) -> None:
    """Resolve ``${hydra:…}`` interpolations in place, except in the node ``hydra``.

    Args:
        task: holds the interpolations; a job's config or a copy of it.
        config: the job's config, with the node ``hydra``.
    """
    refs = [(node, key) for name in task if name != "hydra" for node, key in hydra_values(task, name)]
    if refs:
        with current_job(config):
            # All values are read before the first replacement.
            values = [node[key] for node, key in refs]
        for (node, key), value in zip(refs, values, strict=True):
            node[key] = value


def hydra_values(node: DictConfig | ListConfig, *keys: Any) -> Iterator[NodeRef]:
    """Yield ``(container, key)`` of every interpolation with ``${hydra:…}``, below ``keys`` or all keys."""
    all_keys: Iterable[Any] = range(len(node)) if isinstance(node, ListConfig) else node
    for key in keys or tuple(all_keys):
        child = node._get_node(key)
        assert not isinstance(child, list)
        if child is not None and child._is_interpolation():
            if HYDRA_VALUE.search(str(child._value())):
                yield node, key
        elif isinstance(child, DictConfig | ListConfig) and not (child._is_none() or child._is_missing()):
            yield from hydra_values(child)


@dataclass(frozen=True)
class Job:
    """A job of a sweep as plain data.

    Attributes:
        config: the resolved configuration, without the node ``hydra``; or the error if it cannot be resolved.
        written: the configuration with interpolations unresolved, except those of Hydra's values.
        hydra: the node ``hydra``, with interpolations unresolved.
        folder: the output folder.
        has_hydra_values: whether there are such values, which depend on the sweep's folder.
    """

    config: FrozenConfig | ConfigError
    written: dict[str, Any]
    hydra: dict[str, Any]
    folder: Path
    has_hydra_values: bool = False

    def in_sweep(self, folder: str) -> "Job":
        """Return the job in a sweep with another folder, which is made only after all jobs are validated."""
        before = self.hydra["sweep"]["dir"]
        if before == folder:
            return self
        path = Path(folder) / self.folder.relative_to(before)
        changes = {("sweep", "dir"): folder, ("runtime", "output_dir"): str(path.absolute())}
        return replace(self, hydra=replaced(self.hydra, changes), folder=path)

    @property
    def values(self) -> FrozenConfig:
        """The resolved configuration.

        Raises:
            ConfigError: if an interpolation cannot be resolved.
        """
        if isinstance(self.config, ConfigError):
            raise self.config
        return self.config

    @property
    def overrides(self) -> list[str]:
        """The overrides of the run, with interpolations unresolved."""
        return list(self.hydra["overrides"]["task"])

    def write_hydra(self) -> None:
        """Write the files config, hydra and overrides (.yaml), as Hydra's launchers do.

        Nothing is written if ``hydra.output_subdir`` is null.
        """
        folder, texts = self.folder / str(self.hydra["output_subdir"]), self.hydra_texts()
        if texts:
            folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_atomically(folder / f"{name}.yaml", text)

    def hydra_texts(self) -> dict[str, str]:
        """Return the texts of these files by name; empty if ``hydra.output_subdir`` is null."""
        if self.hydra["output_subdir"] is None:
            return {}
        nodes = {"config": self.written, "hydra": {"hydra": self.hydra}, "overrides": self.overrides}
        return {name: to_yaml(node) for name, node in nodes.items()}


class Composer:
    """Composes each set of group choices of a sweep once, and writes the values of the jobs into it.

    Hydra searches folders and merges files for every job, which takes 60 to 80 ms, although most jobs of a sweep
    differ only in numbers.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        assert isinstance(loader, ConfigLoaderImpl)
        self.loader = loader
        self.master = master
        self.is_group: dict[str, bool] = {}
        self.chosen: dict[tuple[str, ...], DictConfig] = {}
        self.written: dict[tuple[tuple[str, ...], ...], DictConfig] = {}
        self.jobs: dict[tuple[Any, ...], Job] = {}

    def compose(self, words: Sequence[str], number: int) -> Job:
        """Return job ``number`` as plain data, in the sweep's current folder."""
        interrupts.check()
        key = *words, number
        if key not in self.jobs or self.jobs[key].has_hydra_values:
            self.jobs[key] = self.compose_uncached(words, number)
        self.jobs[key] = self.jobs[key].in_sweep(self.master.hydra.sweep.dir)
        return self.jobs[key]

    def compose_uncached(self, words: Sequence[str], number: int) -> Job:
        """Compose a job, and convert it to plain data."""
        config = self.write(words, number)
        plain: Any = OmegaConf.to_container(config, enum_to_str=True)
        hydra, folder = plain.pop("hydra"), Path(config.hydra.sweep.dir) / job_subdir(config)
        with without_hydra(config) as task:
            has_hydra_values = any(hydra_values(task))
        if has_hydra_values:
            task = task_config(config)
            plain = OmegaConf.to_container(task)
        try:
            with job_environment(config), without_hydra(task):
                return Job(FrozenConfig.of(resolve(task)), plain, hydra, folder, has_hydra_values)
        except ConfigError as error:
            return Job(error, plain, hydra, folder, has_hydra_values)

    def compose_config(self, words: Sequence[str], number: int) -> DictConfig:
        """Return the config of job ``number``, equal to that of Hydra's ``load_sweep_config`` and launcher."""
        return deepcopy(self.write(words, number))

    def write(self, words: Sequence[str], number: int) -> DictConfig:
        """Write a job's values into the config of the last job that assigns the same keys, and return the config.

        Copying a config takes longer than writing values, and a job leaves nothing behind, as the next one assigns
        the same keys.
        """
        overrides = [parse(word) for word in words]
        values = [override for override in overrides if not self.is_choice(override)]
        fixed = next((k for k in range(len(values), 0, -1) if not is_assignment(values[k - 1])), 0)
        fixed_words = tuple(str(override.input_line) for override in values[:fixed])
        key = self.choices(words), fixed_words, tuple(override.key_or_group for override in values[fixed:])
        if key not in self.written:
            self.written[key] = deepcopy(self.choose(words))
            ConfigLoaderImpl._apply_overrides_to_config(values[:fixed], self.written[key])
        config, chosen = self.written[key], self.choose(words)
        ConfigLoaderImpl._apply_overrides_to_config(values[fixed:], config)
        with read_write(config), open_dict(config):
            hydra: Any = OmegaConf.to_container(chosen.hydra.overrides.hydra)
            hydra += [str(override.input_line) for override in values if override.is_hydra_override()]
            task = [override for override in overrides if not override.is_hydra_override()]
            config.hydra.overrides.hydra = hydra
            config.hydra.overrides.task = [override.input_line for override in task]
            naming = config.hydra.job.config.override_dirname
            config.hydra.job.override_dirname = get_overrides_dirname(
                overrides=task, kv_sep=naming.kv_sep, item_sep=naming.item_sep, exclude_keys=naming.exclude_keys
            )
            config.hydra.job.id = config.hydra.job.num = number
            config.hydra.sweep.dir = self.master.hydra.sweep.dir
            folder = Path(config.hydra.sweep.dir) / job_subdir(config)
            config.hydra.runtime.output_dir = str(folder.absolute())
        return config

    def is_choice(self, override: Override) -> bool:
        """Return True if an override chooses an option of a group, as ``model=bn`` does."""
        group = override.key_or_group
        if group not in self.is_group:
            self.is_group[group] = self.loader.repository.group_exists(group)
        return self.is_group[group]

    def choices(self, words: Sequence[str]) -> tuple[str, ...]:
        """Return the overrides of a job that choose an option of a group."""
        return tuple(word for word in words if self.is_choice(parse(word)))

    def choose(self, words: Sequence[str]) -> DictConfig:
        """Return the config composed from the group choices alone; shared, so callers must not change it."""
        choices = self.choices(words)
        if choices not in self.chosen:
            self.chosen[choices] = self.loader.load_sweep_config(self.master, list(choices))
        return self.chosen[choices]


def is_assignment(override: Override) -> bool:
    """Return True if an override replaces a value, by one that refers to no other and is no mapping."""
    changes_keys = override.is_delete() or override.is_add() or override.is_force_add()
    refers = any(mark in str(override.input_line) for mark in ("${", "???", "{"))
    return not (changes_keys or refers)


def job_subdir(config: DictConfig) -> str:
    """Return the folder of a job relative to its sweep's folder."""
    if any(hydra_values(config.hydra.sweep, "subdir")):
        with current_job(config):
            return str(config.hydra.sweep.subdir)
    return str(config.hydra.sweep.subdir)


@contextmanager
def without_hydra(config: DictConfig) -> Iterator[DictConfig]:
    """Context manager in which a job's config has no node ``hydra``, so that interpolations cannot refer to it."""
    content: Any = config._content
    config.__dict__["_content"] = {key: node for key, node in content.items() if key != "hydra"}
    try:
        yield config
    finally:
        config.__dict__["_content"] = content
