"""Data-parallel training of one run on several devices: :class:`SharedBatchStrategy` and :func:`strategy_of`."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities.data import extract_batch_size
from torch import Tensor
from torch.optim import Optimizer

from normlab.errors import ConfigError, require
from normlab.norms.shared_batch import Share, shared_batch

DDP = re.compile(r"ddp(?:_spawn|_fork|_notebook)?(?:_find_unused_parameters_(true|false))?")
"""Lightning's names of its strategy. They differ in how it starts processes, which is normlab's task here."""


class SharedBatchStrategy(DDPStrategy):
    """Lightning's DDP on shares of each minibatch that may differ in size, in processes that exist already.

    DDP averages the gradients of the processes. Each process therefore scales its loss by its samples, relative to
    the mean of the processes, so that the average is the gradient of the mean over all samples. Buffers, such as
    running statistics, are those of the first process after each step.

    Args:
        options: arguments of torch's ``DistributedDataParallel``, such as ``find_unused_parameters``.

    Attributes:
        store: path of the file in which the processes of this run find each other; unlike a port, no other run
            can have it.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.store = ""
        self.loss_scale = 1.0

    def _configure_launcher(self) -> None:
        """Set no launcher: Lightning's would run the whole command in each process, with all runs of a sweep."""

    def setup_distributed(self) -> None:
        """Join the processes of this run, unless they are joined."""
        if not dist.is_initialized():
            backend = self._get_process_group_backend()
            dist.init_process_group(
                backend,
                init_method=f"file://{self.store}",
                timeout=self._timeout,
                world_size=self.world_size,
                rank=self.global_rank,
            )
        super().setup_distributed()

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Take the module's training step on this process's share of a minibatch."""
        share = Share.of(extract_batch_size(args[0]), self.root_device)
        self.loss_scale = share.samples * self.world_size / share.total
        with shared_batch(share):
            return super().training_step(*args, **kwargs)

    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        """Backpropagate the loss, scaled by this process's share of the samples."""
        return super().backward(closure_loss * self.loss_scale, optimizer, *args, **kwargs)

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], *args: Any, **kwargs: Any) -> Any:
        """Take a step, then copy the buffers of the first process; DDP does so only before the next step."""
        output = super().optimizer_step(optimizer, closure, *args, **kwargs)
        assert self.lightning_module is not None
        copy_buffers(self.lightning_module)
        return output

    def reduce(self, tensor: Tensor, group: Any = None, reduce_op: Any = "mean") -> Tensor:
        """Reduce over processes; the mean of integers, such as numbers of samples, is not rounded down."""
        is_mean = reduce_op in ("mean", "avg") and isinstance(tensor, Tensor)
        exact = tensor.double() if is_mean and not tensor.is_floating_point() else tensor
        return super().reduce(exact, group, reduce_op)


@torch.no_grad()
def copy_buffers(module: pl.LightningModule) -> None:
    """Copy a module's buffers from the first process to the others, those of a dtype at once."""
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for buffer in module.buffers():
        by_dtype.setdefault(buffer.dtype, []).append(buffer)
    for buffers in by_dtype.values():
        values = torch.cat([buffer.flatten() for buffer in buffers])
        dist.broadcast(values, 0)
        for buffer, part in zip(buffers, values.split([buffer.numel() for buffer in buffers]), strict=True):
            buffer.copy_(part.view_as(buffer))


def strategy_of(node: Mapping[str, Any], make_trainer: Callable[[], pl.Trainer]) -> SharedBatchStrategy | None:
    """Return the strategy of a run with several processes, or that names DDP; None if it has one process.

    Args:
        node: of the Trainer.
        make_trainer: makes Lightning's Trainer from the node as it is, which counts the devices.

    Raises:
        ConfigError: if the devices are on other machines, or their strategy or its settings are not supported.
    """
    strategy = node.get("strategy", "auto")
    name, options = strategy, {}
    if isinstance(strategy, Mapping):
        name = "ddp" if str(strategy["_target_"]).endswith(".DDPStrategy") else strategy["_target_"]
        options = {key: value for key, value in strategy.items() if key not in ("_target_", "start_method")}
    is_ddp = DDP.fullmatch(str(name).lower())
    if is_ddp is None:
        if node.get("devices", 1) in (1, "1", [0]) and node.get("num_nodes", 1) == 1:
            return None
        if make_trainer().world_size == 1:
            return None
        require(name == "auto", "trainer.strategy", "ddp or auto with several devices", name)
    elif is_ddp[1] is not None:
        options["find_unused_parameters"] = is_ddp[1] == "true"
    nodes = node.get("num_nodes", 1)
    require(nodes == 1, "trainer.num_nodes", "1, as the processes of a run start on one machine", nodes)
    if node.get("use_distributed_sampler"):
        raise ConfigError(
            "trainer.use_distributed_sampler must be false, as each minibatch is shared out already; remove it"
        )
    return SharedBatchStrategy(**options)
