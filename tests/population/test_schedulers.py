import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn
from torch.optim import lr_scheduler

from normlab.population.optim import SGD
from normlab.population.schedulers import CosineAnnealingLR, ReduceLROnPlateau, Scheduler, StepLR

NO_LOSS = torch.tensor([math.nan])
PLAIN = {"factor": 0.5, "patience": 2}

LOSSES = st.lists(
    st.sampled_from([0.0, 0.5, 1.0, 1.0001, 2.0, 1e9, -1.0, math.inf, -math.inf, math.nan]) | st.floats(-10, 10),
    min_size=1,
    max_size=40,
)
PLATEAU = st.fixed_dictionaries(
    {
        "factor": st.floats(1e-3, 0.9),
        "patience": st.integers(0, 4),
        "threshold": st.sampled_from([0.0, 1e-4, 0.5, 1.0]),
        "cooldown": st.integers(0, 4),
        "min_lr": st.sampled_from([0.0, 0.01, 0.09, 0.1, 1.0]),
    }
)


def stacked(lr: float | list[float], members: int = 1) -> SGD:
    return SGD([nn.Parameter(torch.zeros(members, 2))], lr=lr, members=members)


def plain(lr: float) -> torch.optim.SGD:
    return torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=lr)


def rates_over_epochs(scheduler: Scheduler, losses: list[Tensor]) -> Tensor:
    """Return the learning rates of all members after each epoch, ``(epochs, K)``."""
    rates = [scheduler.lr]
    for loss in losses:
        scheduler.step(loss)
        rates.append(scheduler.lr)
    return torch.cat(rates, dim=1).T


def torch_rates(scheduler: lr_scheduler.LRScheduler, losses: list[float] | int) -> list[float]:
    rates = [scheduler.optimizer.param_groups[0]["lr"]]
    for loss in losses if isinstance(losses, list) else [None] * losses:
        scheduler.optimizer.step()
        scheduler.step(*([] if loss is None else [loss]))
        rates.append(scheduler.optimizer.param_groups[0]["lr"])
    return rates


def column(losses: list[float]) -> list[Tensor]:
    return [torch.tensor([loss], dtype=torch.float64) for loss in losses]


@given(lr=st.floats(1e-5, 1), step_size=st.integers(1, 7), gamma=st.floats(0, 1))
@settings(deadline=None, max_examples=30)
def test_step_equals_torch(lr, step_size, gamma):
    ours = rates_over_epochs(StepLR(stacked(lr), step_size=step_size, gamma=gamma), [NO_LOSS] * 20)
    expected = torch_rates(lr_scheduler.StepLR(plain(lr), step_size=step_size, gamma=gamma), 20)

    assert ours[:, 0].tolist() == pytest.approx(expected, rel=1e-12)


@given(lr=st.floats(1e-5, 1), T_max=st.integers(1, 30), eta_min=st.floats(0, 0.1))
@settings(deadline=None, max_examples=30)
def test_cosine_equals_torch_even_past_its_end(lr, T_max, eta_min):
    ours = rates_over_epochs(CosineAnnealingLR(stacked(lr), T_max=T_max, eta_min=eta_min), [NO_LOSS] * 40)
    expected = torch_rates(lr_scheduler.CosineAnnealingLR(plain(lr), T_max=T_max, eta_min=eta_min), 40)

    assert ours[:, 0].tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(losses=LOSSES, numbers=PLATEAU)
@settings(deadline=None, max_examples=200)
def test_plateau_equals_torch(losses, numbers):
    ours = rates_over_epochs(ReduceLROnPlateau(stacked(0.1), **numbers), column(losses))
    expected = torch_rates(lr_scheduler.ReduceLROnPlateau(plain(0.1), **numbers), losses)

    assert ours[:, 0].tolist() == pytest.approx(expected, rel=1e-12)


def test_plateau_never_increases_a_rate_below_minimum():
    rates = rates_over_epochs(ReduceLROnPlateau(stacked(0.01), **PLAIN, min_lr=0.1), column([1.0] * 8))

    assert rates.unique().tolist() == pytest.approx([0.01])


@pytest.mark.parametrize("loss", [[1.0, 2.0, 2.0, 2.0], [1.0] * 4, [1.0] + [math.nan] * 3, [math.nan] * 3])
def test_plateau_waits_for_more_than_patience_epochs(loss):
    rates = rates_over_epochs(ReduceLROnPlateau(stacked(0.1), **PLAIN), column(loss))

    assert rates[-2:, 0].tolist() == pytest.approx([0.1, 0.05])


@pytest.mark.parametrize(
    ("make", "torch_make", "numbers"),
    [
        (StepLR, lr_scheduler.StepLR, {"step_size": [1, 3, 7], "gamma": [0.5, 0.1, 0.9]}),
        (CosineAnnealingLR, lr_scheduler.CosineAnnealingLR, {"T_max": [5, 10, 20], "eta_min": [0.0, 0.01, 0.001]}),
        (
            ReduceLROnPlateau,
            lr_scheduler.ReduceLROnPlateau,
            {
                "factor": [0.5, 0.1, 0.9],
                "patience": [0, 1, 3],
                "cooldown": [0, 2, 1],
                "threshold": [0.0, 0.1, 0.5],
            },
        ),
    ],
)
def test_members_equal_separate_schedulers(make, torch_make, numbers):
    rates = [0.1, 0.05, 1.0]
    noise = torch.rand(25, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    losses = noise / torch.arange(1, 26, dtype=torch.float64).unsqueeze(1).sqrt()

    together = rates_over_epochs(make(stacked(rates, 3), members=3, **numbers), list(losses))

    for k, lr in enumerate(rates):
        alone = torch_make(plain(lr), **{name: values[k] for name, values in numbers.items()})
        follows_loss = make is ReduceLROnPlateau
        expected = torch_rates(alone, losses[:, k].tolist() if follows_loss else 25)
        assert together[:, k].tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_plateau_is_per_member():
    improving, stuck = torch.arange(10, 0, -1).double(), torch.ones(10, dtype=torch.float64)
    rates = rates_over_epochs(
        ReduceLROnPlateau(stacked(0.1, 2), **PLAIN, members=2), list(torch.stack([improving, stuck], dim=1))
    )

    assert torch.all(rates[:, 0] == 0.1)
    assert rates[-1, 1] == pytest.approx(0.0125)


SCHEDULERS = pytest.mark.parametrize(
    ("make", "numbers"),
    [
        (StepLR, {"step_size": 2, "gamma": 0.5}),
        (CosineAnnealingLR, {"T_max": 12}),
        (ReduceLROnPlateau, {**PLAIN, "cooldown": 1}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
TEN = column([3, 1, 2, 2, 2, 2, 0.5, 1, 1, 1])


@SCHEDULERS
def test_optimizer_uses_the_scheduled_rate(make, numbers):
    optimizer = stacked(0.1)
    scheduler = make(optimizer, **numbers)
    for loss in TEN:
        scheduler.step(loss)
    (parameter,) = optimizer.param_groups[0]["params"]
    parameter.grad = torch.ones(1, 2)
    optimizer.step()

    assert scheduler.lr.item() < 0.1
    assert optimizer.theta[0].tolist() == pytest.approx([-scheduler.lr.item()] * 2)


@SCHEDULERS
def test_torch_optimizer_gets_float_rates(make, numbers):
    optimizer = plain(0.1)
    rates = rates_over_epochs(make(optimizer, **numbers), TEN)

    assert torch.equal(rates, rates_over_epochs(make(stacked(0.1), **numbers), TEN))
    assert type(optimizer.param_groups[0]["lr"]) is float
    optimizer.step()


@SCHEDULERS
def test_scheduler_resumes_from_a_saved_state(make, numbers):
    uninterrupted = rates_over_epochs(make(stacked(0.1), **numbers), TEN)
    first = make(stacked(0.1), **numbers)
    rates_over_epochs(first, TEN[:5])
    state, lr = first.state_dict(), first.lr
    rates_over_epochs(first, TEN[5:])

    second = make(stacked(0.7), **numbers)
    second.load_state_dict(state)
    second.optimizer.param_groups[0]["lr"] = lr
    assert torch.equal(rates_over_epochs(second, TEN[5:]), uninterrupted[5:])
    assert all(isinstance(value, Tensor | int) for value in state.values())


def test_step_size_below_1_raises():
    with pytest.raises(ValueError, match=r"scheduler\.step_size must be at least 1, got 0"):
        StepLR(stacked(0.1), step_size=0)
