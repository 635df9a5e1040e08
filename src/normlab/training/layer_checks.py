"""Passes minibatches through a net and says which layer fails, and why: :func:`check_layers`."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from normlab.data.datamodule import InMemoryData
from normlab.errors import ConfigError, first_line, require, user_file, user_line
from normlab.models.layer_lookup import call_hooks, norm_slots
from normlab.training.population_module import PopulationModule

BATCH_TOLERANCE = 1e-2
"""A difference of outputs, in standard deviations of the outputs, that is no rounding error."""


def check_layers(module: PopulationModule, data: InMemoryData, sizes: Iterable[int], key: str = "") -> None:
    """Pass a minibatch of each size through the net, in training and in evaluation mode.

    Args:
        module: a population of one.
        data: its dataset.
        sizes: of the minibatches.
        key: before the message of an error; by default the batch size, if it is 1.

    Raises:
        ConfigError: if a layer fails, named by path and class; if the outputs do not fit the targets; or if the
            targets are neither classes nor floating-point numbers.
    """
    table, net = data.parts[0], module.population.net
    supported = table.is_classification or table.y.is_floating_point()
    require(supported, "data: the targets", "class indices or floating-point numbers", table.y.dtype)
    with track_innermost_layer(net) as where, track_reshaping(net) as reshaped:
        for size in sizes:
            x, _ = module.cast((table.x[None, :size], table.y[None, :size]))
            try:
                outputs = module(x)
                with module.eval().evaluation.context(), torch.no_grad():
                    module(x)
                module.train()
            except Exception as error:
                key = key or (f"data.batch_size={size}: " if size == 1 else "")
                reason = f"cannot take a batch of {size}: {first_line(error)}{user_line(error)}"
                raise ConfigError(f"{key}{next(iter(reshaped), f'{where()} {reason}')}") from error
            try:
                require_output_shape(outputs, (size, table.out_features))
            except ConfigError as error:
                raise ConfigError(next(iter(reshaped), str(error))) from error


def require_output_shape(outputs: Any, expected: tuple[int, int]) -> None:
    """Raise ConfigError unless outputs have the expected shape; the loss would broadcast others silently."""
    is_tensor = isinstance(outputs, Tensor)
    shape = tuple(outputs.shape[1:]) if is_tensor else type(outputs).__name__
    hint = " (add .unsqueeze(1))" if shape == expected[:1] else ""
    require(shape == expected, "net: the outputs", f"of shape {expected}{hint}", shape)


def batch_dependence(module: PopulationModule, data: InMemoryData, size: int) -> list[str]:
    """Return a warning if the outputs in evaluation mode for half a minibatch change with the other half.

    That is intended with ``statistics=batch``. Outputs that are drawn at random differ in any case.
    """
    if size < 2 or module.evaluation.kind == "batch":
        return []
    x, _ = module.cast((data.parts[0].x[None, :size], data.parts[0].y[None, :size]))
    try:
        with module.eval().evaluation.context(), torch.no_grad():
            whole, again, half = module(x), module(x), module(x[:, : size // 2])
    except Exception:  # a layer may take some sizes only, and those of the training have passed
        return []
    finally:
        module.train()
    tolerance = BATCH_TOLERANCE * float(whole.std())
    if not torch.equal(whole, again) or not (whole[:, : size // 2] - half).abs().max() > tolerance:
        return []
    remedy = "a normalizer can keep running statistics in its buffers running_mean and running_var"
    return [f"in evaluation mode, the net's output for a sample depends on the rest of its minibatch; {remedy}"]


@contextmanager
def track_innermost_layer(net: nn.Module) -> Iterator[Callable[[], str]]:
    """Context manager that yields a function returning name and class of the layer entered last."""
    entered = [("net", net)]
    handles = [
        layer.register_forward_pre_hook(lambda layer, _, name=name: entered.append((name, layer)))
        for name, layer in net.named_modules()
    ]
    try:
        yield lambda: f"{entered[-1][0] or 'net'} ({class_name(entered[-1][1])})"
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def track_reshaping(net: nn.Module) -> Iterator[list[str]]:
    """Context manager that yields a list of messages about normalizers that change the shape of their input.

    A net may allow for that, so they explain an error and are none by themselves.
    """
    messages: list[str] = []

    def compare(name: str, layer: nn.Module, args: tuple, kwargs: dict[str, Any], y: Any) -> None:
        expected, got = args[0].shape, y.shape if isinstance(y, Tensor) else None
        if got != expected:
            found = type(y).__name__ if got is None else tuple(got)
            messages.append(
                f"{name}.norm ({class_name(layer)}) must return a tensor of the shape of its input, "
                f"{tuple(expected)}, got {found}; correct its forward{definition(type(layer).forward)}"
            )

    with call_hooks(norm_slots(net), after=compare):
        yield messages


def class_name(layer: nn.Module) -> str:
    """Return the name of a layer's class, with its module unless that is of normlab or torch."""
    kind = type(layer)
    known = kind.__module__.partition(".")[0] in ("normlab", "torch")
    return kind.__name__ if known else f"{kind.__module__}.{kind.__qualname__}"


def definition(function: Callable[..., Any]) -> str:
    """Return " (file, line N)" of a function in a user's code; empty for another one."""
    code = getattr(function, "__code__", None)
    file = user_file(code.co_filename) if code else ""
    return f" ({file}, line {code.co_firstlineno})" if code and file else ""


@contextmanager
def explain_kept_graph(net: nn.Module) -> Iterator[None]:
    """Context manager that names the buffer with the graph of an earlier step, through which a step cannot go."""
    try:
        yield
    except RuntimeError as error:
        for name, layer in net.named_modules() if "backward through the graph a second" in str(error) else ():
            for own, buffer in layer.named_buffers(recurse=False):
                if buffer.requires_grad:
                    raise ConfigError(
                        f"{name} ({class_name(layer)}): the buffer {own} keeps the graph of a step; change it in "
                        f"place and without gradient: self.{own}.copy_(….detach())"
                    ) from error
        raise


def layer_warnings(net: nn.Module, sizes: Iterable[int]) -> list[str]:
    """Return distinct warnings of the layers' ``notices`` methods about minibatches of these sizes."""
    layers: list[Any] = [layer for layer in net.modules() if hasattr(layer, "notices")]
    return list(dict.fromkeys(notice for size in sizes for layer in layers for notice in layer.notices(size)))
