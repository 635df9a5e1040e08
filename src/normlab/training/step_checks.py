"""Checks the values that the training step of a LightningModule returns: :func:`checked_steps`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from normlab.errors import ConfigError, first_line

EXPECTED = "a scalar tensor with a gradient, alone or under loss in a dict"


@contextmanager
def checked_steps(module: pl.LightningModule, target: str) -> Iterator[None]:
    """Context manager around a training, in which errors of a module name it and the value that a step returned.

    Args:
        module: that trains.
        target: its ``_target_``, for messages.

    Raises:
        ConfigError: for any error, and if every step returns None although Lightning should optimize.
    """
    step, returned = module.training_step, list[Any]()

    @wraps(step)
    def training_step(*arguments: Any, **keywords: Any) -> Any:
        output = step(*arguments, **keywords)
        returned.append(output)
        if module.automatic_optimization and output is not None and not is_loss(output):
            raise wrong_output(target, output)
        return output

    module.training_step = training_step  # type: ignore[method-assign]
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        # Messages of several lines end the first one with a colon.
        reason = first_line(error).removesuffix(":")
        raise ConfigError(f"module: {target}: {reason}") from error
    finally:
        del module.training_step
    if module.automatic_optimization and returned and all(output is None for output in returned):
        raise wrong_output(target, None)


def is_loss(output: Any) -> bool:
    """Return True if Lightning can minimize the output of a training step."""
    loss = output.get("loss") if isinstance(output, Mapping) else output
    return isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad


def wrong_output(target: str, output: Any) -> ConfigError:
    """Return the error for an output of a training step that is no loss."""
    loss, place = (output.get("loss"), " under loss") if isinstance(output, Mapping) else (output, "")
    got = type(loss).__name__
    if isinstance(loss, Tensor):
        got = "a tensor without a gradient" if loss.numel() == 1 else f"a tensor of shape {tuple(loss.shape)}"
    return ConfigError(f"module: training_step of {target} must return {EXPECTED}, got {got}{place}")
