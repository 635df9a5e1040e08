import torch
from torch import nn

from normlab.models import CNN, MLP, ResMLP
from normlab.models.layer_lookup import activation_slots, call_hooks, layers_of_kind, normalizer_slots
from normlab.norms import ActNorm, BatchNorm1d, BatchNorm2d, GhostBatchNorm


class Own(nn.Module):
    """A custom net with layer names that normlab does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.activation = nn.Sequential(nn.Tanh(), nn.ReLU())
        self.norm = nn.Sequential(nn.LayerNorm(4), nn.Tanh())
        self.body = nn.ModuleDict({"act": nn.GELU(), "bn": nn.BatchNorm1d(4), "never": nn.ReLU()})


def names(layers) -> list[str]:
    return [name for name, _ in layers]


def mlp(norm=None) -> nn.Module:
    return MLP((3,), 2, hidden=[6, 5], norm=norm)


def test_activations_and_normalizers_are_found_by_name():
    for net in (mlp(BatchNorm1d), CNN((1, 4, 4), 2, channels=[2, 3], norm2d=BatchNorm2d)):
        assert names(activation_slots(net)) == names(normalizer_slots(net)) == ["hidden1", "hidden2"]
        assert dict(activation_slots(net))["hidden2"] is net.hidden2.activation
        assert dict(normalizer_slots(net))["hidden2"] is net.hidden2.norm
    net = ResMLP((3,), 2, width=4, blocks=2, norm=nn.LayerNorm, activation=nn.Identity)
    assert names(activation_slots(net)) == ["block1", "block2"]
    assert names(normalizer_slots(net)) == ["block1", "block2", "last"]


def test_identity_is_no_normalizer():
    assert names(layers_of_kind(mlp(), "norm", ())) == ["hidden1", "hidden2"]
    assert names(normalizer_slots(mlp())) == []
    assert names(normalizer_slots(nn.Sequential(nn.Identity(), nn.Linear(3, 2)))) == []


def test_unnamed_layers_are_found_by_type():
    net = nn.Sequential(
        *(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU()),
        nn.Sequential(nn.Linear(4, 4), GhostBatchNorm(4, 2), nn.PReLU()),
        *(nn.GroupNorm(2, 4), ActNorm(4), nn.RMSNorm(4), nn.Flatten(), nn.Dropout(0.1), nn.Softmax(1)),
    )
    assert names(activation_slots(net)) == ["2", "3.2", "9"]
    assert names(normalizer_slots(net)) == ["1", "3.1", "4", "5", "6"]


def test_nested_layers_of_named_ones_are_not_counted():
    assert names(activation_slots(Own())) == ["activation", "norm.1", "body.act", "body.never"]
    assert names(normalizer_slots(Own())) == ["norm", "body.bn"]


def test_hooks_run_around_calls_and_are_removed():
    layer, calls = nn.Linear(2, 3), []

    def before(name, module, args, kwargs):
        calls.append((name, module is layer, [tuple(x.shape) for x in args], list(kwargs)))

    def after(name, module, args, kwargs, y):
        calls.append((name, tuple(y.shape)))

    with call_hooks([("a", layer)], before=before, after=after):
        layer(torch.ones(4, 2))
        layer(input=torch.ones(5, 2))
    layer(torch.ones(4, 2))
    assert calls == [
        *(("a", True, [(4, 2)], []), ("a", (4, 3))),
        *(("a", True, [], ["input"]), ("a", (5, 3))),
    ]
    assert not layer._forward_hooks
    assert not layer._forward_pre_hooks
