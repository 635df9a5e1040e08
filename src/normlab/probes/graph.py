"""Computation graphs of nets: as dot text, as SVG, and for TensorBoard's Graphs tab; the entry is `Graph`."""

import contextlib
import io
import logging
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from normlab.errors import first_line
from normlab.models.generators import forked_generators
from normlab.models.layer_lookup import call_hooks
from normlab.probes.landscape import require_mode

log = logging.getLogger("normlab")

EVENTS = "events.out.tfevents.0.graph.normlab"
"""Event file of the graph. Its name sorts first, because TensorBoard follows only the last file of a folder."""

NODE = re.compile(r"^\t(\d+)(?: -> (\d+))?")


def graph_dot(net: nn.Module, x: Tensor, layer: str | None = None, mode: str = "batch") -> str:
    """Return the autograd graph from a net's outputs back to its input x and its parameters, as dot text.

    Nodes are numbered in order of appearance, so the same net gives the same text. The forward pass runs on a copy
    with the kernels of training; the net is unchanged.

    Args:
        net: any net of one argument.
        x: a batch of inputs, ``(B, …)``.
        layer: the name of a layer to draw instead of the whole net, from its own inputs.
        mode: ``batch`` or ``frozen``, the statistics of the normalizers.

    Raises:
        ValueError: if the mode is unknown, or the net has no such layer, or does not call it.
    """
    require_mode(mode)
    copy = deepcopy(net).train(mode == "batch")
    with forked_generators(x), torch.enable_grad():
        module, (args, kwargs) = (copy, ((x,), {})) if layer is None else last_call(copy, layer, x)
        leaves, outputs = call_with_leaves(module, args, kwargs)
    with ignore_trace_warnings():
        import torchviz

        graph = torchviz.make_dot(outputs, params={**leaves, **dict(module.named_parameters())})
    graph.body[:] = renumber_nodes(graph.body)
    return graph.source


def last_call(net: nn.Module, layer: str, x: Tensor) -> tuple[nn.Module, tuple[tuple, dict[str, Any]]]:
    """Return a layer of a net, and the arguments of its last call in a forward pass of x."""
    module = named_layer(net, layer)
    calls: list[tuple[tuple, dict[str, Any]]] = []

    def record(name: str, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        # Arguments are cloned, because layers may modify them in place.
        calls.append(tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), (args, kwargs)))

    with call_hooks([(layer, module)], before=record):
        net(x)
    if not calls:
        raise ValueError(f"layer must be called by the net, got {layer}, which it does not call; choose another")
    return module, calls[-1]


def named_layer(net: nn.Module, name: str) -> nn.Module:
    """Return the layer of a net with this name.

    Raises:
        ValueError: if the net has none; the message lists its layers.
    """
    known = {name: layer for name, layer in net.named_modules() if name}
    if name not in known:
        raise ValueError(f"layer must be in the net, got {name}; available: {', '.join(known)}")
    return known[name]


def call_with_leaves(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[dict[str, Tensor], tuple]:
    """Call a module on inputs that are leaves of the graph; return the leaves by name, and the outputs."""
    leaves: dict[str, Tensor] = {}

    def leaf(tensor: Tensor) -> Tensor:
        copy = tensor.detach().clone().requires_grad_(tensor.is_floating_point())
        return leaves.setdefault(f"x{len(leaves) + 1}" if leaves else "x", copy)

    def cloned_leaf(tensor: Tensor) -> Tensor:
        return leaf(tensor).clone()

    try:
        y = module(*tree_map_only(Tensor, leaf, args), **tree_map_only(Tensor, leaf, kwargs))
    except RuntimeError:
        # A leaf cannot be modified in place, but its clone can.
        leaves.clear()
        y = module(*tree_map_only(Tensor, cloned_leaf, args), **tree_map_only(Tensor, cloned_leaf, kwargs))
    return leaves, tuple(output for output in tree_leaves(y) if isinstance(output, Tensor))


def renumber_nodes(lines: Sequence[str]) -> Iterator[str]:
    """Replace the memory addresses of nodes in dot lines by 1, 2, 3 and so on."""
    numbers: dict[str, int] = {}

    def number(match: re.Match) -> str:
        return "\t" + " -> ".join(
            str(numbers.setdefault(node, len(numbers) + 1)) for node in match.groups() if node
        )

    return (NODE.sub(number, line) for line in lines)


def graph_files(name: str, dot_text: str) -> dict[str, bytes]:
    """Return ``<name>.dot``, and ``<name>.svg`` if Graphviz is installed, by name."""
    files = {f"{name}.dot": dot_text.encode()}
    if shutil.which("dot"):
        import graphviz

        try:
            files[f"{name}.svg"] = graphviz.Source(dot_text).pipe(format="svg", quiet=True)
        except graphviz.CalledProcessError as error:
            reason = f"Graphviz exited with status {error.returncode}; to see why, run dot -Tsvg {name}.dot"
            log.warning("%s.svg is missing: %s", name, reason)
    return files


def tensorboard_graph(net: nn.Module, x: Tensor) -> bytes:
    """Return an event file with a net's graph in evaluation mode, for TensorBoard's Graphs tab.

    Args:
        net: any net of one argument; it is unchanged.
        x: a batch of inputs, ``(B, …)``.

    Raises:
        ValueError: if the net cannot be traced.
    """
    from torch.utils.tensorboard import SummaryWriter

    with tempfile.TemporaryDirectory() as folder:
        try:
            # add_graph prints a failure in addition to raising it.
            with (
                SummaryWriter(folder) as writer,
                forked_generators(x),
                ignore_trace_warnings(),
                contextlib.redirect_stdout(io.StringIO()),
            ):
                writer.add_graph(deepcopy(net), x)
        except Exception as error:
            raise ValueError(f"the net cannot be traced for TensorBoard's graph: {first_line(error)}") from error
        (written,) = Path(folder).iterdir()
        return written.read_bytes()


@contextlib.contextmanager
def ignore_trace_warnings() -> Iterator[None]:
    """Ignore deprecation warnings of torchviz and torch.jit, and warnings about tracing."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*distutils", DeprecationWarning)
        warnings.filterwarnings("ignore", ".*torch.jit", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        yield


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Draws the net of a run before training: ``graph.dot``, ``graph.svg``, and TensorBoard's Graphs tab.

    Args:
        layers: names of layers that get a graph each, ``graph_<layer>.dot``.
        mode: ``batch`` or ``frozen``, the statistics of the normalizers in the dot text.

    Raises:
        ValueError: if the mode is unknown.
    """

    layers: Sequence[str] = ()
    mode: str = "batch"

    def __post_init__(self) -> None:
        require_mode(self.mode)

    def check(self, net: nn.Module) -> None:
        """Check that the net has the layers.

        Raises:
            ValueError: if it does not; the message lists its layers.
        """
        for name in self.layers:
            named_layer(net, name)

    def files(self, net: nn.Module, x: Tensor) -> dict[str, bytes]:
        """Return the files for the folder of a run by name; x is a batch, ``(B, …)``.

        Log a warning if tracing for TensorBoard fails.
        """
        files = graph_files("graph", graph_dot(net, x, mode=self.mode))
        for layer in self.layers:
            files |= graph_files(f"graph_{layer}", graph_dot(net, x, layer, self.mode))
        try:
            files[EVENTS] = tensorboard_graph(net, x)
        except ValueError as error:
            log.warning("%s", error)
        return files
