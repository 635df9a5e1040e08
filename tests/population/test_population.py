import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from normlab.models import MLP
from normlab.models.layer_lookup import normalizers
from normlab.models.layers import Dropout
from normlab.norms import ActNorm, BatchNorm1d, BatchNorm2d, BatchRenorm, GhostBatchNorm
from normlab.population.evaluation import Regression
from normlab.population.optim import SGD
from normlab.population.population import Population, copy_of, initial_nets

SEEDS = [7, 0, 3]
NORMS = {
    "none": None,
    "formula": BatchNorm1d,
    "fused": partial(BatchNorm1d, fused=True),
    "torch": nn.BatchNorm1d,
    "formula, cumulative": partial(BatchNorm1d, momentum=None),
    "formula, no statistics": partial(BatchNorm1d, track_running_stats=False),
    "layer norm": nn.LayerNorm,
}
EACH_NORM = pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)


def maker(norm: Callable[[int], nn.Module] | None = None) -> Callable[[], nn.Module]:
    return lambda: MLP((4,), 2, hidden=[6, 5], norm=norm, activation="tanh").double()


def nets(norm: Callable[[int], nn.Module] | None = None, seeds: list[int] = SEEDS) -> list[nn.Module]:
    return initial_nets(maker(norm), seeds)


def data(members: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(members, 12, 4, generator=generator, dtype=torch.float64)
    return x, torch.randn(members, 12, 2, generator=generator, dtype=torch.float64)


def tensors(net: nn.Module) -> dict[str, Tensor]:
    return {**dict(net.named_parameters()), **dict(net.named_buffers())}


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (partial(BatchNorm1d, fused=True), ()),
        (partial(BatchNorm2d, fused=True), (3, 3)),
        (partial(GhostBatchNorm, ghost_size=1000, fused=True), ()),
        (partial(BatchRenorm, fused=True), ()),
    ],
    ids=["bn", "bn2d", "ghost", "brn"],
)
def test_large_means_equal_single_nets_in_float32(norm, shape):
    def make() -> nn.Module:
        return nn.Sequential(norm(4), nn.Flatten(), nn.LazyLinear(2))

    x = torch.randn(2, 2000, 4, *shape, generator=torch.Generator().manual_seed(0))
    # Only the first member is too far from zero for the kernel and needs the formula.
    x[0] += 1e6
    alone = initial_nets(make, SEEDS[:2])
    for net in alone:
        net.eval()(x[1])
    population = Population(copy.deepcopy(alone))
    for _ in range(2):
        outputs = population.train()(x)
        for k, net in enumerate(alone):
            assert_close(outputs[k], net.train()(x[k]), rtol=0, atol=0.05)
            assert_close(population.member(k)["0.running_var"], net[0].running_var, rtol=0.01, atol=0)
    assert [net[0].loses_digits for net in alone] == [True, False]


@EACH_NORM
def test_stacked_members_equal_single_nets(norm):
    alone, population = nets(norm), Population(nets(norm))
    task = Regression()
    for batch in range(3):
        x, y = data(seed=batch)
        outputs = population(x)
        task.loss(outputs, y).sum().backward()
        for k, net in enumerate(alone):
            expected = net(x[k])
            nn.functional.mse_loss(expected, y[k]).backward()
            assert_close(outputs[k], expected)

    state = population.state()
    for k, net in enumerate(alone):
        for name, parameter in net.named_parameters():
            assert_close(state[name].grad[k], parameter.grad, msg=f"gradient of {name}: {{}}".format)
        for name, buffer in net.named_buffers():
            assert_close(state[name][k], buffer, msg=f"{name}: {{}}".format)
    statistics = {name: buffer.clone() for name, buffer in population.named_buffers()}
    x, _ = data(seed=9)
    population.eval()
    assert_close(population(x), torch.stack([net.eval()(x[k]) for k, net in enumerate(alone)]))
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in population.named_buffers())


@EACH_NORM
def test_members_have_independent_gradients(norm):
    population, (x, y) = Population(nets(norm)), data()
    parameters = dict(population.named_parameters())

    losses = Regression().loss(population(x), y)
    for i in range(3):
        gradients = torch.autograd.grad(losses[i], list(parameters.values()), retain_graph=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            assert gradient[i].any() or name.endswith("linear.bias"), f"{name} does not learn"
            for j in {0, 1, 2} - {i}:
                assert not gradient[j].any(), f"loss of {i}, {name} of {j}"


@EACH_NORM
def test_population_of_one_is_the_net_itself(norm):
    (net,) = nets(norm, [5])
    twin = copy.deepcopy(net)
    population, (x, _) = Population([net]), data(1)

    outputs = population(x)

    assert population.net is net
    assert [*population.parameters()] == [*net.parameters()]
    assert torch.equal(outputs[0], twin(x[0]))
    assert all(torch.equal(tensor, tensors(twin)[name]) for name, tensor in tensors(net).items())


@EACH_NORM
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("members", [1, 3])
def test_observed_members_equal_single_nets(norm, training, members):
    seeds = SEEDS[:members]
    alone, population, (x, _) = nets(norm, seeds), Population(nets(norm, seeds)).train(training), data(members)

    outputs, seen = population.observe(x, normalizers(population.net))

    assert list(seen) == ["hidden1", "hidden2"]
    for k, net in enumerate(alone):
        net.train(training)
        expected, moments = normalizers(net).observe(partial(net, x[k]))
        assert_close(outputs[k], expected)
        for layer, values in seen.items():
            assert values.shape == (members, 4)
            assert_close(values[k], moments[layer])


@pytest.mark.parametrize("members", [1, 3])
def test_copied_state_can_be_restored(members):
    population, (x, _) = Population(nets(BatchNorm1d, SEEDS[:members])), data(members)
    population(x)
    saved = {name: tensor.detach().clone() for name, tensor in population.state().items()}
    population.eval()
    before = population(x)

    population.train()
    population(10 * x)
    with torch.no_grad():
        for parameter in population.parameters():
            parameter.add_(1)
    population.load_state(saved)

    assert torch.equal(population.eval()(x), before)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in population.state().items())
    assert saved["hidden1.norm.num_batches_tracked"].tolist() == [1] * members


@pytest.mark.parametrize("members", [1, 3])
def test_state_has_net_names_and_shares_memory(members):
    alone, population = nets(BatchNorm1d), Population(nets(BatchNorm1d, SEEDS[:members]))
    state = population.state()

    assert {name: (members, *t.shape) for name, t in tensors(alone[0]).items()} == {
        name: tuple(t.shape) for name, t in state.items()
    }
    for k, net in enumerate(alone[:members]):
        net.load_state_dict({name: tensor[k] for name, tensor in state.items()})
    state["output.bias"].data.fill_(3.0)
    assert torch.all(population.net.output.bias == 3)


def test_state_follows_the_optimizer():
    population, (x, y) = Population(nets()), data()
    optimizer = SGD(population.parameters(), lr=0.1, members=3)
    before = population.state()["output.bias"].detach().clone()

    Regression().loss(population(x), y).sum().backward()
    optimizer.step()

    assert_close(population.state()["output.bias"], before - 0.1 * population.net.output.bias.grad)


@pytest.mark.parametrize("members", [1, 3])
def test_frozen_parameter_stays_frozen(members):
    frozen = nets(BatchNorm1d, SEEDS[:members])
    for net in frozen:
        net.hidden1.norm.weight.requires_grad_(False)

    parameters = dict(Population(frozen).named_parameters())

    assert [name for name, p in parameters.items() if not p.requires_grad] == ["net.hidden1.norm.weight"]


def test_initial_nets_follow_seeds_and_restore_generator():
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    made = nets(BatchNorm1d)
    assert torch.equal(torch.random.get_rng_state(), before)

    for seed, net in zip(SEEDS, made, strict=True):
        torch.manual_seed(seed)
        assert all(torch.equal(t, tensors(net)[name]) for name, t in tensors(maker(BatchNorm1d)()).items())
    assert not torch.equal(made[0].output.weight, made[1].output.weight)


def test_initial_net_is_independent_of_other_members():
    (alone,) = nets(seeds=[3])

    assert all(torch.equal(t, tensors(nets()[2])[name]) for name, t in tensors(alone).items())


def test_member_state_dict_has_extra_state():
    class Layer(nn.Linear):
        def get_extra_state(self) -> Tensor:
            return torch.tensor([1.0, 2.0])

        def set_extra_state(self, state: Tensor) -> None:
            pass

    made = [nn.Sequential(Layer(3, 2)) for _ in range(2)]
    for members in (made[:1], made):
        own = Population(members).member(len(members) - 1)
        assert list(own) == list(members[-1].state_dict())
        assert torch.equal(own["0._extra_state"], torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize("members", [1, 2])
def test_initialization_changes_only_waiting_layers(members):
    def make() -> nn.Module:
        first = [nn.Linear(4, 6), BatchNorm1d(6), Dropout(0.5), nn.Dropout(0.5), ActNorm(6)]
        return nn.Sequential(*first, nn.Sequential(nn.Linear(6, 3), ActNorm(3))).double()

    population, x = Population(initial_nets(make, SEEDS[:members])), data(members)[0]
    before, drawn = {name: tensor.clone() for name, tensor in population.state().items()}, torch.get_rng_state()
    population.train().initialize_layers(x)
    state = population.state()
    moved = {name for name, tensor in state.items() if not torch.equal(tensor, before[name])}
    own = ("initial_mean", "initial_var", "initialized")
    assert moved == {f"{layer}.{name}" for layer in ("4", "5.1") for name in own}
    assert torch.equal(torch.get_rng_state(), drawn)

    # The second call changes nothing.
    state = {name: tensor.clone() for name, tensor in state.items()}
    population.initialize_layers(x + 1)
    assert all(torch.equal(tensor, state[name]) for name, tensor in population.state().items())


class TiedPair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).tanh())


def tied_net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), TiedPair(), nn.Linear(8, 1))


def test_tied_weights_are_one_parameter():
    tied = Population([tied_net() for _ in range(2)])
    state = copy_of(tied)
    assert "1.b.weight" not in state
    assert tied.member(1)["1.b.weight"].equal(state["1.a.weight"][1])
    alone = tied.member_net(1)
    assert alone[1].a.weight is alone[1].b.weight
    x = torch.randn(5, 3)
    assert_close(alone(x), tied(x.expand(2, 5, 3))[1])
