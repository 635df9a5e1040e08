"""Metrics of a checkpoint on the splits of a dataset; the entry is :func:`evaluate_checkpoint`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from normlab import lightning  # noqa: F401 - comes before the other imports of Lightning
from normlab.config.frozen import FrozenConfig
from normlab.data.datamodule import InMemoryData
from normlab.data.sampling import split_rows
from normlab.errors import ConfigError, require
from normlab.evaluation.runs import checkpoint_path
from normlab.population.population import seeded
from normlab.population.resources import device, threads, threads_for
from normlab.results.sweep import Record
from normlab.training.build import data_seed, make_module, precision_of, shared_data
from normlab.training.population_module import PopulationModule
from normlab.training.stackability import footprint_of

SPLITTING_KEYS = (
    "seed",
    "train",
    "val",
    "test",
    "batch_size",
    "standardize",
    "standardize_target",
    "corrupt",
    "severity",
)
"""Keys of ``data`` that do not change the table that is split."""


@dataclass(frozen=True)
class Checkpoint:
    """The parameters and buffers of a net after an epoch, and the file that holds them.

    Attributes:
        epoch, step: 0 for the best checkpoint of a run that never had a finite metric.
    """

    path: Path
    state_dict: Mapping[str, Any]
    epoch: int
    step: int


def checkpoint_of(record: Record, name: str) -> Checkpoint:
    """Read the checkpoint ``best`` or ``last`` of a run, from its folder or from those of packed runs.

    Raises:
        ConfigError: as :func:`load_checkpoint`.
    """
    run = record.packed
    if run is None:
        return load_checkpoint(checkpoint_path(record.folder, name))
    return load_checkpoint(run.checkpoints, lambda content: packed_member(content, run.name, name))


def packed_member(content: Mapping[str, Any], run: str, name: str) -> dict[str, Any]:
    """Return the checkpoint of one run from the checkpoints of a population."""
    k, stacked = content["runs"].index(run), content[name]
    tensors = {
        key: value[k].clone() if isinstance(value, Tensor) else value
        for key, value in stacked["state_dict"].items()
    }
    return {"state_dict": tensors, **stacked["reached"][k]}


def load_checkpoint(
    path: Path, select: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda content: content
) -> Checkpoint:
    """Read a checkpoint that a training has written.

    Args:
        path: of the file.
        select: returns the checkpoint from the content of the file.

    Raises:
        ConfigError: if the file is missing, damaged or of another program.
    """
    if not path.is_file():
        raise ConfigError(f"{path} is missing: the run failed early or still trains; choose another run")
    try:
        content = select(torch.load(path, map_location="cpu", weights_only=True))
        return Checkpoint(path, dict(content["state_dict"]), int(content["epoch"]), int(content["step"]))
    except Exception as error:  # zip, pickle and torch each raise their own
        raise ConfigError(
            f"{path} is damaged or no checkpoint of normlab ({type(error).__name__}); train the run again with "
            "retrain=true, or choose another checkpoint"
        ) from error


def evaluate_checkpoint(
    checkpoint: Checkpoint, config: FrozenConfig, remedy: str
) -> tuple[dict[str, float], InMemoryData]:
    """Return loss and metrics on each split that has samples, and the data; nothing is trained.

    As in training, ``train_eval`` uses statistics re-estimated on the training split; ``val`` and ``test`` use
    those that ``statistics`` selects.

    Args:
        checkpoint: of a run.
        config: of the evaluation.
        remedy: for a checkpoint of another net.

    Raises:
        ConfigError: if the data or the net cannot be made, or the checkpoint is of another net.
    """
    data, precision = shared_data(config), precision_of(config)
    module = make_module([config], data).to(precision).eval()
    module.data = data
    require_fit(checkpoint, module.population.net, remedy)
    count = config.trainer.threads or threads_for(footprint_of(module, data, precision), 1)
    with threads(count), seeded(config.seed), torch.no_grad():
        module.population.net.load_state_dict(checkpoint.state_dict)
        if config.statistics == "reestimated":
            module.reestimate(data)
        module.to(device_of(config))
        metrics = measure_splits(module, data)
    return {name: values[0].item() for name, values in metrics.items()}, data


def measure_splits(module: PopulationModule, data: InMemoryData) -> dict[str, Tensor]:
    """Return loss and metrics of each split with samples, ``(K,)`` each, with the functions of the training."""
    x, y = module.expand_members(module.training_split())
    with module.evaluation.reestimated(x, data.batch_size):
        metrics = module.split_metrics("train_eval", module(x), y)
    module.measure_held_out(("val", 1), ("test", 2))
    return metrics | module.held_out_metrics


def device_of(config: FrozenConfig) -> torch.device:
    """Return the device of ``trainer.accelerator``.

    Raises:
        ConfigError: if this machine lacks it, or an evaluation does not support it.
    """
    accelerator = config.trainer.get("accelerator", "auto")
    chosen = device(accelerator)
    available = accelerator in ("auto", "cpu") or chosen.type == "cuda"
    require(available, "trainer.accelerator", "cpu or auto on this machine", accelerator)
    return chosen


def require_fit(checkpoint: Checkpoint, net: nn.Module, remedy: str) -> None:
    """Check that a checkpoint has the tensors of a net.

    Raises:
        ConfigError: for the first tensor that only one of them has, or whose shapes differ.
    """
    own, saved = shapes(net.state_dict()), shapes(checkpoint.state_dict)
    for name in dict.fromkeys([*own, *saved]):
        if own.get(name) != saved.get(name):
            has, needs = (f"shape {found[name]}" if name in found else "no such tensor" for found in (saved, own))
            raise ConfigError(
                f"{checkpoint.path} is of another net: {name} has {has} in the checkpoint and {needs} in the net "
                f"of this configuration; {remedy}"
            )


def shapes(state_dict: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor; other entries, the extra state of layers, are left out."""
    return {name: tuple(value.shape) for name, value in state_dict.items() if isinstance(value, Tensor)}


def shared_samples(trained: FrozenConfig, config: FrozenConfig, data: InMemoryData) -> int:
    """Return how many held-out samples of an evaluation were training samples of the run.

    Another seed splits the same table differently, and so do other split sizes.

    Args:
        trained: the configuration of the run.
        config: that of the evaluation.
        data: of the evaluation.
    """
    both = trained, config
    sources = [{key: node for key, node in c.data.items() if key not in SPLITTING_KEYS} for c in both]
    seeds = [data_seed(c) for c in both]
    if sources[0] != sources[1] or (data.generated and seeds[0] != seeds[1]):
        return 0
    samples, sizes = len(data.whole_table()), [(c.data.train, c.data.val, c.data.test) for c in both]
    train, *_ = split_rows(samples, sizes[0], seeds[0])
    _, *held_out = split_rows(samples, sizes[1], seeds[1])
    return int(torch.isin(torch.cat(held_out), train).sum())
