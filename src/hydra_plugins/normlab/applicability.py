"""Overrides of keys that only some jobs of a sweep have, as ``model.norm.momentum`` with ``model=bn,nobn``."""

from collections.abc import Iterator, Sequence

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf

from hydra_plugins.normlab.composer import Composer
from hydra_plugins.normlab.typed import is_below, key_of, parse
from normlab.results.names import run_names

Jobs = Sequence[Sequence[str]]


def applicable(jobs: Jobs, composer: Composer) -> tuple[list[list[str]], list[str]]:
    """Leave an override out of the jobs that lack its key, where at least one other job of the sweep has it.

    Returns:
        The jobs, those that became equal once; and a sentence for each key that does not apply everywhere.
    """
    lacking = [set(missing_keys(job, composer)) for job in jobs]
    had = {
        key
        for job, missing in zip(jobs, lacking, strict=True)
        for word in job
        if (key := key_of(parse(word))) not in missing
    }
    kept = {
        tuple(word for word in job if (key := key_of(parse(word))) not in missing or key not in had): None
        for job, missing in zip(jobs, lacking, strict=True)
    }
    partial = dict.fromkeys(key for missing in lacking for key in sorted(missing & had))
    sentences = [f"{key} does not apply to {', '.join(where(jobs, lacking, key, composer))}" for key in partial]
    return [list(job) for job in kept], sentences


def missing_keys(job: Sequence[str], composer: Composer) -> Iterator[str]:
    """Yield the keys of a job's overrides that its config lacks; of a key to add, its group counts."""
    config = composer.choose(job)
    introduced: list[str] = []
    for override in map(parse, job):
        key = override.key_or_group
        if override.is_hydra_override() or composer.is_choice(override):
            continue
        adds = override.is_add() or override.is_force_add()
        if not (has(config, override, adds) or any(is_below(key, own) for own in introduced)):
            yield key_of(override)
        if adds or isinstance(override.value(), dict):
            introduced.append(key)


def has(config: DictConfig, override: Override, adds: bool) -> bool:
    """Return whether a config has the key of an override, or the group that a key is added to."""
    parent, _, name = override.key_or_group.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    if isinstance(node, ListConfig):
        return True
    is_group = isinstance(node, DictConfig) and not node._is_none()
    return is_group and (adds or name in node.keys())  # noqa: SIM118 - `in` leaves out what is missing


def where(jobs: Jobs, lacking: Sequence[set[str]], key: str, composer: Composer) -> list[str]:
    """Return the choices of a key's group that lack it, or the names of the jobs where those do not tell."""
    group = key.partition(".")[0]
    labels = [f"{group}={composer.choose(job).hydra.runtime.choices.get(group)}" for job in jobs]
    without = {label for label, missing in zip(labels, lacking, strict=True) if key in missing}
    if without & {label for label, missing in zip(labels, lacking, strict=True) if key not in missing}:
        labels = run_names(jobs)
    return list(dict.fromkeys(label for label, missing in zip(labels, lacking, strict=True) if key in missing))
