"""Schedulers of a population against plain loops in torch, one optimizer and scheduler per member, in float64."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.testing import assert_close

from normlab.population.optim import SGD, Adam, AdamW, StackedOptimizer, StackedTorch
from normlab.population.schedulers import PopulationScheduler
from normlab.population.stacking_check import check_optimizer_stacking

K, STEPS = 3, 24
RATES = [0.1, 0.05, 0.02]
MakeAll = Callable[[int], Callable[[torch.optim.Optimizer], Any]]


def warm_up_then_cosine(optimizer: torch.optim.Optimizer, length: int) -> lr_scheduler.SequentialLR:
    parts: list = [
        lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=length),
        lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS - length),
    ]
    return lr_scheduler.SequentialLR(optimizer, parts, milestones=[length])


SCHEDULES: dict[str, MakeAll] = {
    "step": lambda k: partial(lr_scheduler.StepLR, step_size=k + 2, gamma=0.5),
    "cosine": lambda k: partial(lr_scheduler.CosineAnnealingLR, T_max=8 + k, eta_min=0.001),
    "plateau": lambda k: partial(lr_scheduler.ReduceLROnPlateau, patience=k, factor=0.5, cooldown=1),
    "one cycle": lambda k: partial(lr_scheduler.OneCycleLR, max_lr=RATES[k], total_steps=STEPS + k),
    "sequential": lambda k: partial(warm_up_then_cosine, length=3 + k),
    "lambda": lambda k: partial(lr_scheduler.LambdaLR, lr_lambda=lambda epoch: 0.9**epoch),
    "cyclic": lambda k: partial(lr_scheduler.CyclicLR, base_lr=0.01, max_lr=RATES[k], step_size_up=4),
}
OPTIMIZERS: dict[str, tuple[type[StackedOptimizer], Any, dict[str, Any]]] = {
    "sgd": (SGD, torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.01}),
    "adam": (Adam, torch.optim.Adam, {"weight_decay": 0.01}),
    "adamw": (AdamW, torch.optim.AdamW, {}),
}


def losses_of(theta: Tensor) -> Tensor:
    """Return a loss of each member with curvatures from 0.5 to 3, ``(K, 4)`` to ``(K,)``."""
    return (torch.linspace(0.5, 3, theta.shape[1], dtype=theta.dtype) * (theta - 1).square()).sum(1)


def start() -> Tensor:
    return torch.randn(K, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def is_plateau(scheduler: object) -> bool:
    return isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)


def trained_alone(make: Any, options: dict[str, Any], schedule: MakeAll, k: int) -> list[Tensor]:
    """Train member k by torch's optimizer and scheduler; return its parameters after each step."""
    theta = nn.Parameter(start()[k : k + 1])
    optimizer = make([theta], lr=RATES[k], **options)
    scheduler, path = schedule(k)(optimizer), []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = losses_of(theta)
        loss.sum().backward()
        optimizer.step()
        scheduler.step(*([loss.item()] if is_plateau(scheduler) else []))
        path.append(theta.detach().clone())
    return path


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_members_equal_plain_loops(optimizer, schedule):
    kind, torch_kind, options = OPTIMIZERS[optimizer]
    theta = nn.Parameter(start())
    stacked = kind([theta], lr=RATES, members=K, **options)
    scheduler = PopulationScheduler(stacked, [SCHEDULES[schedule](k) for k in range(K)])
    assert scheduler.needs_metric == (schedule == "plateau")
    path = []
    for step in range(STEPS):
        if step % 5 == 0:
            scheduler.prepare(min(7, STEPS - step))
        stacked.zero_grad()
        loss = losses_of(theta)
        loss.sum().backward()
        stacked.step()
        scheduler.step(loss.detach())
        path.append(theta.detach().clone())
    expected = [trained_alone(torch_kind, options, SCHEDULES[schedule], k) for k in range(K)]
    assert_close(
        torch.stack(path), torch.cat([torch.stack(one) for one in expected], dim=1), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_one_cycle_moves_rate_and_momentum(optimizer):
    kind, _, options = OPTIMIZERS[optimizer]
    stacked = kind([nn.Parameter(start())], lr=RATES, members=K, **options)
    scheduler = PopulationScheduler(stacked, [SCHEDULES["one cycle"](k) for k in range(K)])
    names = ("lr", "momentum" if optimizer == "sgd" else "beta1")
    before = [stacked.param_groups[0][name].clone() for name in names]
    kept = stacked.param_groups[0]["lr"], stacked.param_groups[0]["lr"].clone()
    scheduler.step()
    assert all(bool((stacked.param_groups[0][n] != b).all()) for n, b in zip(names, before, strict=True))
    assert torch.equal(*kept), "tensors that were recorded stay"


def test_equal_schedules_are_computed_once():
    def scheduler_of(makes: list, rates: list[float]) -> PopulationScheduler:
        return PopulationScheduler(SGD([nn.Parameter(start())], lr=rates, members=K), makes)

    step = SCHEDULES["step"](0)
    assert len(scheduler_of([step] * K, [0.1] * K).schedulers) == 1
    assert len(scheduler_of([step] * K, [0.1, 0.2, 0.1]).schedulers) == 2
    assert len(scheduler_of([SCHEDULES["step"](k) for k in range(K)], [0.1] * K).schedulers) == K
    assert len(scheduler_of([SCHEDULES["plateau"](0)] * K, [0.1] * K).schedulers) == K


def test_plateau_waits_without_metric():
    optimizer = SGD([nn.Parameter(start())], lr=RATES, members=K)
    scheduler = PopulationScheduler(optimizer, [partial(lr_scheduler.ReduceLROnPlateau, patience=0)] * K)
    for _ in range(3):
        scheduler.step(None)
    assert optimizer.param_groups[0]["lr"].flatten().tolist() == RATES
    scheduler.step(torch.tensor([1.0, 1.0, 1.0]))
    scheduler.step(torch.tensor([2.0, 0.5, float("nan")]))
    assert optimizer.param_groups[0]["lr"].flatten().tolist() == pytest.approx([0.01, 0.05, 0.002])


@pytest.mark.parametrize("schedule", ["plateau", "one cycle", "sequential"])
def test_scheduler_resumes_from_a_saved_state(schedule):
    metrics = torch.rand(20, K, generator=torch.Generator().manual_seed(1))

    def make() -> PopulationScheduler:
        optimizer = SGD([nn.Parameter(start())], lr=RATES, momentum=0.9, members=K)
        return PopulationScheduler(optimizer, [SCHEDULES[schedule](k) for k in range(K)])

    def rates(scheduler: PopulationScheduler, part: Tensor) -> list[Tensor]:
        out = []
        for metric in part:
            scheduler.step(metric)
            out.append(scheduler.optimizer.param_groups[0]["lr"])
        return out

    first, second = make(), make()
    rates(first, metrics[:9])
    first.prepare(5)
    state = first.state_dict()
    second.load_state_dict(state)
    assert_close(rates(second, metrics[9:]), rates(make_at(make(), metrics[:9]), metrics[9:]))


def make_at(scheduler: PopulationScheduler, metrics: Tensor) -> PopulationScheduler:
    for metric in metrics:
        scheduler.step(metric)
    return scheduler


ELEMENTWISE = {
    "RMSprop": partial(torch.optim.RMSprop, lr=0.01, momentum=0.9),
    "NAdam": partial(torch.optim.NAdam, lr=0.01),
    "Adagrad": partial(torch.optim.Adagrad, lr=0.01),
    "Adam": partial(torch.optim.Adam, lr=0.01),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_torch_optimizer_on_a_population_equals_plain_loops(name):
    make = ELEMENTWISE[name]
    assert check_optimizer_stacking(make) is None
    theta = nn.Parameter(start())
    stacked = StackedTorch([theta], K, lambda parts: make(parts[0]))
    scheduler = PopulationScheduler(stacked, [partial(lr_scheduler.StepLR, step_size=2)] * K)
    for _ in range(6):
        stacked.zero_grad()
        losses_of(theta).sum().backward()
        stacked.step()
        scheduler.step()
    assert stacked.param_groups[0]["lr"] == pytest.approx(1e-5)
    for k in range(K):
        alone = nn.Parameter(start()[k : k + 1])
        optimizer = make([alone])
        rates = lr_scheduler.StepLR(optimizer, step_size=2)
        for _ in range(6):
            optimizer.zero_grad()
            losses_of(alone).sum().backward()
            optimizer.step()
            rates.step()
        assert_close(theta[k : k + 1].detach(), alone.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("make", [partial(torch.optim.Adafactor, lr=0.01), partial(torch.optim.Muon, lr=0.01)])
def test_optimizers_that_couple_members_are_not_stacked(make):
    assert check_optimizer_stacking(make) is not None
