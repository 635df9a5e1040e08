"""Losses of one net, applied to all members of a population: :class:`MemberLoss`.

Letters: K members, B samples, O outputs.
"""

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap

from normlab.errors import ConfigError, first_line, require

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""Maps outputs ``(B, O)`` and targets of one net to a scalar ``()``."""


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the squared error, summed over the outputs and averaged over the samples; classes are one-hot.

    Shapes:
        outputs ``(B, O)``; targets ``(B, O)``, or class indices ``(B,)``.
    """
    expected = targets if targets.is_floating_point() else F.one_hot(targets, outputs.shape[-1]).to(outputs)
    return (outputs - expected).square().flatten(1).sum(1).mean()


class MemberLoss:
    """A loss of one net for each member: under vmap, or for one member after another if that fails.

    Shapes:
        outputs ``(K, B, O)``, targets ``(K, B, …)``; returns ``(K,)``.

    Args:
        function: the loss of one net.
        name: of the loss, in messages.
        outputs, targets: of two members, to try the function and to compare vmap with separate calls.

    Attributes:
        looped_reason: the reason why members are evaluated one after another; None under vmap.

    Raises:
        ConfigError: if the function fails, returns no scalar, or has no gradient.
    """

    def __init__(self, function: LossFunction, name: str, outputs: Tensor, targets: Tensor) -> None:
        self.function, self.name = function, name
        self.looped_reason: str | None = None
        self._tensors = [*function.parameters(), *function.buffers()] if isinstance(function, nn.Module) else []
        trained = any(tensor.requires_grad for tensor in self._tensors)
        require(not trained, "loss", "a function without parameters to train", name)
        with torch.random.fork_rng(devices=[]):
            separate = [self.try_member(*member) for member in zip(outputs, targets, strict=True)]
            self.looped_reason = self.vmap_failure(outputs, targets, separate)

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each member."""
        self.match(outputs)
        if len(outputs) > 1 and self.looped_reason is None:
            return vmap(self.function, randomness="different")(outputs, targets)
        return torch.stack([self.function(*member) for member in zip(outputs, targets, strict=True)])

    def match(self, outputs: Tensor) -> None:
        """Move the buffers of a loss, such as class weights, to the device and precision of the outputs."""
        if any(
            t.device != outputs.device or (t.is_floating_point() and t.dtype != outputs.dtype)
            for t in self._tensors
        ):
            assert isinstance(self.function, nn.Module)
            self.function.to(outputs.device, outputs.dtype)
            self._tensors = [*self.function.parameters(), *self.function.buffers()]

    def try_member(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of one net and its gradient with respect to the outputs.

        Raises:
            ConfigError: if the function fails, returns no scalar, or has no gradient.
        """
        outputs = outputs.detach().requires_grad_()
        self.match(outputs)
        kind = "targets" if targets.is_floating_point() else "class indices"
        shapes = f"outputs {tuple(outputs.shape)} and {kind} {tuple(targets.shape)}"
        try:
            with warnings.catch_warnings():
                # Tensors of different shapes would be broadcast: every output compared with every target.
                warnings.filterwarnings("error", message="Using a target size")
                loss = self.function(outputs, targets)
        except Exception as error:
            raise ConfigError(f"loss: {self.name} cannot take {shapes}: {first_line(error)}") from error
        is_tensor = isinstance(loss, Tensor)
        shape = f"shape {tuple(loss.shape)}" if is_tensor else type(loss).__name__
        require(is_tensor and loss.shape == (), "loss", f"a function that returns one number for {shapes}", shape)
        require(
            loss.requires_grad, "loss", "differentiable", f"{self.name}, which returns a number without gradient"
        )
        (gradient,) = torch.autograd.grad(loss, outputs, materialize_grads=True)
        varies = bool((gradient != 0).any())
        require(varies, "loss", f"a function of the {shapes}", f"{self.name}, whose gradient is zero")
        return loss.detach(), gradient

    def vmap_failure(self, outputs: Tensor, targets: Tensor, separate: list[tuple[Tensor, Tensor]]) -> str | None:
        """Return the reason why the loss cannot be vmapped, None if vmap equals separate calls."""
        outputs = outputs.detach().requires_grad_()
        try:
            losses = self(outputs, targets)
            (gradients,) = torch.autograd.grad(losses.sum(), outputs)
        except Exception as error:  # a function may raise any error under vmap
            return first_line(error).partition(". ")[0]
        expected = torch.stack([loss for loss, _ in separate]), torch.stack([grad for _, grad in separate])
        equal = all(
            torch.allclose(got, value, rtol=1e-4, atol=1e-4 * float(value.abs().max()), equal_nan=True)
            for got, value in zip((losses.detach(), gradients), expected, strict=True)
        )
        return None if equal else "vmap changes its value"
