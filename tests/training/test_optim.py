import math
import warnings
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn
from torch.testing import assert_close

from normlab.training.optim import SGD, Adam, AdamW, StackedOptimizer, clip_grad_norm

SHAPES = ((4, 3), (4,), ())
STEPS = 50
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

# Said once a process, whichever test comes first; one test below looks for it.
pytestmark = pytest.mark.filterwarnings("ignore:grad and param do not obey the gradient layout contract")


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
def test_sgd_equals_torchs(numbers, nesterov):
    same_as_torch(SGD, torch.optim.SGD, {**numbers, "nesterov": nesterov}, **EXACT)


@given(numbers=ADAM_NUMBERS, decoupled=st.booleans())
@settings(deadline=None, max_examples=25)
def test_adam_and_adamw_equal_torchs(numbers, decoupled):
    ours, torchs = (AdamW, torch.optim.AdamW) if decoupled else (Adam, torch.optim.Adam)
    same_as_torch(ours, torchs, numbers, **EXACT)


@EACH
def test_in_float32_they_equal_torchs_to_its_precision(ours, torchs, numbers):
    same_as_torch(ours, torchs, numbers, torch.float32, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("ours", "torchs"), [(SGD, torch.optim.SGD), (Adam, torch.optim.Adam), (AdamW, torch.optim.AdamW)]
)
def test_the_defaults_are_torchs(ours, torchs):
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
def test_three_members_with_numbers_of_their_own_equal_three_optimizers_alone(ours, numbers):
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


def test_training_several_members_warns_of_nothing():
    params = parameters(lead=(3,))
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            trained(params, SGD(params, members=3), steps=2)
    finally:
        torch.set_warn_always(False)


def test_parameters_are_views_of_theta_and_gradients_of_grad():
    params = parameters(lead=(3,))
    values = [p.detach().clone() for p in params]
    optimizer = SGD(params, lr=0.1, members=3)

    assert optimizer.theta.shape == optimizer.grad.shape == (3, 17)
    assert all(torch.equal(p, value) for p, value in zip(params, values, strict=True)), "the values have changed"
    optimizer.theta.fill_(2.0)
    optimizer.grad.fill_(3.0)
    for p in params:
        assert torch.all(p == 2)
        assert torch.all(p.grad == 3)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_keeps_the_views(set_to_none):
    params = parameters()
    optimizer = Adam(params)
    loss(params).backward()
    views = [p.grad for p in params]

    optimizer.zero_grad(set_to_none=set_to_none)

    assert all(p.grad is view and not view.any() for p, view in zip(params, views, strict=True))
    assert not optimizer.grad.any()


@EACH
@pytest.mark.parametrize("left_out", [False, True], ids=["all in the loss", "one left out of the loss"])
def test_gradients_that_backward_made_anew_are_used_and_come_back_to_their_place(ours, torchs, numbers, left_out):
    params, usual = parameters(), parameters()
    optimizer, other = ours(params, **numbers), ours(usual, **numbers)
    for step in range(3):
        for p in params:
            p.grad = None
        other.zero_grad()
        loss(params, step).backward()
        loss(usual, step).backward()
        if left_out:
            params[1].grad = None
            usual[1].grad.zero_()
        optimizer.step()
        other.step()

    assert_close(params, usual)
    assert all(p.grad.untyped_storage().data_ptr() == optimizer.grad.untyped_storage().data_ptr() for p in params)


def test_a_gradient_put_in_by_hand_is_used():
    (p,) = params = [nn.Parameter(torch.ones(2))]
    optimizer = SGD(params, lr=0.5)
    p.grad = torch.tensor([1.0, -2.0])
    optimizer.step()

    assert_close(p.detach(), torch.tensor([0.5, 2.0]))


def test_zero_grad_forgets_a_gradient_that_left_its_place():
    """Module.zero_grad sets gradients to None, and the next backward puts in new ones."""
    params, usual = parameters(), parameters()
    for p, optimizer in ((params, SGD(params, lr=0.1)), (usual, torch.optim.SGD(usual, lr=0.1))):
        for parameter in p:
            parameter.grad = None
        loss(p, 1).backward()
        optimizer.zero_grad()
        loss(p, 2).backward()
        optimizer.step()

    assert_close(params, usual)


@EACH
def test_a_frozen_parameter_stays_as_it_is(ours, torchs, numbers):
    params, expected = parameters(), parameters()
    for p in (params, expected):
        p[1].requires_grad_(False)
    before = params[1].detach().clone()

    trained(params, ours(params, **numbers), steps=3)
    trained(expected, torchs(expected, **numbers), steps=3)

    assert torch.equal(params[1], before)
    assert_close(params, expected, **EXACT)


def test_a_closure_is_called_with_gradients_on_and_its_loss_returned():
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
def test_nesterov_without_momentum_is_refused(momentum):
    with pytest.raises(ValueError, match=r"optimizer\.nesterov needs optimizer\.momentum > 0"):
        SGD(parameters(lead=(2,)), lr=0.1, momentum=momentum, nesterov=True, members=2)


@EACH
def test_a_member_that_is_not_finite_changes_nothing_in_the_others(ours, torchs, numbers):
    clean, spoilt = parameters(lead=(2,)), parameters(lead=(2,))
    with torch.no_grad():
        spoilt[0][1] = torch.nan
    one, other = (trained(params, ours(params, members=2, **numbers), steps=5) for params in (clean, spoilt))

    assert all(torch.equal(a[0], b[0]) for a, b in zip(one, other, strict=True))
    assert other[0][1].isnan().all()


@given(max_norm=st.floats(1e-3, 1e3), scale=st.floats(1e-3, 1e3))
@settings(deadline=None, max_examples=40)
def test_clipping_one_member_equals_torchs(max_norm, scale):
    params, expected = parameters(), parameters()
    for p in (params, expected):
        (scale * loss(p)).backward()

    norms = clip_grad_norm(params, 1, max_norm)

    norm = nn.utils.clip_grad_norm_(expected, max_norm)
    assert_close(norms, norm.view(1))
    assert_close([p.grad for p in params], [p.grad for p in expected], **EXACT)


def test_a_large_gradient_is_clipped_without_scaling_another_members():
    params = parameters(lead=(3,))
    optimizer = StackedOptimizer(params, 3, {"lr": 0.1})
    optimizer.grad.copy_(torch.randn(3, 17, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    optimizer.grad.mul_(torch.tensor([[1e6], [1e-3], [torch.nan]]))
    before = optimizer.grad.clone()

    norms = clip_grad_norm(params, 3, 1.0)

    assert_close(norms, before.norm(dim=1), equal_nan=True)
    assert_close(optimizer.grad[0], before[0] / before[0].norm())
    assert torch.equal(optimizer.grad[1], before[1])
