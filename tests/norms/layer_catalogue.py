"""All layers and weight parametrizations, for the tests of properties that they share."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from normlab.norms import (
    ActNorm,
    BatchNorm1d,
    BatchNorm2d,
    BatchRenorm,
    Derf,
    DynamicTanh,
    GhostBatchNorm,
    GroupNorm,
    L1BatchNorm,
    LayerNorm2d,
    LInfBatchNorm,
    NoisyBatchNorm,
    RMSNorm2d,
    scaled_weight_standardization,
    weight_normalization,
    weight_standardization,
)
from normlab.norms.batch_norm import BatchNorm

Make = Callable[..., nn.Module]
Shape = tuple[int, ...]

# All layers have 4 features. A batch of 5 images has ghost batches of 2 and 3.
VECTORS, SEQUENCES, IMAGES = (6, 4), (3, 4, 2), (5, 4, 2, 3)
SHAPES = {"vectors": VECTORS, "sequences": SEQUENCES, "images": IMAGES}

FORMULAS: dict[str, Make] = {
    "batch_norm": partial(BatchNorm, 4),
    "ghost": partial(GhostBatchNorm, 4, ghost_size=2),
    "renorm": partial(BatchRenorm, 4, r_max=1.5, d_max=0.5),
    "renorm_schedule": partial(BatchRenorm, 4, total_steps=4),
    "noisy": partial(NoisyBatchNorm, 4),
}
FUSED: dict[str, Make] = {
    **{f"{name}_fused": partial(make, fused=True) for name, make in FORMULAS.items()},
    "ghost_rest_fused": partial(GhostBatchNorm, 4, ghost_size=4, fused=True),
}
BATCH_LAYERS: dict[str, Make] = {
    **FORMULAS,
    **FUSED,
    "l1": partial(L1BatchNorm, 4),
    "l1_none": partial(L1BatchNorm, 4, constant="none"),
    "linf": partial(LInfBatchNorm, 4),
    "linf_none": partial(LInfBatchNorm, 4, constant="none"),
}
RENORMS = ("renorm", "renorm_fused", "renorm_schedule", "renorm_schedule_fused")
SAMPLE_LAYERS: dict[str, Make] = {
    "group": partial(GroupNorm, 4, 2),
    "layer": partial(LayerNorm2d, 4),
    "rms": partial(RMSNorm2d, 4),
}
NORMALIZERS: dict[str, Make] = {
    **BATCH_LAYERS,
    **SAMPLE_LAYERS,
    "actnorm": partial(ActNorm, 4),
    "dynamic_tanh": partial(DynamicTanh, 4),
    "derf": partial(Derf, 4),
}
LINEARS: dict[str, Make] = {
    "standardized": lambda: weight_standardization(nn.Linear(4, 3)),
    "standardized_scaled": lambda: scaled_weight_standardization(nn.Linear(4, 3)),
    "weight_normalized": lambda: weight_normalization(nn.Linear(4, 3)),
}
CONVOLUTIONS: dict[str, Make] = {
    "standardized_conv": lambda: weight_standardization(nn.Conv2d(4, 3, 2)),
    "standardized_scaled_conv": lambda: scaled_weight_standardization(nn.Conv2d(4, 3, 2)),
    "weight_normalized_conv": lambda: weight_normalization(nn.Conv2d(4, 3, 2)),
}
# Subclasses that accept inputs of one rank only.
ONE_RANK: dict[str, tuple[Make, Shape]] = {
    "batch_norm_1d-vectors": (partial(BatchNorm1d, 4), VECTORS),
    "batch_norm_1d-sequences": (partial(BatchNorm1d, 4), SEQUENCES),
    "batch_norm_2d-images": (partial(BatchNorm2d, 4), IMAGES),
}


def exclude(group: dict[str, Make], *names: str) -> dict[str, Make]:
    return {name: make for name, make in group.items() if name not in names}


def layers(group: dict[str, Make]) -> pytest.MarkDecorator:
    """Parametrize ``make``."""
    return pytest.mark.parametrize("make", list(group.values()), ids=list(group))


def layers_and_shapes(
    *more: dict[str, tuple[Make, Shape]], **groups: tuple[dict[str, Make], Shape]
) -> pytest.MarkDecorator:
    """Parametrize ``make`` and ``shape``, with each layer of a group at the group's shape."""
    cases = {f"{name}-{kind}": (make, shape) for kind, (g, shape) in groups.items() for name, make in g.items()}
    for own in more:
        cases |= own
    return pytest.mark.parametrize(("make", "shape"), list(cases.values()), ids=list(cases))


WEIGHTS = layers_and_shapes(vectors=(LINEARS, VECTORS), images=(CONVOLUTIONS, IMAGES))
ALL_LAYERS = layers_and_shapes(
    ONE_RANK, vectors=({**NORMALIZERS, **LINEARS}, VECTORS), images=({**NORMALIZERS, **CONVOLUTIONS}, IMAGES)
)
ALL_LAYERS_ALL_SHAPES = layers_and_shapes(
    ONE_RANK,
    vectors=({**NORMALIZERS, **LINEARS}, VECTORS),
    sequences=(NORMALIZERS, SEQUENCES),
    images=({**NORMALIZERS, **CONVOLUTIONS}, IMAGES),
)
BOTH_PATHS = pytest.mark.parametrize("fused", [False, True], ids=["formula", "fused"])
BOTH_MODES = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
BOTH_16_BITS = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])


def normal(seed: int, *shape: int) -> Tensor:
    return 0.5 + torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_trained(make: Make, seed: int = 0, **options) -> nn.Module:
    """Return a float64 layer with random parameters; layers with statistics after one training batch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = make(**options).double()
        for parameter in layer.parameters():
            nn.init.uniform_(parameter, 0.5, 2.0)
    if hasattr(layer, "seed"):
        layer.seed(seed)
    if isinstance(layer, ActNorm | BatchNorm):
        layer(normal(seed + 100, *((6, 4, 1, 1) if isinstance(layer, BatchNorm2d) else (6, 4))))
    return layer


def freeze(layer: nn.Module) -> nn.Module:
    """Fix statistics and random numbers, so that a layer is a function of input and parameters."""
    layer.updates_state = layer.track_running_stats = False
    return layer


def buffers_of(layer: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in layer.named_buffers()}


def backward(layer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return the output and all gradients of one forward and backward pass."""
    x = x.detach().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y.backward(normal(7, *y.shape).to(y.dtype))
    return {"y": y.detach(), "x": x.grad, **{name: p.grad for name, p in layer.named_parameters()}}


def close(actual, expected) -> None:
    assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def same(actual, expected) -> None:
    assert_close(actual, expected, rtol=0, atol=0)


def randomize(layer: nn.Module, seed: int) -> nn.Module:
    """Set γ, β and the running statistics of a layer to random values."""
    rng = np.random.default_rng(seed)
    state = {
        name: torch.as_tensor(rng.uniform(0.5, 2.0, value.shape)).to(value)
        for name, value in layer.state_dict().items()
        if value.is_floating_point()
    }
    layer.load_state_dict(state, strict=False)
    return layer


def pair(num_features: int, fused: bool = False, seed: int = 0, **options) -> tuple[BatchNorm1d, nn.BatchNorm1d]:
    """Return our layer and torch's with equal random parameters and statistics, in float64."""
    ours = BatchNorm1d(num_features, **options, fused=fused, dtype=torch.float64)
    torchs = nn.BatchNorm1d(num_features, **options, dtype=torch.float64)
    return randomize(ours, seed), randomize(torchs, seed)
