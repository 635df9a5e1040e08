"""Composes the jobs of a sweep as Hydra does, ten times as fast; the entry is :class:`Composer`."""

import pickle
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.core.utils import env_override
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict, read_write

from hydra_plugins.normlab.override_checks import parse
from normlab.config.messages import find_line
from normlab.results.folder import without_hydra

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
    task = without_hydra(config)
    refs = list(hydra_values(task))
    if refs:
        with current_job(config):
            resolve(refs)
    return task


def resolve_in_place(config: DictConfig) -> None:
    """Resolve ``${hydra:…}`` interpolations of a job's config in place, except in its ``hydra`` node."""
    refs = [ref for name in config if name != "hydra" for ref in hydra_values(config, str(name))]
    if refs:
        with current_job(config):
            resolve(refs)


def resolve(refs: list[NodeRef]) -> None:
    """Replace interpolations by their values; all values are read before the first replacement."""
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


def source_location(error: Exception, config: DictConfig) -> str:
    """Return "file, line N: " of the interpolation that caused an error.

    Empty if the error has no interpolation, or it comes from the command line.
    """
    interpolation = getattr(error, "interpolation", None)
    words: Any = OmegaConf.to_container(config.hydra.overrides.task)
    if not interpolation or any(interpolation in word for word in words):
        return ""
    sources = config.hydra.runtime.config_sources
    folders = [Path(source.path) for source in sources if source.schema == "file"]
    location = find_line(interpolation, folders)
    return f"{location}: " if location else ""


class Composer:
    """Composes each set of group choices of a sweep once, and sets the other values in copies.

    Hydra searches folders and merges files for every job, which takes 60 to 80 ms, although most jobs of a sweep
    differ only in numbers.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        assert isinstance(loader, ConfigLoaderImpl)
        self.loader = loader
        self.master = master
        self.is_group: dict[str, bool] = {}
        self.chosen: dict[tuple[str, ...], DictConfig] = {}
        self.composed: dict[tuple[str, ...], bytes] = {}
        self.jobs: dict[tuple[str, ...], DictConfig] = {}
        self.tasks: dict[tuple[str, ...], DictConfig] = {}

    def compose(self, overrides: Sequence[str], number: int) -> DictConfig:
        """Return the config of job ``number``, equal to that of Hydra's ``load_sweep_config`` and launcher."""
        words = tuple(overrides)
        if words not in self.jobs:
            self.jobs[words] = self.compose_uncached([parse(word) for word in words])
        config = self.jobs[words]
        with read_write(config), open_dict(config):
            # The sweep's folder is set only after all jobs are validated.
            config.hydra.sweep.dir = self.master.hydra.sweep.dir
            config.hydra.job.id = config.hydra.job.num = number
            folder = Path(config.hydra.sweep.dir) / job_subdir(config)
            config.hydra.runtime.output_dir = str(folder.absolute())
        return config

    def task(self, overrides: Sequence[str], config: DictConfig) -> DictConfig:
        """Return a composed job's config without its ``hydra`` node, read-only and cached.

        A config with ``${hydra:…}`` values is not cached, because they change when the sweep's folder is set.
        """
        words = tuple(overrides)
        if words not in self.tasks:
            task = task_config(config)
            if any(hydra_values(config, *task)):
                return task
            OmegaConf.set_readonly(task, True)
            self.tasks[words] = task
        return self.tasks[words]

    def is_choice(self, override: Override) -> bool:
        """Return True if an override chooses an option of a group, as ``model=bn`` does."""
        group = override.key_or_group
        if group not in self.is_group:
            self.is_group[group] = self.loader.repository.group_exists(group)
        return self.is_group[group]

    def choices(self, overrides: Sequence[str]) -> tuple[str, ...]:
        """Return the overrides of a job that choose an option of a group."""
        return tuple(word for word in overrides if self.is_choice(parse(word)))

    def choose(self, overrides: Sequence[str]) -> DictConfig:
        """Return the config composed from the group choices alone; shared, so callers must not change it."""
        choices = self.choices(overrides)
        if choices not in self.chosen:
            self.chosen[choices] = self.loader.load_sweep_config(self.master, list(choices))
            self.composed[choices] = pickle.dumps(self.chosen[choices])
        return self.chosen[choices]

    def compose_uncached(self, parsed: Sequence[Override]) -> DictConfig:
        """Copy the config of the group choices and apply the value overrides as Hydra does."""
        words = [str(override.input_line) for override in parsed]
        self.choose(words)
        # Unpickling takes a quarter of the time of deepcopy.
        config: DictConfig = pickle.loads(self.composed[self.choices(words)])
        values = [override for override in parsed if not self.is_choice(override)]
        ConfigLoaderImpl._apply_overrides_to_config(values, config)
        config.hydra.overrides.hydra += [str(value.input_line) for value in values if value.is_hydra_override()]
        task = [override for override in parsed if not override.is_hydra_override()]
        config.hydra.overrides.task = [override.input_line for override in task]
        naming = config.hydra.job.config.override_dirname
        config.hydra.job.override_dirname = get_overrides_dirname(
            overrides=task, kv_sep=naming.kv_sep, item_sep=naming.item_sep, exclude_keys=naming.exclude_keys
        )
        return config


def job_subdir(config: DictConfig) -> str:
    """Return the folder of a job relative to its sweep's folder."""
    unresolved = OmegaConf.to_container(config.hydra.sweep)["subdir"]  # type: ignore[index, call-overload]
    if HYDRA_VALUE.search(str(unresolved)):
        with current_job(config):
            return str(config.hydra.sweep.subdir)
    return str(config.hydra.sweep.subdir)
