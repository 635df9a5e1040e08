"""At initialization, gradients grow by √(π/(π − 1)) per layer toward the input with BatchNorm, not without.

Yang, Pennington, Rao, Sohl-Dickstein and Schoenholz (2019), A mean field theory of batch normalization,
arXiv:1902.08129. The bounds are for 10 ReLU layers of width 1,024 and a batch of 512.
"""

import math

import pytest
import torch

from normlab.models import MLP
from normlab.norms import BatchNorm1d

LAYERS, WIDTH, BATCH = 10, 1024, 512


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("norm", "growth", "tolerance"),
    [(BatchNorm1d, math.sqrt(math.pi / (math.pi - 1)), 0.005), (None, 1.0, 0.015)],
    ids=["bn", "nobn"],
)
def test_gradient_growth_matches_mean_field_theory(norm, growth, tolerance, seed):
    torch.set_num_threads(2)
    torch.manual_seed(seed)
    net = MLP((WIDTH,), 1, hidden=[WIDTH] * LAYERS, norm=norm, init="kaiming")
    h, outputs = torch.randn(BATCH, WIDTH), []
    for number in range(1, LAYERS + 1):
        h = net.get_submodule(f"hidden{number}")(h)
        outputs.append(h)
    gradients = torch.autograd.grad(h, outputs, torch.randn(BATCH, WIDTH))
    sizes = [gradient.square().mean().sqrt().item() for gradient in gradients]
    mean_ratio = (sizes[0] / sizes[-1]) ** (1 / (LAYERS - 1))
    assert mean_ratio == pytest.approx(growth, abs=tolerance)
