"""What a net is trained for: a loss and metrics, for every member of a population at once.

Letters: K members, N samples, O outputs.
"""

import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy
from torchmetrics.functional.regression import mean_absolute_error, mean_squared_error, r2_score


class Regression:
    """Numbers to predict: mean squared error, and mse, mae and r2 as metrics.

    Shapes:
        outputs and targets ``(K, N, O)``; the loss and each metric ``(K,)``.

    Args:
        summed: whether the loss is summed over the outputs, in the place of their mean.
    """

    def __init__(self, summed: bool = False) -> None:
        self.summed = summed

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return each member's squared error, the mean over its batch."""
        mean = F.mse_loss(outputs, targets, reduction="none").flatten(1).mean(1)
        return mean * outputs.shape[2] if self.summed else mean

    def constant(self, targets: Tensor, out_features: int) -> Tensor:
        """Return the outputs of the best net that looks at nothing, ``(N, …)`` targets to ``(O,)``."""
        return targets.flatten(1).mean(0)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return each member's metrics; torchmetrics takes the members as so many outputs."""
        members, _, width = outputs.shape
        predicted, wanted = (t.double().transpose(0, 1).flatten(1) for t in (outputs, targets))
        count = members * width
        values = {
            "mse": mean_squared_error(predicted, wanted, num_outputs=count),
            "mae": mean_absolute_error(predicted, wanted, num_outputs=count),
        }
        if len(predicted) > 1:
            values["r2"] = r2_score(predicted, wanted, multioutput="raw_values")
        return {name: value.view(members, width).mean(1) for name, value in values.items()}


class Classification:
    """Classes to tell apart: cross-entropy, and the accuracy as metric.

    Shapes:
        outputs ``(K, N, O)`` logits, targets ``(K, N)`` class indices; the loss and each metric ``(K,)``.

    Args:
        squared: whether the loss is the squared distance to the one-hot target, summed over the classes.
    """

    def __init__(self, squared: bool = False) -> None:
        self.squared = squared

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return each member's cross-entropy or squared distance, the mean over its batch."""
        if self.squared:
            wanted = F.one_hot(targets, outputs.shape[2]).to(outputs)
            return (outputs - wanted).square().sum(2).mean(1)
        losses = F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none")
        return losses.view(targets.shape).mean(1)

    def constant(self, targets: Tensor, out_features: int) -> Tensor:
        """Return the outputs of the best net that looks at nothing, ``(N,)`` targets to ``(O,)``."""
        shares = targets.bincount(minlength=out_features) / len(targets)
        return shares if self.squared else shares.log()

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return each member's share of samples whose largest logit is the right one."""
        accuracy = multiclass_accuracy(
            outputs.argmax(2), targets, outputs.shape[2], average="micro", multidim_average="samplewise"
        )
        return {"acc": accuracy}


Task = Regression | Classification


def constant_predictor_loss(task: Task, targets: Tensor, out_features: int) -> float:
    """Return the loss of the best net that looks at nothing: what an untrained net is known by."""
    outputs = task.constant(targets, out_features).expand(1, len(targets), -1)
    return task.loss(outputs, targets.unsqueeze(0)).item()
