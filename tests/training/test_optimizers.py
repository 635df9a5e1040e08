"""``optimizer.groups``: the selected parameters, and training against torch's optimizers side by side."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from normlab.config.frozen import FrozenConfig
from normlab.errors import ConfigError
from normlab.models import CNN, MLP, ResMLP
from normlab.norms import BatchNorm1d
from normlab.norms.weight import weight_normalization
from normlab.population.population import Population, initial_nets
from normlab.population.schedulers import PopulationScheduler
from normlab.training.optimizers import TorchOptimizer, optimizer_maker
from normlab.training.parameter_selection import group_names
from normlab.training.schedules import make_scheduler

ADAMW = {"_target_": "torch.optim.AdamW", "lr": 0.01, "weight_decay": 0.1}
MUON = {"match": ["hidden"], "_target_": "torch.optim.Muon", "lr": 0.05, "weight_decay": 0.2}
SHORT = [
    "trainer.max_epochs=2",
    "logger=csv",
    "data.train=60",
    "data.val=20",
    "data.test=20",
    "data.batch_size=30",
]


def make_net() -> nn.Module:
    linears = nn.Linear(3, 8), nn.Linear(8, 6), nn.Linear(6, 2)
    return nn.Sequential(linears[0], BatchNorm1d(8), nn.ReLU(), linears[1], nn.ReLU(), linears[2]).double()


def inputs(members: int = 1) -> Tensor:
    return torch.randn(members, 16, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def node(groups: dict, **rest) -> FrozenConfig:
    return FrozenConfig.of({**ADAMW, **rest, "_partial_": True, "groups": groups})


def step(net: nn.Module, x: Tensor, *optimizers: torch.optim.Optimizer) -> None:
    for optimizer in optimizers:
        optimizer.zero_grad()
    net(x).square().mean(dim=(-1, -2)).sum().backward()
    for optimizer in optimizers:
        optimizer.step()


def check_equal(net: nn.Module, other: nn.Module) -> None:
    for (name, one), two in zip(net.named_parameters(), other.parameters(), strict=True):
        # The gradient of a bias before the norm is rounding error, which AdamW scales.
        if name != "0.bias":
            assert_close(one, two, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("no_decay", [[], ["norm", "bias"]])
def test_muon_beside_adamw_equals_both_by_hand(no_decay):
    (net,) = initial_nets(make_net, [0])
    by_hand = deepcopy(net)
    optimizer = optimizer_maker([node({"muon": MUON}, no_decay=no_decay)])(net, 1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01] * (1 + bool(no_decay)) + [0.05]
    muon = torch.optim.Muon([by_hand[3].weight], lr=0.05, weight_decay=0.2)
    vectors = [by_hand[0].bias, *by_hand[1].parameters(), by_hand[3].bias, by_hand[5].bias]
    groups = [
        {"params": [by_hand[0].weight, by_hand[5].weight]},
        {"params": vectors, "weight_decay": 0.0 if no_decay else 0.1},
    ]
    adamw = torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1)
    for _ in range(20):
        step(net, inputs()[0], optimizer)
        step(by_hand, inputs()[0], muon, adamw)
    check_equal(net, by_hand)


@pytest.mark.parametrize("members", [1, 3])
def test_elementwise_groups_train_each_member_as_alone(members):
    population = Population(initial_nets(make_net, list(range(members))))
    groups = {
        "slow": {"match": ["norm"], "lr": 0.001},
        "rms": {"match": ["hidden"], "_target_": "torch.optim.RMSprop"},
    }
    optimizer = optimizer_maker([node(groups)] * members)(population.net, members)
    x = inputs(members)
    for _ in range(5):
        step(population, x, optimizer)
    for k, net in enumerate(initial_nets(make_net, list(range(members)))):
        rest = [*net[0].parameters(), net[3].bias, *net[5].parameters()]
        optimizers = [
            torch.optim.AdamW(rest, lr=0.01, weight_decay=0.1),
            torch.optim.AdamW(net[1].parameters(), lr=0.001, weight_decay=0.1),
            torch.optim.RMSprop([net[3].weight]),
        ]
        for _ in range(5):
            step(net, x[k], *optimizers)
        trained = make_net()
        trained.load_state_dict(population.member(k))
        check_equal(trained, net)


def test_training_continues_from_a_state():
    (net,) = initial_nets(make_net, [0])
    optimizer = optimizer_maker([node({"muon": MUON})])(net, 1)
    step(net, inputs()[0], optimizer)
    again = deepcopy(net)
    continued = optimizer_maker(
        [
            node(
                {
                    "muon": MUON,
                }
            )
        ]
    )(again, 1)
    continued.load_state_dict(deepcopy(optimizer.state_dict()))
    for group in (*optimizer.param_groups, *continued.param_groups):
        group["lr"] = 0.03
    for _ in range(3):
        step(net, inputs()[0], optimizer)
        step(again, inputs()[0], continued)
    for one, two in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)


def test_closure_is_called_once():
    net, calls = make_net(), []
    optimizer = optimizer_maker([node({"muon": MUON})])(net, 1)

    def closure() -> Tensor:
        calls.append(1)
        optimizer.zero_grad()
        loss = net(inputs()[0]).square().mean()
        loss.backward()
        return loss

    before = deepcopy(net.state_dict())
    assert optimizer.step(closure).item() > 0
    assert len(calls) == 1
    assert not any(torch.equal(before[name], p) for name, p in net.named_parameters() if name != "0.bias")


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 2}, [[0.01, 0.05], [0.001, 0.005]]),
        (
            {"_target_": "torch.optim.lr_scheduler.OneCycleLR", "max_lr": 0.02, "total_steps": 5, "pct_start": 0.5,
             "cycle_momentum": False},
            [[0.02 / 25, 0.1 / 25], [0.0168, 0.084]],
        ),
    ],
    ids=["step", "onecycle"],
)  # fmt: skip
def test_schedules_drive_all_groups_in_proportion(schedule, expected):
    optimizer = optimizer_maker([node({"muon": MUON})])(make_net(), 1)
    scheduler = PopulationScheduler(optimizer, [lambda holder: make_scheduler(schedule, holder)])
    reference = optimizer_maker([node({"muon": MUON})])(make_net(), 1)
    theirs = make_scheduler(schedule, reference)
    rates = []
    for _ in range(3):
        rates.append([group["lr"] for group in optimizer.param_groups])
        assert rates[-1] == [group["lr"] for group in reference.param_groups]
        scheduler.step()
        reference.step()
        theirs.step()
    assert rates[0] == pytest.approx(expected[0])
    assert rates[2][1] == pytest.approx(5 * rates[2][0])
    if "StepLR" in schedule["_target_"]:
        assert rates[2] == pytest.approx(expected[1])


@pytest.mark.parametrize(
    ("net", "names"),
    [
        (MLP((3,), 2, hidden=[4]), []),
        (MLP((3,), 2, hidden=[4, 5, 6], norm=nn.LayerNorm), ["hidden2.linear.weight", "hidden3.linear.weight"]),
        (
            MLP((3,), 2, hidden=[4, 5], weight=weight_normalization),
            ["hidden2.linear.parametrizations.weight.original1"],
        ),
        (ResMLP((3,), 2, width=4, blocks=1), ["blocks.0.linear1.weight", "blocks.0.linear2.weight"]),
        (CNN((1, 8, 8), 3, channels=[4, 4]), []),
    ],
    ids=["one hidden layer", "mlp", "wn", "resmlp", "cnn"],
)
def test_hidden_matrices(net, names):
    found = group_names(net, ["hidden"], "key")
    assert [name.replace("block1", "blocks.0") for name in found] == names


def test_members_do_not_count_as_an_axis():
    nets = [MLP((3,), 2, hidden=[4, 5], norm=nn.LayerNorm) for _ in range(2)]
    assert group_names(Population(nets).net, ["hidden"], "key", members=2) == ["hidden2.linear.weight"]


def test_parameters_outside_the_net_are_trained_by_the_rest():
    net, other = make_net(), nn.Linear(6, 6).double()
    factory = TorchOptimizer(node({"muon": MUON}))
    optimizer = factory.of([*net.parameters(), *other.parameters()], net)
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    assert sizes == [len(list(net.parameters())) - 1 + 2, 1]
    assert type(factory.of(other.parameters(), net)) is torch.optim.AdamW
    with pytest.raises(ConfigError, match=r"optimizer.groups has no effect: the module takes no net; remove it"):
        factory.of(other.parameters(), None)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"a": {"match": ["^9"]}}, r"optimizer.groups.a.match must be norm, bias, hidden or a part .*, got \^9"),
        (
            {"a": {"match": ["bias"]}, "b": {"match": ["norm"]}},
            r"groups.a.match and .*b.match .* both select 1.bias",
        ),
        (
            {"a": {"match": ["."]}},
            "must be such that they leave some parameters to optimizer._target_=torch.optim.Ad",
        ),
        (
            {"a": {"match": ["^3"], "_target_": "torch.optim.LBFGS"}},
            "optimizer.groups.a: torch.optim.LBFGS needs a c",
        ),
        ({"a": {**MUON, "match": ["bias"]}}, "optimizer.groups.a: Muon only supports 2D parameters"),
        (
            {"a": {"match": ["^3"], "_target_": "torch.optim.lr_scheduler.StepLR"}},
            r"groups.a: torch.optim.lr_scheduler.StepLR needs the argument step_size; write optimizer.gr",
        ),
    ],
)
def test_impossible_groups(groups, message):
    with pytest.raises(ConfigError, match=message):
        optimizer_maker([node(groups)])(make_net(), 1)


def test_command_line(run_train):
    hidden = ["optimizer=muon", "net.hidden=[8,8]"]
    outcome = run_train("-m", "module=population,lightning", "seed=0,1", *hidden, *SHORT)
    assert outcome.code == 0, outcome.err
    reason = "torch.optim.Muon: its step of a parameter depends on the other parameters and members"
    assert reason in outcome.out + outcome.err
    losses = {}
    for line in (outcome.out + outcome.err).splitlines():
        if "finished after" in line:
            name, _, rest = line.partition(": ")
            losses.setdefault(rest.partition("val/loss best")[2], []).append(name)
    assert sorted(len(names) for names in losses.values()) == [2, 2]


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (
            ["optimizer=muon"],
            "optimizer.groups.muon.match must select a parameter, got hidden; hidden are the weight",
        ),
        (["optimizer=muon", "optimizer.groups.muon.lrr=1"], "did you mean optimizer.groups.muon.lr?"),
        (["optimizer.groups.a.lr=1"], "optimizer.groups.a.match must be a list of norm, bias, hidden or regular"),
        (
            ["optimizer=muon", "optimizer.groups.muon.lr=-1", "net.hidden=[8,8]"],
            "optimizer.groups.muon: Learning rate should be >= 0",
        ),
        (
            ["optimizer=muon", "optimizer.groups.muon._target_=nope.X"],
            "optimizer.groups.muon._target_=nope.X cannot",
        ),
        (
            ["optimizer=muon", "scheduler=onecycle", "net.hidden=[8,8]"],
            "scheduler: optimizer must support momentum or beta1 with `cycle_momentum` option enabled",
        ),
    ],
    ids=str,
)
def test_faulty_groups_give_the_remedy(run_train, words, answer):
    for module in ("population", "lightning"):
        outcome = run_train(*words, f"module={module}", *SHORT)
        assert outcome.code == 1
        assert answer in outcome.err
        assert len(outcome.err.strip().splitlines()) == 1, outcome.err
