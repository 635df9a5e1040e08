"""Checks Trainer arguments against this machine, :func:`check_accelerator`, and the data, :func:`check_batches`.

Lightning raises for some of them when the training starts, and ignores others.
"""

from collections.abc import Mapping
from typing import Any

from pytorch_lightning.accelerators import AcceleratorRegistry, CUDAAccelerator, MPSAccelerator

from normlab.config.frozen import FrozenConfig
from normlab.data.sampling import batch_sizes
from normlab.errors import ConfigError, require


def check_accelerator(trainer: Mapping[str, Any]) -> None:
    """Raise ConfigError for an accelerator that is unknown, that this machine lacks, or that has no float64."""
    name = trainer.get("accelerator", "auto")
    known = ("auto", "gpu", *AcceleratorRegistry.available_accelerators())
    require(name in known, "trainer.accelerator", f"one of {', '.join(sorted(known))}", name)
    cuda, mps = CUDAAccelerator.is_available(), MPSAccelerator.is_available()
    if {"gpu": cuda or mps, "cuda": cuda, "mps": mps}.get(name) is False:
        kind = {"gpu": "GPU", "cuda": "CUDA device", "mps": "MPS device"}[name]
        raise ConfigError(f"trainer.accelerator={name}: this machine has no {kind} that torch can use; use cpu")
    if name in ("gpu", "auto") and mps and not cuda and str(trainer.get("precision")).startswith("64"):
        raise ConfigError(f"trainer.accelerator={name} is MPS here, which has no float64; use cpu")


def check_batches(config: FrozenConfig) -> None:
    """Raise ConfigError for Trainer arguments that the number of minibatches rules out."""
    trainer, data = config.trainer, config.data
    steps = trainer.get("accumulate_grad_batches", 1)
    accumulates = isinstance(steps, int) and steps >= 1
    require(accumulates, "trainer.accumulate_grad_batches", "an integer of at least 1", steps)
    if trainer.get("fast_dev_run"):
        return
    overfit = trainer.get("overfit_batches") or None
    batches = {"train": len(batch_sizes(data.train, data.batch_size)), "val": data.val > 0, "test": data.test > 0}
    served = {}
    for split, number in batches.items():
        key = "overfit_batches" if overfit and split != "test" else f"limit_{split}_batches"
        limit = trainer.get(key)
        served[split] = served_batches(f"trainer.{key}", limit, int(number)) if number else 0
    require(served["train"] > 0, "trainer.limit_train_batches", "above 0, as nothing trains otherwise", 0)
    metric = config.optimized_metric
    validates = served["val"] > 0 or not metric.startswith("val/")
    wanted = f"above 0, as optimized_metric={metric} is measured on these batches (or optimized_metric=train/loss)"
    require(validates, "trainer.limit_val_batches", wanted, 0)
    interval = trainer.get("val_check_interval")
    if isinstance(interval, int) and not isinstance(interval, bool):
        wanted = f"an integer from 1 to {served['train']}, the minibatches of an epoch, or a share of them"
        require(1 <= interval <= served["train"], "trainer.val_check_interval", wanted, interval)


def served_batches(key: str, limit: int | float | None, number: int) -> int:
    """Return the number of minibatches that a limit leaves: an integer is their number, a float their share."""
    if not isinstance(limit, float):
        return number if limit is None else min(limit, number)
    served = int(limit * number)
    wanted = f"0, or at least {1 / number:.2g}, one of {number} minibatches"
    require(limit == 0 or served >= 1, key, wanted, limit)
    return served
