"""Normalization layers and weight parametrizations, one idea per file: equation, paper, code.

Start with `reference`, batch normalization in NumPy, then `batch_norm`, the layer that the others build on.
"""

from normlab.norms.actnorm import ActNorm
from normlab.norms.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from normlab.norms.dynamic_tanh import Derf, DynamicTanh
from normlab.norms.ghost import GhostBatchNorm
from normlab.norms.lp import L1BatchNorm, LInfBatchNorm
from normlab.norms.noisy import NoisyBatchNorm
from normlab.norms.per_sample import GroupNorm, LayerNorm2d, RMSNorm2d
from normlab.norms.renorm import BatchRenorm
from normlab.norms.weight import scaled_weight_standardization, weight_normalization, weight_standardization

__all__ = [
    "ActNorm",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchRenorm",
    "Derf",
    "DynamicTanh",
    "GhostBatchNorm",
    "GroupNorm",
    "L1BatchNorm",
    "LInfBatchNorm",
    "LayerNorm2d",
    "NoisyBatchNorm",
    "RMSNorm2d",
    "scaled_weight_standardization",
    "weight_normalization",
    "weight_standardization",
]
