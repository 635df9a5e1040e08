"""Options of a search: the sweeper, samplers and pruners that Hydra knows, and the checks of their values.

The entries are :func:`sampler_settings` and :func:`pruning_override`.
"""

import importlib.util
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from hydra_plugins.normlab.study import SamplerSettings
from normlab.errors import ConfigError, require


@dataclass
class SamplerConfig:
    """A sampler by name."""

    kind: str = MISSING


@dataclass
class TPESamplerConfig(SamplerConfig):
    """Options of Optuna's TPESampler; null is Optuna's default."""

    kind: str = "tpe"
    seed: int | None = None
    n_startup_trials: int = 10
    n_ei_candidates: int = 24
    multivariate: bool | None = None


@dataclass
class RandomSamplerConfig(SamplerConfig):
    """Options of the random sampler."""

    kind: str = "random"
    seed: int | None = None


@dataclass
class GridSamplerConfig(SamplerConfig):
    """The grid sampler, which goes through all combinations in the order of the command line."""

    kind: str = "grid"


@dataclass
class PrunerConfig:
    """A pruner by name."""

    kind: str = MISSING


@dataclass
class NoPrunerConfig(PrunerConfig):
    """No pruning."""

    kind: str = "none"


@dataclass
class MedianPrunerConfig(PrunerConfig):
    """Options of the median rule; see :class:`normlab.training.median_pruning.MedianRule`."""

    kind: str = "median"
    n_startup_trials: int = 5
    n_warmup_epochs: int = 0


@dataclass
class OptunaSweeperConfig:
    """The arguments of :class:`~hydra_plugins.normlab.sweeper_optuna.OptunaSweeper`."""

    _target_: str = "hydra_plugins.normlab.sweeper_optuna.OptunaSweeper"
    defaults: list[Any] = field(default_factory=lambda: [{"sampler": "tpe"}, {"pruner": "none"}])
    sampler: SamplerConfig = MISSING
    pruner: PrunerConfig = MISSING
    direction: Any = None
    storage: str | None = None
    study_name: str | None = None
    n_trials: int | None = None
    n_jobs: int = 5
    max_failure_rate: float = 0.0
    params: dict[str, Any] | None = None
    grids: Any = None


_STORE = ConfigStore.instance()
_STORE.store(group="hydra/sweeper", name="optuna", node=OptunaSweeperConfig, provider="normlab")
SAMPLERS = {"tpe": TPESamplerConfig, "random": RandomSamplerConfig, "grid": GridSamplerConfig}
PRUNERS = {"none": NoPrunerConfig, "median": MedianPrunerConfig}
for _name, _node in SAMPLERS.items():
    _STORE.store(group="hydra/sweeper/sampler", name=_name, node=_node, provider="normlab")
for _name, _pruner in PRUNERS.items():
    _STORE.store(group="hydra/sweeper/pruner", name=_name, node=_pruner, provider="normlab")


def sampler_settings(node: Mapping[str, Any]) -> SamplerSettings:
    """Return the settings of a sampler's node."""
    values = {str(key): value for key, value in node.items() if value is not None}
    kind = values.pop("kind")
    require(kind in SAMPLERS, "hydra/sweeper/sampler", " or ".join(SAMPLERS), kind)
    for key in values if kind == "grid" else values.keys() - {"seed"} if kind == "random" else ():
        raise ConfigError(f"hydra.sweeper.sampler.{key}: hydra/sweeper/sampler={kind} takes no such argument")
    seed = values.pop("seed", None)
    require(seed is None or seed >= 0, "hydra.sweeper.sampler.seed", "null or at least 0", seed)
    for key in ("n_startup_trials", "n_ei_candidates"):
        least = 1 if key == "n_ei_candidates" else 0
        require(values.get(key, 1) >= least, f"hydra.sweeper.sampler.{key}", f"at least {least}", values.get(key))
    return SamplerSettings(kind, seed, values)


def pruning_override(node: Mapping[str, Any]) -> list[str]:
    """Return the override by which the trials of a search are pruned; none without a pruner."""
    kind = node["kind"]
    require(kind in PRUNERS, "hydra/sweeper/pruner", " or ".join(PRUNERS), kind)
    if kind == "none":
        return []
    startup, warmup = node["n_startup_trials"], node["n_warmup_epochs"]
    return [f"++callbacks.pruning={{n_startup_trials:{startup},n_warmup_epochs:{warmup}}}"]


def require_optuna(sampler: SamplerSettings) -> None:
    """Raise ConfigError if Optuna is not installed, or its sampler takes no such argument."""
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError("hydra/sweeper=optuna needs the package optuna; pip install 'normlab[sweeps]'")
    from optuna.samplers import TPESampler

    taken = inspect.signature(TPESampler).parameters
    for key in sampler.options:
        if key not in taken or key == "constant_liar":
            known = ", ".join(name for name in taken if name != "constant_liar")
            raise ConfigError(f"hydra.sweeper.sampler.{key}: TPESampler takes no such argument; it takes {known}")
