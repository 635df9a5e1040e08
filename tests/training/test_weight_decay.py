"""``optimizer.no_decay``: the chosen parameters, and training against torch's parameter groups."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from normlab.config.frozen import FrozenConfig
from normlab.errors import ConfigError
from normlab.norms import BatchNorm1d
from normlab.population.population import Population, initial_nets
from normlab.training.optimizers import optimizer_maker
from normlab.training.parameter_selection import undecayed_names

OPTIMIZERS = {
    "sgd": ("normlab.population.optim.SGD", partial(torch.optim.SGD, momentum=0.9)),
    "adam": ("normlab.population.optim.Adam", torch.optim.Adam),
    "adamw": ("normlab.population.optim.AdamW", torch.optim.AdamW),
    "rmsprop": ("torch.optim.RMSprop", torch.optim.RMSprop),
}


def make_net() -> nn.Module:
    net = nn.Sequential(nn.Linear(3, 4), BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    return net.double()


def test_names():
    net = make_net()
    assert undecayed_names(net, []) == []
    assert undecayed_names(net, ["norm"]) == ["1.weight", "1.bias"]
    assert undecayed_names(net, ["bias"]) == ["0.bias", "1.bias", "3.bias"]
    assert undecayed_names(net, ["norm", "^3"]) == ["1.weight", "1.bias", "3.weight", "3.bias"]
    assert undecayed_names(net, ["scale_dependent"]) == ["0.bias", "1.weight", "1.bias", "3.weight", "3.bias"]
    with pytest.raises(
        ConfigError,
        match=r"optimizer.no_decay must be norm, bias, scale_dependent or a part .*, got gamma; the net has",
    ):
        undecayed_names(net, ["gamma"])
    with pytest.raises(ConfigError, match=r"optimizer.no_decay: \( is no regular expression"):
        undecayed_names(net, ["("])


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("no_decay", [("norm", "bias"), ("scale_dependent",)])
def test_training_equals_parameter_groups(name, members, no_decay):
    target, torch_kind = OPTIMIZERS[name]
    node = {"_target_": target, "_partial_": True, "lr": 0.05, "weight_decay": 0.3, "no_decay": list(no_decay)}
    node |= {"momentum": 0.9} if name == "sgd" else {}
    seeds = list(range(members))
    population = Population(initial_nets(make_net, seeds))
    optimizer = optimizer_maker([FrozenConfig.of(node)] * members)(population.net, members)
    x = torch.randn(members, 16, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for _ in range(5):
        optimizer.zero_grad()
        population(x).square().mean((1, 2)).sum().backward()
        optimizer.step()
    for k, net in enumerate(initial_nets(make_net, seeds)):
        without = [net[0].bias, *net[1].parameters(), net[3].bias]
        decayed = [net[0].weight]
        (without if "scale_dependent" in no_decay else decayed).append(net[3].weight)
        groups = [{"params": decayed}, {"params": without, "weight_decay": 0.0}]
        alone = torch_kind(groups, lr=0.05, weight_decay=0.3)
        for _ in range(5):
            alone.zero_grad()
            net(x[k]).square().mean().backward()
            alone.step()
        state = population.member(k)
        for key, tensor in net.named_parameters():
            # The gradient of a bias before the norm is rounding error, which adaptive optimizers scale.
            if key != "0.bias":
                assert_close(state[key], tensor.detach(), rtol=1e-9, atol=1e-12, msg=key)


def test_command_line(run_train):
    short = (
        "trainer.max_epochs=2",
        "logger=csv",
        "data.train=60",
        "data.val=20",
        "data.test=20",
        "data.batch_size=30",
    )
    outcome = run_train(
        "-m", "model=bn,nobn", "optimizer=adamw", "optimizer.no_decay=[norm,bias]", "seed=0,1", *short
    )
    assert outcome.code == 0, outcome.err
    outcome = run_train("-m", "model=bn,nobn", "optimizer.no_decay=[scale_dependent]", *short)
    assert outcome.code == 0, outcome.err
    outcome = run_train("optimizer.no_decay=[gamma]", *short)
    assert outcome.code == 1
    assert (
        "optimizer.no_decay must be norm, bias, scale_dependent or a part of a parameter's name, got gamma"
        in outcome.err
    )
    outcome = run_train("optimizer._target_=torch.optim.Rprop", "optimizer.no_decay=[bias]", *short)
    assert "optimizer.no_decay has no effect: torch.optim.Rprop has no weight_decay; remove it" in outcome.err
