"""Composes the jobs of a sweep as Hydra does, a hundred times as fast; the entry is :class:`Composer`."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.core.utils import env_override
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from hydra_plugins.normlab.override_checks import is_at_or_below, parse
from normlab.config.frozen import FrozenConfig, KeyPath, replaced
from normlab.config.validation import is_group, resolve
from normlab.errors import ConfigError
from normlab.results.folder import to_yaml

NodeRef = tuple[DictConfig | ListConfig, Any]
Reference = tuple[KeyPath, DictConfig | ListConfig, Any]
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
    yield from (
        (container, key) for _, container, key in references(node, *keys) if has_hydra_value(container, key)
    )


def has_hydra_value(node: DictConfig | ListConfig, key: Any) -> bool:
    """Return True if the value of a key is an interpolation with ``${hydra:…}``."""
    return HYDRA_VALUE.search(str(plain_value(node, key))) is not None


def references(node: DictConfig | ListConfig, *keys: Any) -> Iterator[Reference]:
    """Yield ``(path, container, key)`` of every interpolation and missing value, below ``keys`` or all keys."""
    all_keys: Iterable[Any] = range(len(node)) if isinstance(node, ListConfig) else node.keys()
    for key in keys or tuple(all_keys):
        child: Any = node._get_node(key)
        if child is not None and (child._is_interpolation() or child._is_missing()):
            yield (key,), node, key
        elif isinstance(child, DictConfig | ListConfig) and not child._is_none():
            yield from (((key, *path), container, name) for path, container, name in references(child))


def plain_value(node: Any, key: Any) -> Any:
    """Return the value of a key as plain data, with interpolations unresolved."""
    child = node._get_node(key)
    return OmegaConf.to_container(child) if OmegaConf.is_config(child) else child._value()


@dataclass(frozen=True)
class Job:
    """A job of a sweep as plain data.

    Attributes:
        config: the resolved configuration, without the node ``hydra``; or the error if it cannot be resolved.
        written: the configuration with interpolations unresolved, except those of Hydra's values.
        hydra: the node ``hydra``, with interpolations unresolved.
        folder: the output folder.
    """

    config: FrozenConfig | ConfigError
    written: dict[str, Any]
    hydra: dict[str, Any]
    folder: Path

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
        if self.hydra["output_subdir"] is None:
            return
        folder = self.folder / self.hydra["output_subdir"]
        folder.mkdir(parents=True, exist_ok=True)
        for name, node in (
            ("config", self.written),
            ("hydra", {"hydra": self.hydra}),
            ("overrides", self.overrides),
        ):
            (folder / f"{name}.yaml").write_text(to_yaml(node))


class Template:
    """A composed configuration, into which jobs that assign the same keys write their values one after the other.

    OmegaConf converts the values and resolves the interpolations; what the jobs share is plain data.

    Attributes:
        config: the configuration of the job that was written last, with its node ``hydra``.
        is_reusable: True if the assigned keys lie in plain groups, so that a job leaves nothing for the next.
    """

    def __init__(self, config: DictConfig, choices: Sequence[str], assigned: Sequence[Override]) -> None:
        self.config, self.choices = config, choices
        self.hydra_overrides: Any = OmegaConf.to_container(config.hydra.overrides.hydra)
        self.paths = [tuple(override.key_or_group.split(".")) for override in assigned]
        ConfigLoaderImpl._apply_overrides_to_config(list(assigned), config)
        self.is_reusable = all(group_at(config, path[:-1]) is not None for path in self.paths)
        self.references = list(references(config, *(key for key in config if key != "hydra")))
        self.hydra_values = [path for path, node, key in self.references if has_hydra_value(node, key)]
        self.constants: dict[KeyPath, Any] | None = None
        plain = {key: plain_value(config, key) for key in config if key != "hydra"}
        self.shared = FrozenConfig.of(plain | {"hydra": OmegaConf.to_container(config.hydra, enum_to_str=True)})

    def job(self, overrides: Sequence[Override], assigned: Sequence[Override], number: int, sweep: str) -> Job:
        """Write the values of a job into the configuration, and return the job.

        Args:
            overrides: all of the job.
            assigned: those of the keys that differ between the jobs of this template.
            number: of the job.
            sweep: folder of the sweep.
        """
        with read_write(self.config), open_dict(self.config):
            ConfigLoaderImpl._apply_overrides_to_config(list(assigned), self.config)
            paths = self.set_hydra(overrides, number, sweep)
        if self.is_reusable:
            paths += self.paths
        changed = {path: plain_value(group_at(self.config, path[:-1]), path[-1]) for path in paths}
        plain = replaced(self.shared, changed)
        hydra = plain.pop("hydra")
        config, written = self.resolve(plain)
        return Job(config, written, hydra, Path(sweep) / job_subdir(self.config))

    def set_hydra(self, overrides: Sequence[Override], number: int, sweep: str) -> list[KeyPath]:
        """Set the values that Hydra's launchers set for a job, and return their paths."""
        hydra, task = self.config.hydra, [override for override in overrides if not override.is_hydra_override()]
        naming = hydra.job.config.override_dirname
        hydra.overrides.task = [override.input_line for override in task]
        own = [str(override.input_line) for override in overrides if override.is_hydra_override()]
        hydra.overrides.hydra = [*self.hydra_overrides, *(word for word in own if word not in self.choices)]
        hydra.job.override_dirname = get_overrides_dirname(
            overrides=task, kv_sep=naming.kv_sep, item_sep=naming.item_sep, exclude_keys=naming.exclude_keys
        )
        hydra.job.id = hydra.job.num = number
        # The sweep's folder is made only after all jobs are validated.
        hydra.sweep.dir = sweep
        hydra.runtime.output_dir = str((Path(sweep) / job_subdir(self.config)).absolute())
        names = ("overrides.task", "overrides.hydra", "job.override_dirname", "job.id", "job.num")
        return [("hydra", *name.split(".")) for name in (*names, "sweep.dir", "runtime.output_dir")]

    def resolve(self, plain: dict[str, Any]) -> tuple[FrozenConfig | ConfigError, dict[str, Any]]:
        """Return the resolved configuration or the error, and the configuration with Hydra's values resolved."""
        values = self.constants
        if values is None:
            try:
                with current_job(self.config), without_hydra(self.config):
                    values = {path: resolved_value(node, key) for path, node, key in self.references}
            except OmegaConfBaseException:
                try:
                    resolve(task_config(self.config))
                    raise
                except ConfigError as error:
                    return error, plain
            if self.is_constant():
                self.constants = values
        written = replaced(plain, {path: values[path] for path in self.hydra_values})
        return FrozenConfig.of(replaced(plain, values)), written

    def is_constant(self) -> bool:
        """Return True if no interpolation depends on the keys that the jobs assign.

        An interpolation depends on the keys that stand in it, or above or below one, if it uses no resolver but
        ``oc.select``.
        """
        texts = [str(plain_value(node, key)) for _, node, key in self.references]
        named = {word for text in texts for word in re.findall(r"[\w.]+", text)}
        plain = all(re.fullmatch(r"\$\{(oc\.select:)?[\w.,-]+\}", text) for text in texts)
        assigned = [".".join(path) for path in self.paths]
        return plain and not any(
            is_at_or_below(word, key) or is_at_or_below(key, word) for word in named for key in assigned
        )


@contextmanager
def without_hydra(config: DictConfig) -> Iterator[None]:
    """Context manager in which a config has no node ``hydra``, as in a job; ``${hydra:…}`` can be resolved."""
    content: Any = config._content
    config.__dict__["_content"] = {key: node for key, node in content.items() if key != "hydra"}
    try:
        yield
    finally:
        config.__dict__["_content"] = content


def group_at(config: DictConfig, path: Sequence[str]) -> DictConfig | None:
    """Return the mapping at a path; None if it, or one above it, is an interpolation or no mapping."""
    node: Any = config
    for key in path:
        node = node._get_node(key)
        if not is_group(node):
            return None
    return node


def resolved_value(node: DictConfig | ListConfig, key: Any) -> Any:
    """Return the value of a key as plain data, with interpolations resolved."""
    value = node[key]
    return (
        OmegaConf.to_container(value, resolve=True, throw_on_missing=True) if OmegaConf.is_config(value) else value
    )


class Composer:
    """Composes each set of group choices of a sweep once, and writes the other values into it.

    Hydra searches folders and merges files for every job, which takes 60 to 80 ms, although most jobs of a sweep
    differ only in numbers.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        assert isinstance(loader, ConfigLoaderImpl)
        self.loader = loader
        self.master = master
        self.is_group: dict[str, bool] = {}
        self.chosen: dict[tuple[str, ...], DictConfig] = {}
        self.templates: dict[tuple[tuple[str, ...], ...], Template] = {}
        self.jobs: dict[tuple[Any, ...], Job] = {}

    def compose(self, words: Sequence[str], number: int) -> Job:
        """Return job ``number``, with the values of Hydra's ``load_sweep_config`` and launcher."""
        key = *words, number, self.master.hydra.sweep.dir
        if key not in self.jobs:
            self.jobs[key] = self.write(words, number)[0]
        return self.jobs[key]

    def compose_config(self, words: Sequence[str], number: int) -> DictConfig:
        """Return the configuration of job ``number`` as Hydra's ``load_sweep_config`` and launcher make it."""
        return deepcopy(self.write(words, number)[1].config)

    def write(self, words: Sequence[str], number: int) -> tuple[Job, Template]:
        """Write a job into the template for its keys, and return both."""
        overrides = [parse(word) for word in words]
        values = [override for override in overrides if not self.is_choice(override)]
        fixed = next((k for k in range(len(values), 0, -1) if not is_assignment(values[k - 1])), 0)
        assigned = values[fixed:]
        key = (
            self.choices(words),
            tuple(str(override.input_line) for override in values[:fixed]),
            tuple(override.key_or_group for override in assigned),
        )
        template = self.templates.get(key)
        if template is None:
            config = deepcopy(self.choose(words))
            ConfigLoaderImpl._apply_overrides_to_config(values[:fixed], config)
            template = Template(config, key[0], assigned)
            if template.is_reusable:
                self.templates[key] = template
        return template.job(overrides, assigned, number, self.master.hydra.sweep.dir), template

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
    if has_hydra_value(config.hydra.sweep, "subdir"):
        with current_job(config):
            return str(config.hydra.sweep.subdir)
    return str(config.hydra.sweep.subdir)
