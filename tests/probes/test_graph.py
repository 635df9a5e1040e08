import logging
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.graph_pb2 import GraphDef
from torch import Tensor, nn

from normlab.models import CNN, MLP, ResMLP
from normlab.norms import BatchNorm1d, BatchNorm2d, NoisyBatchNorm, weight_normalization
from normlab.probes import Graph
from normlab.probes.graph import EVENTS, graph_dot, graph_files, tensorboard_graph

CONF = Path(__file__).parents[2] / "conf"
NODE = re.compile(r'\t(\d+) \[label=(?:"([^"]*)"|(\w+))(?: fillcolor=(\w+))?\]')
EDGE = re.compile(r"\t(\d+) -> (\d+)(?: \[style=dotted\])?")
graphviz = pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz' dot is not installed")


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mlp(norm=BatchNorm1d, **options) -> nn.Module:
    return MLP((3,), 2, hidden=[6, 5], norm=norm, **options)


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_tracing():
            raise RuntimeError("not today\nnor ever")
        return self.linear(x)


class Attention(nn.Module):
    """A net with a layer that takes several tensors, some by keyword, and returns several."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.attention, self.never = nn.Linear(3, 4), nn.MultiheadAttention(4, 1), nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x)
        return self.attention(h, h, value=h, need_weights=True)[0]


def parsed(text: str) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Parse dot text into node labels by number and edges; fail on any other content."""
    head, *_, last = text.rstrip("\n").split("\n")
    assert (head, last) == ("digraph {", "}")
    body = re.sub(
        r"^\t(?:graph|node) \[[^\]]*\]\n", "", text[len(head) + 1 :].rstrip("\n")[:-1], flags=re.MULTILINE
    )
    nodes = {number: quoted or word for number, quoted, word, _ in NODE.findall(body)}
    edges = EDGE.findall(body)
    assert EDGE.sub("", NODE.sub("", body)).strip() == ""
    assert {number for edge in edges for number in edge} <= set(nodes)
    return nodes, edges


def leaves(text: str) -> dict[str, str]:
    """Return the shapes of named tensors."""
    labels = (label.split("\n ") for label in parsed(text)[0].values())
    return {label[0]: label[1] for label in labels if len(label) == 2 and label[0]}


def operations(text: str) -> list[str]:
    """Return the names of the autograd functions."""
    return [label.removesuffix("0") for label in parsed(text)[0].values() if label.endswith("Backward0")]


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "bn": (mlp, (3,)),
    "fused": (partial(mlp, partial(BatchNorm1d, fused=True)), (3,)),
    "noisy": (partial(mlp, NoisyBatchNorm, dropout=0.2), (3,)),
    "wn": (partial(mlp, None, weight=weight_normalization), (3,)),
    "resmlp": (lambda: ResMLP((3,), 2, width=4, blocks=2, norm=nn.LayerNorm), (3,)),
    "cnn": (lambda: CNN((1, 4, 4), 2, channels=[2, 3], norm2d=BatchNorm2d), (1, 4, 4)),
    "attention": (Attention, (3,)),
}


@pytest.mark.parametrize("mode", ["batch", "frozen"])
@pytest.mark.parametrize("name", NETS)
def test_dot_text_names_input_and_used_parameters(name, mode):
    make, shape = NETS[name]
    net = make()
    text = graph_dot(net, draws(8, *shape), mode=mode)
    used = {key: parameter for key, parameter in net.named_parameters() if not key.startswith("never")}
    tensors = {**used, "x": torch.empty(8, *shape)}
    assert leaves(text) == {key: f"({', '.join(map(str, tensor.shape))})" for key, tensor in tensors.items()}
    nodes, edges = parsed(text)
    assert nodes["1"] == ("\n (8, 2)" if name != "attention" else "\n (8, 4)")
    # Every node leads to the output.
    reached = {"1"}
    for _ in nodes:
        reached |= {start for start, end in edges if end in reached}
    assert reached == set(nodes)


def test_layer_graph_has_own_input_and_parameters():
    text = graph_dot(mlp(), draws(8, 3), "hidden2")
    assert leaves(text) == {
        **{"x": "(8, 6)", "linear.weight": "(5, 6)", "linear.bias": "(5)"},
        **{"norm.weight": "(5)", "norm.bias": "(5)"},
    }
    assert operations(text)[0] == "ReluBackward"
    assert leaves(graph_dot(mlp(), draws(8, 3), "hidden2.norm")) == {"x": "(8, 5)", "weight": "(5)", "bias": "(5)"}


def test_mode_selects_statistics_and_training_kernels():
    fused = mlp(partial(BatchNorm1d, fused=True))
    assert "NativeBatchNormBackward" in operations(graph_dot(fused, draws(8, 3)))
    assert "NativeBatchNormBackward" not in operations(graph_dot(mlp(), draws(8, 3)))
    # With batch statistics the gradient also passes through the statistics.
    batch, frozen = (operations(graph_dot(mlp(), draws(8, 3), mode=mode)) for mode in ("batch", "frozen"))
    assert len(batch) > len(frozen)


def test_same_net_gives_same_numbered_dot_text():
    first, second = (graph_dot(mlp(), draws(8, 3, seed=seed)) for seed in range(2))
    assert first == second
    numbers = [
        int(number)
        for line in first.split("\n")
        if line.startswith("\t")
        for number in re.findall(r"^\t(\d+)", line)
    ]
    assert set(numbers) == set(range(1, max(numbers) + 1))


@pytest.mark.parametrize("layer", [None, "0", "1", "2"])
def test_inplace_layer_is_drawn_alone(layer):
    net = nn.Sequential(nn.Linear(3, 3), nn.Identity(), nn.ReLU(inplace=True))
    expected = {None: ["ReluBackward", "AddmmBackward", "TBackward"], "0": ["AddmmBackward", "TBackward"], "1": []}
    text = graph_dot(net, draws(8, 3), layer)
    assert operations(text) == expected.get(layer, ["ReluBackward", "CloneBackward"])
    assert leaves(text)["x"] == "(8, 3)"


def test_inplace_change_of_net_input_is_drawn():
    x = draws(8, 3)
    before = x.clone()
    text = graph_dot(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 2)), x)
    assert leaves(text) == {"x": "(8, 3)", "1.weight": "(2, 3)", "1.bias": "(2)"}
    assert torch.equal(x, before)


def test_layer_with_several_tensors_is_drawn():
    text = graph_dot(Attention(), draws(8, 3), "attention")
    assert {name: shape for name, shape in leaves(text).items() if name.startswith("x")} == {
        **{"x": "(8, 4)", "x2": "(8, 4)", "x3": "(8, 4)"}
    }
    assert list(parsed(text)[0].values()).count("\n (8, 8)") == 1
    recurrent = graph_dot(nn.LSTM(3, 2), draws(8, 3))
    assert leaves(recurrent).keys() == {"x", *(name for name, _ in nn.LSTM(3, 2).named_parameters())}


def test_last_call_of_repeated_layer_is_drawn():
    layer = nn.Linear(3, 3)
    text = graph_dot(nn.Sequential(layer, nn.Tanh(), layer), draws(8, 3), "0")
    assert leaves(text) == {"x": "(8, 3)", "weight": "(3, 3)", "bias": "(3)"}
    assert "TanhBackward" not in operations(text)


def test_integer_inputs_are_no_leaves():
    net = nn.Sequential(nn.Embedding(5, 2), nn.Linear(2, 2))
    assert leaves(graph_dot(net, torch.arange(5))).keys() == {"0.weight", "1.weight", "1.bias"}


def test_unknown_layer_raises_with_available_layers():
    layers = "hidden1, hidden1.linear, hidden1.norm, hidden1.activation, hid"
    message = f"layer must be in the net, got hidden7; available: {layers}"
    with pytest.raises(ValueError, match=message):
        graph_dot(mlp(), draws(8, 3), "hidden7")
    with pytest.raises(ValueError, match=message):
        Graph(layers=["hidden1", "hidden7"]).check(mlp())
    Graph(layers=["hidden1", "output"]).check(mlp())


def test_uncalled_layer_and_unknown_mode_raise():
    with pytest.raises(
        ValueError, match="layer must be called by the net, got never, which it does not call; choose another"
    ):
        graph_dot(Attention(), draws(8, 3), "never")
    with pytest.raises(ValueError, match="mode must be one of batch, frozen, got train"):
        graph_dot(mlp(), draws(8, 3), mode="train")
    with pytest.raises(ValueError, match="mode must be one of batch, frozen, got train"):
        Graph(mode="train")


def fake(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a fake ``dot`` program on the path."""
    (folder / "bin").mkdir()
    program = folder / "bin" / "dot"
    program.write_text(f"#!/bin/sh\ncat > '{folder}/received'\necho \"$@\" > '{folder}/arguments'\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")


def test_dot_text_is_a_file_without_graphviz(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert graph_files("graph", "digraph {\n}\n") == {"graph.dot": b"digraph {\n}\n"}
    assert not caplog.records


def test_graphviz_output_is_svg_file(tmp_path, monkeypatch):
    fake(tmp_path, monkeypatch, "echo '<svg/>'")
    files = graph_files("graph_hidden1", "digraph {\n}\n")
    assert list(files) == ["graph_hidden1.dot", "graph_hidden1.svg"]
    assert files["graph_hidden1.svg"] == b"<svg/>\n"
    assert (tmp_path / "received").read_text() == "digraph {\n}\n"
    assert (tmp_path / "arguments").read_text() == "-Kdot -Tsvg\n"


def test_graphviz_failure_logs_one_line(tmp_path, monkeypatch, caplog, capfd):
    fake(tmp_path, monkeypatch, "echo much to say >&2\nexit 3")
    with caplog.at_level(logging.WARNING, "normlab"):
        assert list(graph_files("graph", "digraph {\n}\n")) == ["graph.dot"]
    assert caplog.messages == [
        "graph.svg is missing: Graphviz exited with status 3; to see why, run dot -Tsvg graph.dot"
    ]
    assert capfd.readouterr() == ("", "")


@graphviz
@pytest.mark.parametrize("name", NETS)
def test_graphviz_parses_same_nodes_and_edges(name):
    make, shape = NETS[name]
    text = graph_dot(make(), draws(8, *shape))
    plain = subprocess.run(["dot", "-Tplain"], input=text, text=True, capture_output=True, check=True)
    nodes, edges = parsed(text)
    lines = [line.split() for line in plain.stdout.split("\n") if line]
    assert plain.stderr == ""
    assert {words[1] for words in lines if words[0] == "node"} == set(nodes)
    assert sorted(tuple(words[1:3]) for words in lines if words[0] == "edge") == sorted(edges)


@graphviz
def test_graphviz_draws_all_parameters():
    svg = graph_files("graph", graph_dot(mlp(), draws(8, 3)))["graph.svg"].decode()
    assert "<svg" in svg
    assert all(name in svg for name, _ in mlp().named_parameters())


def test_tensorboard_graph_has_node_for_every_layer(tmp_path):
    path = tmp_path / EVENTS
    path.write_bytes(tensorboard_graph(mlp(dropout=0.3), draws(8, 3)))
    (graph,) = (event.graph_def for event in EventFileLoader(str(path)).Load() if event.graph_def)
    names = [node.name for node in GraphDef.FromString(graph).node]
    for part in ("Linear[linear]", "BatchNorm1d[norm]", "ReLU[activation]"):
        for layer in ("hidden1", "hidden2"):
            assert any(f"HiddenLayer[{layer}]/{part}" in name for name in names)
    assert any("Linear[output]" in name for name in names)
    # Evaluation mode has no dropout.
    assert not [name for name in names if "Dropout" in name]


def test_untraceable_net_raises_with_reason(capfd):
    message = "the net cannot be traced for TensorBoard's graph: not today"
    with pytest.raises(ValueError, match=f"^{message}$"):
        tensorboard_graph(Untraceable(), draws(8, 3))
    assert capfd.readouterr() == ("", "")


def test_untraceable_net_keeps_dot_files_and_logs_one_line(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with caplog.at_level(logging.WARNING, "normlab"):
        files = Graph(layers=["linear"]).files(Untraceable(), draws(8, 3))
    assert list(files) == ["graph.dot", "graph_linear.dot"]
    assert caplog.messages == ["the net cannot be traced for TensorBoard's graph: not today"]


def test_files_are_of_net_and_layers(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    net, x = mlp(), draws(8, 3)
    files = Graph(layers=["hidden1", "hidden2.norm"], mode="frozen").files(net, x)
    assert list(files) == ["graph.dot", "graph_hidden1.dot", "graph_hidden2.norm.dot", EVENTS]
    for name, layer in (("graph", None), ("graph_hidden1", "hidden1"), ("graph_hidden2.norm", "hidden2.norm")):
        assert files[f"{name}.dot"].decode() == graph_dot(net, x, layer, "frozen")
    assert not list(tmp_path.iterdir())


def test_shipped_configuration_accepts_layers():
    with initialize_config_dir(str(CONF), version_base=None):
        config = compose("train", overrides=["probes=graph", "probes.graph.layers=[hidden1]"])
    graph = instantiate(config.probes.graph)
    assert (list(graph.layers), graph.mode) == (["hidden1"], "batch")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["bn", "fused", "noisy", "wn", "cnn"])
def test_drawing_has_no_side_effects(name, training):
    make, shape = NETS[name]
    net, x = make().train(training), draws(8, *shape)
    before, own = {key: tensor.clone() for key, tensor in net.state_dict().items()}, x.clone()
    generator = torch.get_rng_state()

    Graph(layers=["hidden1"]).files(net, x)

    assert all(torch.equal(net.state_dict()[key], tensor) for key, tensor in before.items())
    assert torch.equal(x, own)
    assert not x.requires_grad
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(layer.training == training and not layer._forward_hooks for layer in net.modules())
    assert all(not layer._forward_pre_hooks for layer in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())
