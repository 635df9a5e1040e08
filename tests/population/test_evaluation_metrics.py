import math

import hypothesis.strategies as st
import pytest
import torch
import torchmetrics
from hypothesis import given, settings
from torch import Tensor, nn
from torch.testing import assert_close

from normlab.population.evaluation import Classification, Regression, constant_predictor_loss

MEMBERS, SAMPLES = 3, 20


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def classes(*shape: int, number: int = 4) -> Tensor:
    return torch.randint(number, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("width", [1, 2, 5])
def test_regression_loss_equals_mse_of_each_member(width):
    outputs, targets = numbers(MEMBERS, SAMPLES, width), numbers(MEMBERS, SAMPLES, width, seed=1)

    alone = [nn.functional.mse_loss(y, t) for y, t in zip(outputs, targets, strict=True)]
    assert_close(Regression().loss(outputs, targets), torch.stack(alone))


@given(members=st.integers(1, 4), samples=st.integers(2, 8), width=st.integers(1, 3), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_regression_metrics_equal_torchmetrics(members, samples, width, seed):
    shape = (members, samples, width)
    outputs, targets = numbers(*shape, seed=seed), numbers(*shape, seed=seed + 1)

    metrics = Regression().metrics(outputs, targets)

    assert set(metrics) == {"mse", "mae", "r2"}
    measures = {
        "mse": torchmetrics.MeanSquaredError(),
        "mae": torchmetrics.MeanAbsoluteError(),
        "r2": torchmetrics.R2Score(multioutput="uniform_average"),
    }
    for name, measure in measures.items():
        expected = [measure(y.double(), t.double()) for y, t in zip(outputs, targets, strict=True)]
        assert_close(
            metrics[name], torch.stack(expected).double(), rtol=1e-5, atol=1e-5, msg=f"{name}: {{}}".format
        )


def test_regression_metrics_by_hand():
    outputs = torch.tensor([[[1.0], [2.0], [6.0]], [[3.0], [3.0], [3.0]]])
    targets = torch.tensor([[1.0], [3.0], [5.0]]).expand(2, 3, 1)
    metrics = Regression().metrics(outputs, targets)

    assert metrics["mse"].tolist() == pytest.approx([2 / 3, 8 / 3])
    assert metrics["mae"].tolist() == pytest.approx([2 / 3, 4 / 3])
    assert metrics["r2"].tolist() == pytest.approx([1 - 2 / 8, 0.0])
    assert Regression().loss(outputs, targets).tolist() == pytest.approx([2 / 3, 8 / 3])


def test_r2_of_large_targets_is_precise():
    targets = 1e4 + numbers(1, 1000, 1)
    outputs = targets + 0.5 * numbers(1, 1000, 1, seed=1)
    y, t = outputs.double(), targets.double()
    r2 = 1 - (y - t).square().sum() / (t - t.mean()).square().sum()

    assert Regression().metrics(outputs, targets)["r2"].item() == pytest.approx(r2.item(), rel=1e-6)


@pytest.mark.parametrize("members", [1, 3])
def test_one_sample_has_no_r2(members):
    metrics = Regression().metrics(numbers(members, 1, 2), numbers(members, 1, 2, seed=1))

    assert set(metrics) == {"mse", "mae"}
    assert all(value.shape == (members,) for value in metrics.values())


@pytest.mark.parametrize("members", [1, 3])
def test_constant_targets_have_finite_metrics(members):
    metrics = Regression().metrics(numbers(members, 5, 1), torch.full((members, 5, 1), 100.0))

    assert all(value.isfinite().all() for value in metrics.values())


def test_classification_loss_equals_cross_entropy():
    outputs, targets = numbers(MEMBERS, SAMPLES, 4), classes(MEMBERS, SAMPLES)

    alone = [nn.functional.cross_entropy(y, t) for y, t in zip(outputs, targets, strict=True)]
    assert_close(Classification().loss(outputs, targets), torch.stack(alone))


@given(members=st.integers(1, 4), samples=st.integers(1, 8), width=st.integers(2, 5), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_accuracy_of_each_member(members, samples, width, seed):
    outputs, targets = numbers(members, samples, width, seed=seed), classes(members, samples, number=width)

    metrics = Classification().metrics(outputs, targets)

    shares = [(y.argmax(1) == t).float().mean() for y, t in zip(outputs, targets, strict=True)]
    assert set(metrics) == {"acc"}
    assert_close(metrics["acc"], torch.stack(shares))


@pytest.mark.parametrize(
    ("task", "targets"),
    [
        (Regression(), numbers(1, SAMPLES, 4, seed=1).expand(MEMBERS, -1, -1)),
        (Classification(), classes(1, SAMPLES).expand(MEMBERS, -1)),
    ],
    ids=["regression", "classification"],
)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nonfinite_member_does_not_affect_others(task, targets, bad):
    clean = numbers(MEMBERS, SAMPLES, 4)
    corrupted = clean.clone()
    corrupted[1, 3] = bad

    measured = [{"loss": task.loss(y, targets), **task.metrics(y, targets)} for y in (clean, corrupted)]
    for name, value in measured[1].items():
        assert torch.equal(value[[0, 2]], measured[0][name][[0, 2]]), name
    assert not measured[1]["loss"][1].isfinite()


@pytest.mark.parametrize("task", [Regression(), Classification()], ids=["regression", "classification"])
def test_summed_loss_has_gradients_of_each_member(task):
    outputs = numbers(MEMBERS, SAMPLES, 4).requires_grad_()
    targets = (
        classes(MEMBERS, SAMPLES) if isinstance(task, Classification) else numbers(MEMBERS, SAMPLES, 4, seed=1)
    )
    task.loss(outputs, targets).sum().backward()

    for member in range(MEMBERS):
        alone = outputs[member : member + 1].detach().clone().requires_grad_()
        task.loss(alone, targets[member : member + 1]).sum().backward()
        assert_close(outputs.grad[member], alone.grad[0])


def test_squared_error_of_classes_by_hand():
    outputs, targets = numbers(MEMBERS, SAMPLES, 4), classes(MEMBERS, SAMPLES)
    by_hand = torch.zeros(MEMBERS)
    for k in range(MEMBERS):
        for n in range(SAMPLES):
            for c in range(4):
                by_hand[k] += (outputs[k, n, c] - float(targets[k, n] == c)) ** 2 / SAMPLES
    assert_close(Classification(summed=True).loss(outputs, targets), by_hand)
    assert set(Classification(summed=True).metrics(outputs, targets)) == {"acc"}


def test_squared_error_is_summed_over_outputs():
    outputs, targets = numbers(MEMBERS, SAMPLES, 5), numbers(MEMBERS, SAMPLES, 5, seed=1)
    summed = (outputs - targets).square().sum(2).mean(1)
    assert_close(Regression(summed=True).loss(outputs, targets), summed)


def test_constant_predictor_loss_by_hand():
    classes_of = torch.tensor([0, 0, 0, 1])
    assert constant_predictor_loss(Classification(), classes_of, 3) == pytest.approx(
        -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    )
    assert constant_predictor_loss(Classification(summed=True), classes_of, 3) == pytest.approx(
        1 - 0.75**2 - 0.25**2
    )
    targets = numbers(50, 2)
    assert constant_predictor_loss(Regression(), targets, 2) == pytest.approx(
        targets.var(0, correction=0).mean().item()
    )
    assert constant_predictor_loss(Regression(summed=True), targets, 2) == pytest.approx(
        targets.var(0, correction=0).sum().item()
    )
