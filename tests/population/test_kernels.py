"""Each function written for speed equals its plain version."""

import platform
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from normlab.population import kernels


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (1 + torch.randn(shape, dtype=torch.float64, generator=generator)).requires_grad_()


def with_gradients(function, inputs: list[Tensor], *options) -> list[Tensor]:
    """Return the outputs of a function, and the gradients of its first output."""
    outputs = function(*inputs, *options)
    y = outputs[0] if isinstance(outputs, tuple) else outputs
    return [y, *torch.autograd.grad(y, [t for t in inputs if t is not None], normal(*y.shape, seed=9).detach())]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("members", "inputs", "outputs", "samples"), [(3, 4, 5, 7), (2, 1, 1, 3), (3, 5, 1, 1)])
def test_affine_equals_plain_version(members, inputs, outputs, samples, bias):
    tensors = [normal(members, inputs, samples), normal(members, outputs, inputs, seed=1)]
    tensors.append(normal(members, outputs, seed=2) if bias else None)
    assert_close(with_gradients(kernels.affine, tensors), with_gradients(kernels.plain_affine, tensors))


def test_affine_accepts_inputs_without_gradient():
    x, weight = normal(2, 3, 4).detach(), normal(2, 5, 3, seed=1)
    (got,), (expected,) = (
        torch.autograd.grad(function(x, weight, None).sum(), [weight])
        for function in (kernels.affine, kernels.plain_affine)
    )
    assert_close(got, expected)


@pytest.mark.parametrize("shape", [(3, 4, 7), (1, 1, 2)])
@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_batch_normalized_equals_plain_version(shape, eps):
    tensors = [normal(*shape), *(normal(*shape[:2], 1, seed=seed) for seed in (1, 2))]
    plain = kernels.plain_batch_normalized
    assert_close(
        with_gradients(kernels.batch_normalized, tensors, eps),
        with_gradients(plain, tensors, eps),
        rtol=1e-9,
        atol=1e-9,
    )
    for got, expected in zip(kernels.batch_normalized(*tensors, eps)[1:], plain(*tensors, eps)[1:], strict=True):
        assert_close(got, expected)
        assert not got.requires_grad


FAULTS = """
import resource, torch
from normlab.models import MLP
from normlab.norms import BatchNorm1d
from normlab.population.kernels import tune_malloc
from normlab.population.optim import SGD
from normlab.population.population import Population, initial_nets
from normlab.population.compiling import PopulationStep
from normlab.population.evaluation import Regression

if {keeps}:
    tune_malloc()
population = Population(initial_nets(lambda: MLP((3,), 1, hidden=[64], norm=BatchNorm1d), range(50)))
step = PopulationStep(population, Regression().loss, SGD(population.parameters(), members=50), None)
for steps in (30, 20):  # the heap grows during the first steps
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        step(torch.ones(50, 200, 3), torch.ones(50, 200, 1))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.thorough
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_tuned_malloc_reuses_freed_memory():
    faults = []
    for keeps in (False, True):
        command = [sys.executable, "-c", FAULTS.format(keeps=keeps)]
        faults.append(int(subprocess.run(command, capture_output=True, check=True).stdout))
    assert faults[1] < faults[0] / 4, faults
