"""Hydra's own values, such as ``${hydra:runtime.output_dir}``, in the config of a job that has not started."""

import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import env_override
from omegaconf import DictConfig, ListConfig, OmegaConf

from normlab.config.yaml_files import find_line
from normlab.results.folder import without_hydra

Place = tuple[DictConfig | ListConfig, Any]
HYDRA_VALUE = re.compile(r"\$\{\s*hydra:")


def environment_of(config: DictConfig) -> AbstractContextManager[None]:
    """Set the environment variables of a job, ``hydra.job.env_set``, for a while."""
    return env_override(config.hydra.job.env_set)


@contextmanager
def current_job(config: DictConfig) -> Iterator[None]:
    """Set HydraConfig and the job's environment variables, as Hydra does while a job runs."""
    instance, readonly = HydraConfig.instance(), config.hydra._get_node_flag("readonly")
    before = instance.cfg
    instance.set_config(config)
    try:
        with environment_of(config):
            yield
    finally:
        instance.cfg = before
        # HydraConfig makes Hydra's part read-only; its launchers still write the job's number into it.
        OmegaConf.set_readonly(config.hydra, readonly)


def task_of(config: DictConfig) -> DictConfig:
    """Copy a job's config without Hydra's part; Hydra's values are resolved, other interpolations stay written."""
    task = without_hydra(config)
    found = list(hydra_values(task))
    if found:
        with current_job(config):
            resolve(found)
    return task


def resolve_in_place(config: DictConfig) -> None:
    """Resolve Hydra's values in a job's config outside Hydra's own part."""
    found = [place for name in config if name != "hydra" for place in hydra_values(config, str(name))]
    if found:
        with current_job(config):
            resolve(found)


def resolve(places: list[Place]) -> None:
    """Replace interpolations by their values; all are read before the first one is replaced."""
    values = [node[key] for node, key in places]
    for (node, key), value in zip(places, values, strict=True):
        node[key] = value


def hydra_values(node: DictConfig | ListConfig, *keys: Any) -> Iterator[Place]:
    """Yield the places, as containers and keys, whose interpolation refers to ``${hydra:…}``."""
    everything: Iterable[Any] = range(len(node)) if isinstance(node, ListConfig) else node
    for key in keys or tuple(everything):
        child = node._get_node(key)
        assert not isinstance(child, list)
        if child is not None and child._is_interpolation():
            if HYDRA_VALUE.search(str(child._value())):
                yield node, key
        elif isinstance(child, DictConfig | ListConfig) and not (child._is_none() or child._is_missing()):
            yield from hydra_values(child)


def place_of(error: Exception, config: DictConfig) -> str:
    """Return the file and line of the interpolation that an error is about, empty if it was typed."""
    written = getattr(error, "written", None)
    words: Any = OmegaConf.to_container(config.hydra.overrides.task)
    if not written or any(written in word for word in words):
        return ""
    sources = config.hydra.runtime.config_sources
    folders = [Path(source.path) for source in sources if source.schema == "file"]
    place = find_line(written, folders)
    return f"{place}: " if place else ""
