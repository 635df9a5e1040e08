import math
from collections.abc import Callable
from copy import deepcopy

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn
from torch.testing import assert_close

from normlab.population.optim import SGD, Adam, AdamW, Clipping

SHAPES = ((4, 3), (4,), ())
# With a learning rate of 0.1 this loss is chaotic: 50 steps amplify rounding differences of 1e-16 to 1e-8.
STEPS = 20
EXACT = {"rtol": 1e-10, "atol": 1e-13}

LR = st.floats(1e-4, 0.1)
DECAY = st.sampled_from([0.0, 1e-4, 0.1]) | st.floats(0, 0.5)
SGD_NUMBERS = st.fixed_dictionaries({"lr": LR, "momentum": st.floats(0.01, 0.99), "weight_decay": DECAY})
BETAS = st.tuples(st.floats(0.0, 0.99), st.floats(0.5, 0.9999))
ADAM_NUMBERS = st.fixed_dictionaries(
    {"lr": LR, "betas": BETAS, "eps": st.floats(1e-10, 1e-3), "weight_decay": DECAY}
)

PAIRS = {
    "sgd": (SGD, torch.optim.SGD, {"lr": 0.05}),
    "momentum": (SGD, torch.optim.SGD, {"lr": 0.02, "momentum": 0.9}),
    "nesterov": (SGD, torch.optim.SGD, {"lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "adam": (Adam, torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.1}),
    "adamw": (AdamW, torch.optim.AdamW, {"lr": 0.01}),
}
EACH = pytest.mark.parametrize(("ours", "torchs", "numbers"), PAIRS.values(), ids=PAIRS)


def parameters(
    seed: int = 0, dtype: torch.dtype = torch.float64, lead: tuple[int, ...] = ()
) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn((*lead, *shape), generator=generator, dtype=dtype)) for shape in SHAPES]


def loss(params: list[nn.Parameter], step: int = 0) -> Tensor:
    """A loss that is not convex and changes from step to step."""
    matrix, vector, scalar = params
    noise = math.sin(1 + step)
    wave = matrix @ matrix.new_tensor([1.0, -2.0, 0.5]) - noise
    return (wave.sin() * scalar[..., None] + 0.1 * (vector - noise).square()).sum()


def trained(params: list[nn.Parameter], optimizer: torch.optim.Optimizer, steps: int = STEPS) -> list[Tensor]:
    for step in range(steps):
        optimizer.zero_grad()
        loss(params, step).backward()
        optimizer.step()
    return [p.detach().clone() for p in params]


def same_as_torch(
    ours: Callable, torchs: Callable, numbers: dict, dtype: torch.dtype = torch.float64, **close
) -> None:
    params, expected = parameters(dtype=dtype), parameters(dtype=dtype)
    assert_close(trained(params, ours(params, **numbers)), trained(expected, torchs(expected, **numbers)), **close)


@given(numbers=SGD_NUMBERS, nesterov=st.booleans())
@settings(deadline=None, max_examples=25)
def test_sgd_equals_torch(numbers, nesterov):
    same_as_torch(SGD, torch.optim.SGD, {**numbers, "nesterov": nesterov}, **EXACT)


@given(numbers=ADAM_NUMBERS, decoupled=st.booleans())
@settings(deadline=None, max_examples=25)
def test_adam_and_adamw_equal_torch(numbers, decoupled):
    ours, torchs = (AdamW, torch.optim.AdamW) if decoupled else (Adam, torch.optim.Adam)
    same_as_torch(ours, torchs, numbers, **EXACT)


@EACH
def test_float32_equals_torch_to_its_precision(ours, torchs, numbers):
    same_as_torch(ours, torchs, numbers, torch.float32, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("ours", "torchs"), [(SGD, torch.optim.SGD), (Adam, torch.optim.Adam), (AdamW, torch.optim.AdamW)]
)
def test_defaults_equal_torch(ours, torchs):
    same_as_torch(ours, torchs, {}, **EXACT)


@pytest.mark.parametrize(
    ("ours", "numbers"),
    [
        (SGD, {"lr": [0.1, 0.01, 0.03], "momentum": [0.0, 0.9, 0.5], "weight_decay": [0.1, 0.0, 0.01]}),
        (SGD, {"lr": [0.1, 0.01, 0.03], "momentum": [0.1, 0.9, 0.5], "nesterov": True}),
        (Adam, {"lr": [0.1, 0.01, 0.03], "weight_decay": [0.0, 0.1, 0.0], "eps": [1e-8, 1e-4, 1e-6]}),
        (Adam, {"lr": 0.02, "betas": ([0.9, 0.5, 0.0], [0.999, 0.9, 0.99])}),
        (AdamW, {"lr": torch.tensor([0.1, 0.01, 0.03]), "weight_decay": [0.0, 0.1, 1.0]}),
    ],
)
def test_members_equal_separate_optimizers(ours, numbers):
    def of(member: int, number):
        if isinstance(number, tuple):
            return tuple(of(member, part) for part in number)
        return number[member] if isinstance(number, list | Tensor) else number

    members = [parameters(seed) for seed in range(3)]
    stacked = [nn.Parameter(torch.stack(list(parts)).detach()) for parts in zip(*members, strict=True)]
    together = trained(stacked, ours(stacked, members=3, **numbers))

    for k, params in enumerate(members):
        alone = trained(params, ours(params, **{name: of(k, number) for name, number in numbers.items()}))
        assert_close([part[k] for part in together], alone, **EXACT)


def test_stacked_training_does_not_warn():
    """Autograd warned about a slow layout when gradients were views of one buffer."""
    params = parameters(lead=(3,))
    torch.set_warn_always(True)
    try:
        trained(params, SGD(params, members=3), steps=2)
    finally:
        torch.set_warn_always(False)


def test_parameters_are_views_of_theta():
    params = parameters(lead=(3,))
    values = [p.detach().clone() for p in params]
    optimizer = SGD(params, lr=0.1, members=3)

    assert optimizer.theta.shape == (3, 17)
    assert all(torch.equal(p, value) for p, value in zip(params, values, strict=True))
    optimizer.theta.fill_(2.0)
    assert all(torch.all(p == 2) for p in params)


@EACH
def test_step_does_not_change_gradients(ours, torchs, numbers):
    params = parameters()
    optimizer = ours(params, **numbers)
    loss(params).backward()
    before = [p.grad.clone() for p in params]
    optimizer.step()
    optimizer.step()

    assert all(torch.equal(p.grad, grad) for p, grad in zip(params, before, strict=True))


@EACH
@pytest.mark.parametrize("clear", ["never", "to zero", "to None", "to None after a backward too many", "by hand"])
def test_gradient_accumulation_and_clearing_equal_torch(ours, torchs, numbers, clear):
    params, expected = parameters(), parameters()
    for p, optimizer in ((params, ours(params, **numbers)), (expected, torchs(expected, **numbers))):
        for step in range(4):
            if "too many" in clear:
                loss(p, 99).backward()
            if clear != "never":
                optimizer.zero_grad(set_to_none="None" in clear)
            loss(p, step).backward()
            if clear == "by hand":
                for parameter in p:
                    parameter.grad = parameter.grad.clone().mul(2)
            optimizer.step()

    assert_close(params, expected, **EXACT)


@EACH
def test_missing_gradient_counts_as_zero(ours, torchs, numbers):
    params, expected = parameters(), parameters()
    for p, optimizer in ((params, ours(params, **numbers)), (expected, torchs(expected, **numbers))):
        for step in range(3):
            loss(p, step).backward()
            p[1].grad = None if p is params else torch.zeros_like(p[1])
            optimizer.step()
            optimizer.zero_grad()

    assert_close(params, expected, **EXACT)


@EACH
def test_frozen_parameter_is_unchanged(ours, torchs, numbers):
    params, expected = parameters(), parameters()
    for p in (params, expected):
        p[1].requires_grad_(False)
    before = params[1].detach().clone()

    trained(params, ours(params, **numbers), steps=3)
    trained(expected, torchs(expected, **numbers), steps=3)

    assert torch.equal(params[1], before)
    assert_close(params, expected, **EXACT)


def test_closure_runs_with_gradients_and_returns_loss():
    params, usual = parameters(), parameters()
    optimizer, other = SGD(params, lr=0.1), torch.optim.SGD(usual, lr=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(params)
        value.backward()
        return value

    with torch.no_grad():
        assert_close(optimizer.step(closure), loss(parameters()))
    loss(usual).backward()
    other.step()
    assert_close(params, usual)
    assert optimizer.step() is None


@pytest.mark.parametrize("momentum", [0.0, [0.9, 0.0]])
def test_nesterov_without_momentum_raises(momentum):
    with pytest.raises(ValueError, match=r"optimizer\.nesterov needs optimizer\.momentum > 0"):
        SGD(parameters(lead=(2,)), lr=0.1, momentum=momentum, nesterov=True, members=2)


@EACH
def test_nonfinite_member_does_not_affect_others(ours, torchs, numbers):
    clean, corrupted = parameters(lead=(2,)), parameters(lead=(2,))
    with torch.no_grad():
        corrupted[0][1] = torch.nan
    one, other = (trained(params, ours(params, members=2, **numbers), steps=5) for params in (clean, corrupted))

    assert all(torch.equal(a[0], b[0]) for a, b in zip(one, other, strict=True))
    assert other[0][1].isnan().all()


@given(max_norm=st.floats(1e-3, 1e3), scale=st.floats(1e-3, 1e3))
@settings(deadline=None, max_examples=40)
def test_clipping_by_norm_equals_torch(max_norm, scale):
    params, expected = parameters(), parameters()
    for p in (params, expected):
        (scale * loss(p)).backward()

    grad = Clipping(max_norm)(torch.cat([p.grad.flatten() for p in params])[None])

    nn.utils.clip_grad_norm_(expected, max_norm)
    assert_close(grad[0], torch.cat([p.grad.flatten() for p in expected]), **EXACT)


def test_clipping_by_value_equals_torch():
    params, expected = parameters(), parameters()
    for p in (params, expected):
        loss(p).backward()
    grad = Clipping(0.01, "value")(torch.cat([p.grad.flatten() for p in params])[None])
    nn.utils.clip_grad_value_(expected, 0.01)
    assert_close(grad[0], torch.cat([p.grad.flatten() for p in expected]), **EXACT)
    assert grad.abs().max() == 0.01


def test_clipping_is_per_member():
    grad = torch.randn(3, 17, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grad *= torch.tensor([[1e6], [1e-3], [torch.nan]])

    clipped = Clipping(1.0)(grad)

    assert_close(clipped[0], grad[0] / grad[0].norm())
    assert torch.equal(clipped[1], grad[1])
    assert clipped[2].isnan().all()


@pytest.mark.parametrize("make", [SGD, Adam, AdamW])
def test_training_resumes_from_a_saved_state(make):
    def train(layer, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            layer(torch.ones(2, 3)).square().sum().backward()
            optimizer.step()

    def build():
        layer = nn.Linear(3, 2)
        return layer, make(layer.parameters(), lr=0.1, **({"momentum": 0.9} if make is SGD else {}))

    whole, optimizer = build()
    torch.manual_seed(0)
    begin = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    train(whole, optimizer, 6)
    first, first_optimizer = build()
    first.load_state_dict(begin)
    train(first, first_optimizer, 3)
    second, second_optimizer = build()
    second.load_state_dict(first.state_dict())
    second_optimizer.load_state_dict(deepcopy(first_optimizer.state_dict()))
    train(second, second_optimizer, 3)
    assert torch.equal(second.weight, whole.weight)


def test_tabulated_factors_of_adam_are_those_of_each_update():
    parameter = nn.Parameter(torch.zeros(3, 2))
    adam = Adam([parameter], lr=[0.1, 0.01, 0.001], betas=(0.9, [0.99, 0.999, 0.5]), members=3)
    for t in [*range(1, 70), 10, 5000, 5001]:  # a resumed run begins at any update
        if t == 40:
            adam.set_numbers({"lr": torch.full((3, 1), 0.2, dtype=torch.float64)})
        now = torch.tensor(float(t), dtype=torch.float64)
        for tabulated, direct in zip(adam.tabulated_factors(now), adam.factors(now), strict=True):
            torch.testing.assert_close(tabulated, direct, rtol=1e-6, atol=0)
