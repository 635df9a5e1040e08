"""Normalization layers and weight parametrizations, one family per file: equation, paper, code.

Start with `reference`, batch normalization in NumPy, then `batch_norm`, the layer that the others build on.
"""

from normlab.norms.activation import Derf, DynamicTanh
from normlab.norms.batch_correction import BatchRenorm, NoisyBatchNorm
from normlab.norms.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from normlab.norms.batch_statistics import GhostBatchNorm, L1BatchNorm, LInfBatchNorm
from normlab.norms.per_sample import ActNorm, GroupNorm, LayerNorm2d, RMSNorm2d
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
