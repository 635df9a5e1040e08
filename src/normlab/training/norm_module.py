"""A net with its loss as a LightningModule that trains by minibatches, :class:`NormModule`; to be subclassed.

It is the plain reference of :class:`~normlab.training.population_module.PopulationModule`: in float64 both give
the same losses and weights. Trainer arguments, callbacks, loggers and checkpoints work as Lightning documents.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from normlab.data.sampling import Split


class NormModule(pl.LightningModule):
    """Trains a net by minibatches, and logs ``train/loss``, ``val/loss``, ``test/loss`` and metrics per epoch.

    Args:
        net: maps inputs ``(B, …)`` to outputs ``(B, O)``.
        loss: maps outputs and targets to their mean loss.
        metrics: of outputs and targets, measured on the validation and the test split.
        optimizer: makes the optimizer from parameters.
        scheduler: makes Lightning's ``lr_scheduler`` from the optimizer; None for a constant learning rate.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        metrics: MetricCollection,
        optimizer: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer],
        scheduler: Callable[[torch.optim.Optimizer], dict[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.loss = loss
        self.val_metrics = metrics.clone(prefix="val/")
        self.test_metrics = metrics.clone(prefix="test/")
        self.make_optimizer, self.make_scheduler = optimizer, scheduler

    def forward(self, x: Tensor) -> Tensor:
        """Return the net's outputs."""
        return self.net(x)

    def training_step(self, batch: Split, batch_idx: int) -> Tensor:
        """Return the loss of a minibatch."""
        x, y = batch
        loss = self.loss(self(x), y)
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(x), sync_dist=True)
        return loss

    def validation_step(self, batch: Split, batch_idx: int) -> None:
        """Log loss and metrics of a batch of the validation split."""
        self.evaluate(batch, "val", self.val_metrics)

    def test_step(self, batch: Split, batch_idx: int) -> None:
        """Log loss and metrics of a batch of the test split."""
        self.evaluate(batch, "test", self.test_metrics)

    def evaluate(self, batch: Split, split: str, metrics: MetricCollection) -> None:
        """Log the loss of a batch, and update the metrics of its split."""
        x, y = batch
        outputs = self(x)
        self.log(f"{split}/loss", self.loss(outputs, y), batch_size=len(x), sync_dist=True)
        metrics.update(outputs, y)
        self.log_dict(metrics)

    def configure_optimizers(self) -> Any:
        """Return the optimizer, and the scheduler with its interval and the metric it monitors."""
        optimizer = self.make_optimizer(self.parameters())
        if self.make_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.make_scheduler(optimizer)}
