"""Losses of one net, applied to all members, against separate calls in float64."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import huber_loss
from torch.testing import assert_close

from normlab.errors import ConfigError
from normlab.population.evaluation import Classification, Regression, constant_predictor_loss
from normlab.population.losses import MemberLoss, squared_error


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def classes(*shape: int, number: int = 3) -> Tensor:
    return torch.randint(number, shape, generator=torch.Generator().manual_seed(1))


def trimmed(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean error of samples below a threshold, chosen by Python control flow, which vmap does not allow."""
    errors = (outputs - targets).abs()
    return errors[errors < 10].mean() if errors.detach().max().item() > 0 else errors.mean()


LOSSES = {
    "huber": (nn.HuberLoss(delta=0.5), numbers(3, 8, 2, seed=1)),
    "sum": (nn.MSELoss(reduction="sum"), numbers(3, 8, 2, seed=1)),
    "smoothed": (nn.CrossEntropyLoss(label_smoothing=0.1), classes(3, 8)),
    "weighted": (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0])), classes(3, 8)),
    "trimmed": (trimmed, numbers(3, 8, 2, seed=1)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_members_equal_separate_calls(name):
    function, targets = LOSSES[name]
    width = 2 if targets.is_floating_point() else 3
    outputs = numbers(3, 8, width).requires_grad_()
    loss = MemberLoss(function, name, outputs[:2], targets[:2])
    assert (loss.looped_reason is None) == (name != "trimmed")
    together = loss(outputs, targets)
    (gradient,) = torch.autograd.grad(together.sum(), outputs)
    alone = torch.stack([function(y, t) for y, t in zip(outputs, targets, strict=True)])
    assert_close(together, alone, rtol=1e-12, atol=0)
    assert_close(gradient, *torch.autograd.grad(alone.sum(), outputs), rtol=1e-12, atol=1e-15)
    assert_close(loss(outputs[:1], targets[:1]), alone[:1])


def test_buffers_follow_the_precision():
    loss = MemberLoss(*LOSSES["weighted"][:1], "weighted", numbers(2, 8, 3).float(), classes(2, 8))
    assert loss(numbers(2, 8, 3), classes(2, 8)).dtype is torch.float64
    assert loss(numbers(2, 8, 3).float(), classes(2, 8)).dtype is torch.float32


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda y, t: (y - t).square(),
            r"that returns one number for outputs \(8, 2\) and targets \(8, 2\), got shape",
        ),
        (lambda y, t: 1.0, "that returns one number for .*, got float"),
        (
            lambda y, t: (y - t).detach().sum(),
            "loss must be differentiable, got mine, which returns a number without",
        ),
        (lambda y, t: 0 * y.sum(), r"loss must be a function of the outputs .*, got mine, whose gradient is zero"),
        (lambda y, t: y @ t, r"loss: mine cannot take outputs \(8, 2\) and targets \(8, 2\): "),
        (nn.Linear(2, 1), "loss must be a function without parameters to train, got mine"),
    ],
)
def test_unusable_loss_raises(function, message):
    with pytest.raises(ConfigError, match=message):
        MemberLoss(function, "mine", numbers(2, 8, 2), numbers(2, 8, 2, seed=1))


def test_broadcast_targets_raise():
    with pytest.raises(ConfigError, match=r"loss: mine cannot take outputs \(3, 3\) and class indices \(3,\)"):
        MemberLoss(nn.MSELoss(), "mine", numbers(2, 3, 3), classes(2, 3))


def test_squared_error_equals_the_stacked_formula():
    outputs = numbers(3, 8, 4)
    for task, targets in (
        (Regression(summed=True), numbers(3, 8, 4, seed=1)),
        (Classification(summed=True), classes(3, 8)),
    ):
        alone = torch.stack([squared_error(y, t) for y, t in zip(outputs, targets, strict=True)])
        assert_close(task.loss(outputs, targets), alone, rtol=1e-12, atol=0)


def own_task(kind: type, function: object, targets: Tensor, width: int):
    shown = targets[None, :8].expand(2, *targets[:8].shape)
    return kind(own_loss=MemberLoss(function, "mine", numbers(2, 8, width), shown))


def test_constant_predictor_of_another_loss():
    """Huber's loss against a grid; smoothed cross-entropy against the shares that minimize it."""
    targets = numbers(50, 1).exp()
    task = own_task(Regression, nn.HuberLoss(delta=0.5), targets, 1)
    grid = min(
        float(huber_loss(torch.full_like(targets, c), targets, delta=0.5)) for c in torch.linspace(0, 3, 3001)
    )
    assert constant_predictor_loss(task, targets, 1) == pytest.approx(grid, rel=1e-5)
    labels = torch.tensor([0] * 6 + [1] * 2 + [2] * 0)
    task = own_task(Classification, nn.CrossEntropyLoss(label_smoothing=0.3), labels, 3)
    shares = 0.7 * torch.tensor([0.75, 0.25, 0.0], dtype=torch.float64) + 0.3 / 3
    assert constant_predictor_loss(task, labels, 3) == pytest.approx(
        float(-(shares * shares.log()).sum()), rel=1e-6
    )


def test_constant_predictor_of_an_unbounded_loss_is_none():
    task = own_task(Regression, lambda y, t: (y * t).exp().sum().log() * float("inf"), numbers(50, 1), 1)
    assert constant_predictor_loss(task, numbers(50, 1), 1) is None
