"""Stability limits compared with the optimizers' behaviour on a quadratic."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from normlab.population.optim import SGD, Adam, AdamW, StackedOptimizer
from normlab.probes.curvature import extreme_eigenvalues
from normlab.probes.landscape import BatchedLoss
from normlab.probes.spectrum import LARGEST
from normlab.training.stability import equilibrium_angle, preconditioning, stability_limit

LR, P = 0.05, 6
SGDS = {
    "sgd": {},
    "heavy_ball": {"momentum": 0.9},
    "heavy_ball_half": {"momentum": 0.5},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "nesterov_half": {"momentum": 0.5, "nesterov": True},
    "sgd_decay": {"weight_decay": 3.0},
    "nesterov_decay": {"momentum": 0.9, "nesterov": True, "weight_decay": 3.0},
}
ADAMS = {
    "adam": (Adam, {}),
    "adam_without_momentum": (Adam, {"betas": (0.0, 0.999)}),
    "adam_decay": (Adam, {"weight_decay": 30.0}),
    "adamw": (AdamW, {"weight_decay": 5.0}),
    "adamw_no_decay": (AdamW, {"weight_decay": 0.0}),
}


def matrix() -> Tensor:
    root = torch.randn(P, P, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return root @ root.T


def largest(hessian: Tensor, **options: Tensor) -> float:
    """Return the largest eigenvalue, measured by the probe."""
    bowl = BatchedLoss.of(lambda params: params["w"] @ hessian @ params["w"] / 2, {"w": torch.ones(P).double()})
    generators = [torch.Generator().manual_seed(0)]
    return extreme_eigenvalues(bowl, (LARGEST,), tolerance=1e-12, generators=generators, **options).values.item()


def converges(optimizer: StackedOptimizer, hessian: Tensor) -> bool:
    """Return True if the parameters shrink to 1/1000 before they grow by a factor of 1000."""
    (parameter,) = optimizer.params
    before = parameter.detach().norm().item()
    for _ in range(10_000):
        parameter.grad = hessian @ parameter.detach()
        optimizer.step()
        factor = parameter.detach().norm().item() / before
        if not 1e-3 < factor < 1e3:
            return factor < 1
    raise AssertionError(f"after 10,000 steps the parameters are {factor} times what they were")


def parameters() -> list[nn.Parameter]:
    # So small that Adam's running square does not change.
    return [nn.Parameter(torch.full((P,), 1e-30, dtype=torch.float64))]


@pytest.mark.parametrize("share", [0.98, 1.02])
@pytest.mark.parametrize("options", SGDS.values(), ids=list(SGDS))
def test_gradient_descent_diverges_above_its_limit(options, share):
    optimizer = SGD(parameters(), lr=LR, **options)
    limit = stability_limit(optimizer).item()
    hessian = matrix() * (share * limit / (LR * largest(matrix())))
    assert LR * largest(hessian) == pytest.approx(share * limit)
    assert converges(optimizer, hessian) == (share < 1)


def with_square(optimizer: Adam) -> Adam:
    """Give an optimizer a converged running square that hardly changes."""
    optimizer.state["square"].copy_(torch.linspace(0.5, 4, P, dtype=torch.float64))
    optimizer.state["updates"].fill_(1e15)
    optimizer.param_groups[0]["beta2"].fill_(1 - 1e-13)
    optimizer._gain2.fill_(1e-13)
    return optimizer


@pytest.mark.parametrize("share", [0.98, 1.02])
@pytest.mark.parametrize(("kind", "options"), ADAMS.values(), ids=list(ADAMS))
def test_adam_diverges_above_its_limit(kind, options, share):
    optimizer = with_square(kind(parameters(), lr=LR, **options))
    adaptive = preconditioning(optimizer)
    limit, scaling = adaptive.limit.item(), {"scale": adaptive.diagonal.rsqrt(), "decay": adaptive.decay}
    # Bisect for the scale of the Hessian at which the sharpness is that share of the limit.
    low, high = 0.0, 1e6
    for _ in range(100):
        factor = (low + high) / 2
        sharpness = LR * torch.linalg.eigvalsh(dense(factor * matrix(), **scaling))[-1].item()
        low, high = (factor, high) if sharpness < share * limit else (low, factor)
    hessian = factor * matrix()
    assert LR * largest(hessian, **scaling) == pytest.approx(share * limit)
    assert converges(optimizer, hessian) == (share < 1)


PARTLY = {
    "sgd": (SGD, {"weight_decay": 3.0}),
    "nesterov": (SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 3.0}),
    "adam": (Adam, {"weight_decay": 30.0}),
    "adamw": (AdamW, {"weight_decay": 5.0}),
}


@pytest.mark.parametrize("share", [0.98, 1.02])
@pytest.mark.parametrize(("kind", "options"), PARTLY.values(), ids=list(PARTLY))
def test_optimizer_that_decays_some_parameters_diverges_above_its_limit(kind, options, share):
    halves = [nn.Parameter(torch.full((P // 2,), 1e-30, dtype=torch.float64)) for _ in range(2)]
    optimizer = kind(halves, lr=LR, undecayed=halves[1:], **options)
    if kind is not SGD:
        with_square(optimizer)
    assert stability_limit(optimizer, halves) is None
    adaptive = preconditioning(optimizer, halves)
    low, high = 0.0, 1e6
    for _ in range(100):
        factor = (low + high) / 2
        shifted = factor * matrix() + torch.diag(adaptive.decay.expand(1, P).flatten())
        root = adaptive.diagonal.flatten().rsqrt()
        sharpness = LR * torch.linalg.eigvalsh(root.unsqueeze(1) * shifted * root)[-1].item()
        low, high = (factor, high) if sharpness < share * adaptive.limit.item() else (low, factor)
    scaling = {"scale": adaptive.diagonal.rsqrt(), "decay": adaptive.decay}
    assert LR * largest(factor * matrix(), **scaling) == pytest.approx(share * adaptive.limit.item())
    for _ in range(10_000):
        gradient = factor * matrix() @ torch.cat([half.detach() for half in halves])
        for half, part in zip(halves, gradient.split(P // 2), strict=True):
            half.grad = part.clone()
        optimizer.step()
        growth = torch.cat([half.detach() for half in halves]).norm().item() / (1e-30 * P**0.5)
        if not 1e-3 < growth < 1e3:
            break
    assert (growth < 1) == (share < 1)


def test_torch_optimizers_with_groups_equal_the_stacked_ones():
    first, second = (nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2))
    for kind, reference, options in (
        (torch.optim.SGD, SGD, {"momentum": 0.9}),
        (torch.optim.Adam, Adam, {}),
        (torch.optim.AdamW, AdamW, {}),
    ):
        groups = [{"params": [second]}, {"params": [first], "weight_decay": 0.0}]
        theirs = kind(groups, lr=0.1, weight_decay=2.0, **options)
        copies = [nn.Parameter(p.detach().clone()) for p in (first, second)]
        ours = reference(copies, lr=0.1, weight_decay=2.0, undecayed=copies[:1], **options)
        for parameter, copy, scale in ((first, copies[0], 1.0), (second, copies[1], 2.0)):
            parameter.grad, copy.grad = (torch.arange(1.0, 4).double() * scale for _ in range(2))
        theirs.step()
        ours.step()
        one, other = preconditioning(theirs, [first, second]), preconditioning(ours)
        assert_close(one.diagonal, other.diagonal)
        assert_close(one.decay.expand(1, 6), other.decay.expand(1, 6))
        assert_close(one.limit, other.limit)
    theirs.param_groups[0]["lr"] = 0.2
    assert preconditioning(theirs, [first, second]) is None


def test_no_limit_changes_without_decay():
    weights = parameters()
    assert stability_limit(SGD(weights, lr=LR, undecayed=weights)).tolist() == [2]


def dense(hessian: Tensor, scale: Tensor, decay: Tensor) -> Tensor:
    """Return D(H + λI)D."""
    return scale.T * (hessian + decay * torch.eye(P).double()) * scale


@pytest.mark.parametrize(
    ("options", "limit"),
    [({"momentum": 0.9}, 1.357), ({"momentum": 0.5}, 1.5), ({"momentum": 0.9, "weight_decay": 2.0}, 1.257)],
)
def test_nesterov_limit_by_hand(options, limit):
    optimizer = SGD(parameters(), lr=LR, nesterov=True, **options)
    assert stability_limit(optimizer).item() == pytest.approx(limit, abs=1e-3)


def test_adam_limit_by_hand():
    assert preconditioning(Adam(parameters(), lr=LR)).limit.tolist() == pytest.approx([38])
    assert preconditioning(AdamW(parameters(), lr=LR, weight_decay=2.0)).limit.tolist() == pytest.approx([36.1])
    coupled = preconditioning(Adam(parameters(), lr=LR, weight_decay=2.0))
    assert (coupled.limit.item(), coupled.decay.item()) == pytest.approx((38, 2))


def test_limit_and_preconditioner_of_each_member():
    weights = [nn.Parameter(torch.ones(2, 3, dtype=torch.float64))]
    assert stability_limit(SGD(weights, momentum=[0.0, 0.9], members=2)).tolist() == pytest.approx([2.0, 3.8])
    sgd = SGD(weights, lr=[0.1, 0.2], momentum=[0.5, 0.9], weight_decay=[0.0, 1.0], nesterov=True, members=2)
    assert stability_limit(sgd).tolist() == pytest.approx([1.5, 3.8 / 2.8 - 0.2])
    assert preconditioning(sgd) is None

    adam = Adam(weights, betas=([0.9, 0.5], 0.999), eps=[1e-8, 0.1], members=2)
    assert stability_limit(adam) is None
    assert preconditioning(adam).diagonal.isnan().all()
    for number in (1.0, 2.0):
        weights[0].grad = number * torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.0, 4.0]]).double()
        adam.step()
    adaptive = preconditioning(adam)
    assert adaptive.limit.tolist() == pytest.approx([38, 6])
    # v̂ after gradients g and 2g is g² (0.999·0.001 + 0.001·4)/(1 − 0.999²).
    root = ((0.999 + 4) / (1 + 0.999)) ** 0.5
    expected = [[root, 2 * root, 0], [3 * root, 0, 4 * root]]
    scale = torch.tensor([[1 - 0.9**2], [1 - 0.5**2]]).double()
    assert_close(adaptive.diagonal, scale * (torch.tensor(expected).double() + torch.tensor([[1e-8], [0.1]])))


def test_other_optimizers_have_no_limit():
    other = torch.optim.RMSprop(parameters())
    assert (stability_limit(other), preconditioning(other)) == (None, None)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_equilibrium_angle_of_random_gradients(momentum):
    """Gradients of a scale-invariant weight are orthogonal to it and proportional to the inverse of its norm."""
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(200, generator=generator, dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=momentum, weight_decay=0.1)
    angles = []
    for _ in range(1500):
        before = weight.detach().clone()
        noise = torch.randn(200, generator=generator, dtype=torch.float64)
        unit = before / before.norm()
        weight.grad = (noise - noise @ unit * unit) / before.norm()
        optimizer.step()
        angles.append(torch.acos(before @ weight.detach() / before.norm() / weight.detach().norm()))
    expected = equilibrium_angle(optimizer).item()
    assert expected == pytest.approx(math.sqrt(2 * 0.1 * 0.1 / (1 + momentum)))
    assert torch.stack(angles[500:]).mean().item() == pytest.approx(expected, rel=0.05)


def test_equilibrium_angle_of_each_member_and_of_other_optimizers():
    weights = [nn.Parameter(torch.ones(2, 3, dtype=torch.float64))]
    sgd = SGD(weights, lr=[0.1, 0.2], momentum=[0.0, 0.9], weight_decay=[0.05, 0.0], members=2)
    assert equilibrium_angle(sgd).tolist() == pytest.approx([0.1, 0.0])
    assert equilibrium_angle(SGD(weights, nesterov=True, momentum=0.9, members=2)) is None
    assert equilibrium_angle(Adam(weights, members=2)) is None
