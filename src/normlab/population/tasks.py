"""Tasks, regression and classification: loss and metrics of all members of a population at once.

Letters: K members, N samples, O outputs.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy
from torchmetrics.functional.regression import mean_absolute_error, mean_squared_error, r2_score

from normlab.errors import prefix_errors, require

MetricFunction = Callable[[Tensor, Tensor], Tensor]
"""Returns one number for outputs ``(N, O)`` and targets of one net."""


class Regression:
    """Regression by mean squared error, with the metrics mse, mae and r2.

    Shapes:
        outputs and targets ``(K, N, O)``; the loss and each metric ``(K,)``.

    Args:
        summed: whether the loss is summed over the outputs instead of averaged.
    """

    def __init__(self, summed: bool = False) -> None:
        self.summed = summed

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return each member's squared error, averaged over its samples."""
        mean = F.mse_loss(outputs, targets, reduction="none").flatten(1).mean(1)
        return mean * outputs.shape[2] if self.summed else mean

    def best_constant(self, targets: Tensor, out_features: int) -> Tensor:
        """Return the best constant prediction, the mean of the targets: ``(N, …)`` to ``(O,)``."""
        return targets.flatten(1).mean(0)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return each member's metrics; torchmetrics treats members as outputs. r2 needs two samples."""
        members, _, width = outputs.shape
        predicted, expected = (t.double().transpose(0, 1).flatten(1) for t in (outputs, targets))
        count = members * width
        values = {
            "mse": mean_squared_error(predicted, expected, num_outputs=count),
            "mae": mean_absolute_error(predicted, expected, num_outputs=count),
        }
        if len(predicted) > 1:
            values["r2"] = r2_score(predicted, expected, multioutput="raw_values")
        return {name: value.view(members, width).mean(1) for name, value in values.items()}


class Classification:
    """Classification by cross-entropy, with the metric accuracy.

    Shapes:
        outputs ``(K, N, O)`` logits, targets ``(K, N)`` class indices; the loss and each metric ``(K,)``.

    Args:
        squared: whether the loss is the squared distance to the one-hot target, summed over the classes.
    """

    def __init__(self, squared: bool = False) -> None:
        self.squared = squared

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return each member's cross-entropy or squared distance, averaged over its samples."""
        if self.squared:
            expected = F.one_hot(targets, outputs.shape[2]).to(outputs)
            return (outputs - expected).square().sum(2).mean(1)
        losses = F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none")
        return losses.view(targets.shape).mean(1)

    def best_constant(self, targets: Tensor, out_features: int) -> Tensor:
        """Return the best constant outputs, class shares or their logarithms: ``(N,)`` to ``(O,)``."""
        shares = targets.bincount(minlength=out_features) / len(targets)
        return shares if self.squared else shares.log()

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return each member's accuracy."""
        accuracy = multiclass_accuracy(
            outputs.argmax(2), targets, outputs.shape[2], average="micro", multidim_average="samplewise"
        )
        return {"acc": accuracy}


Task = Regression | Classification


def constant_predictor_loss(task: Task, targets: Tensor, out_features: int) -> float:
    """Return the loss of the best constant predictor, the reference for an untrained net."""
    outputs = task.best_constant(targets, out_features).expand(1, len(targets), -1)
    return task.loss(outputs, targets.unsqueeze(0)).item()


def per_member_metrics(
    metrics: Mapping[str, MetricFunction], outputs: Tensor, targets: Tensor
) -> dict[str, Tensor]:
    """Return metrics that are defined for one net, for each member, ``(K,)`` each.

    Raises:
        ConfigError: if a metric fails or returns anything but one number.
    """
    values = {}
    for name, metric in metrics.items():
        with prefix_errors(f"metrics.{name}"):
            of_members = [torch.as_tensor(metric(*member)) for member in zip(outputs, targets, strict=True)]
            shape = tuple(of_members[0].shape)
            require(shape == (), f"metrics.{name}", "one number for each net", f"shape {shape}")
            values[name] = torch.stack(of_members).to(outputs.dtype)
    return values
