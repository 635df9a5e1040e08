"""The graph of a net's computation: as dot text, as a picture, and for TensorBoard's Graphs tab."""

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

from normlab.probes.snapshot import MODES, layers_at

log = logging.getLogger("normlab")

EVENTS = "events.out.tfevents.0.graph.normlab"
"""The event file of the graph: TensorBoard reads files by name, and goes on with the last alone as it grows."""

NODE = re.compile(r"^\t(\d+)(?: -> (\d+))?")


def dot(net: nn.Module, x: Tensor, layer: str | None = None, mode: str = "batch") -> str:
    """Return how autograd goes from what a net puts out back to its input x and its parameters, as dot text.

    Nodes are numbered in the order in which they come, so that the same net gives the same text. The net stays as
    it is: a copy computes, with the kernels of the training.

    Args:
        net: any net of one argument.
        x: a batch of its input, ``(B, …)``.
        layer: draw this layer of it alone, from its own input x.
        mode: ``batch`` or ``frozen``, what normalizers go by.

    Raises:
        ValueError: for a mode of another name, and for a layer that is not there, or that the net does not call.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode}")
    copy = deepcopy(net).train(mode == "batch")
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        part, given = (copy, ((x,), {})) if layer is None else called(copy, layer, x)
        leaves, outputs = from_leaves(part, *given)
    with quiet():
        import torchviz

        drawn = torchviz.make_dot(outputs, params={**leaves, **dict(part.named_parameters())})
    drawn.body[:] = renumbered(drawn.body)
    return drawn.source


def called(net: nn.Module, layer: str, x: Tensor) -> tuple[nn.Module, tuple[tuple, dict[str, Any]]]:
    """Return a layer, and what a net that is given x hands it when it last calls it."""
    ((_, part),) = layers_at(net, [layer])
    calls: list[tuple[tuple, dict[str, Any]]] = []

    def note(_: nn.Module, positional: tuple, named: dict[str, Any]) -> None:
        # Copies: what follows may work in place.
        calls.append(tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), (positional, named)))

    handle = part.register_forward_pre_hook(note, with_kwargs=True)
    net(x)
    handle.remove()
    if not calls:
        raise ValueError(f"layer {layer} has no graph, as the net does not call it; choose a layer that it calls")
    return part, calls[-1]


def from_leaves(part: nn.Module, positional: tuple, named: dict[str, Any]) -> tuple[dict[str, Tensor], tuple]:
    """Return the inputs of a layer as leaves of its graph, by name, and its outputs."""
    leaves: dict[str, Tensor] = {}

    def leaf(tensor: Tensor) -> Tensor:
        own = tensor.detach().clone().requires_grad_(tensor.is_floating_point())
        return leaves.setdefault(f"x{len(leaves) + 1}" if leaves else "x", own)

    def copied(tensor: Tensor) -> Tensor:
        return leaf(tensor).clone()

    try:
        y = part(*tree_map_only(Tensor, leaf, positional), **tree_map_only(Tensor, leaf, named))
    except RuntimeError:
        # A leaf cannot be worked on in place, a copy of it can.
        leaves.clear()
        y = part(*tree_map_only(Tensor, copied, positional), **tree_map_only(Tensor, copied, named))
    return leaves, tuple(each for each in tree_leaves(y) if isinstance(each, Tensor))


def renumbered(lines: Sequence[str]) -> Iterator[str]:
    """Yield a graph's lines with nodes 1, 2, 3 and so on in the place of addresses in memory."""
    numbers: dict[str, int] = {}

    def number(match: re.Match) -> str:
        return "\t" + " -> ".join(
            str(numbers.setdefault(node, len(numbers) + 1)) for node in match.groups() if node
        )

    return (NODE.sub(number, line) for line in lines)


def write_graph(folder: Path, name: str, dot_text: str) -> list[Path]:
    """Write a graph as ``<name>.dot``, and as ``<name>.svg`` where there is Graphviz; return what was written."""
    written = [folder / f"{name}.dot"]
    written[0].write_text(dot_text, encoding="utf-8")
    if shutil.which("dot"):
        import graphviz

        try:
            picture = graphviz.Source(dot_text).pipe(format="svg", quiet=True)
        except graphviz.CalledProcessError as error:
            log.warning(
                "%s.svg is missing: Graphviz ended with status %s; see dot -Tsvg %s",
                name,
                error.returncode,
                written[0],
            )
            return written
        written.append(folder / f"{name}.svg")
        written[1].write_bytes(picture)
    return written


def tensorboard_graph(folder: Path, net: nn.Module, x: Tensor) -> Path:
    """Write an event file with a net's graph in evaluation mode, for TensorBoard's Graphs tab; return its path.

    Args:
        folder: of the run's event files.
        net: any net of one argument; it stays as it is.
        x: a batch of its input, ``(B, …)``.

    Raises:
        ValueError: the net cannot be traced.
    """
    from torch.utils.tensorboard import SummaryWriter

    with tempfile.TemporaryDirectory() as beside:
        writer = SummaryWriter(beside)
        try:
            # A failure is printed as well as raised.
            with torch.random.fork_rng(devices=[]), quiet(), contextlib.redirect_stdout(io.StringIO()):
                writer.add_graph(deepcopy(net), x)
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(f"the net has no graph for TensorBoard, as it cannot be traced: {reason}") from error
        finally:
            writer.close()
        (written,) = Path(beside).iterdir()
        (folder / EVENTS).write_bytes(written.read_bytes())
    return folder / EVENTS


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hear nothing of what torchviz and torch's tracer use although it is deprecated, nor that a trace is one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*distutils", DeprecationWarning)
        warnings.filterwarnings("ignore", ".*torch.jit", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        yield


@dataclass(frozen=True, kw_only=True)
class Graph:
    """What draws a run's net before it trains: ``graph.dot``, ``graph.svg``, and TensorBoard's Graphs tab.

    Args:
        layers: further graphs, of these layers alone, ``graph_<layer>.dot``.
        mode: ``batch`` or ``frozen``, what normalizers go by in the dot text.
    """

    layers: Sequence[str] = ()
    mode: str = "batch"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode}")

    def check(self, net: nn.Module) -> None:
        """Refuse a layer that the net does not have.

        Raises:
            ValueError: with the list of those that it has.
        """
        for _ in layers_at(net, self.layers):
            pass

    def files(self, net: nn.Module, x: Tensor) -> dict[str, bytes]:
        """Return the content of the files of :meth:`write`, by name, for many runs of one net."""
        with tempfile.TemporaryDirectory() as beside:
            self.write(Path(beside), net, x)
            return {path.name: path.read_bytes() for path in sorted(Path(beside).iterdir())}

    def write(self, folder: Path, net: nn.Module, x: Tensor) -> None:
        """Write the graphs into a run's folder; x is a batch, ``(B, …)``."""
        write_graph(folder, "graph", dot(net, x, mode=self.mode))
        for layer in self.layers:
            write_graph(folder, f"graph_{layer}", dot(net, x, layer, self.mode))
        try:
            tensorboard_graph(folder, net, x)
        except ValueError as error:
            log.warning("%s", error)
