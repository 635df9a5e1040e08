"""Normalization layers, one file each: the equation, the paper, the code."""

from normlab.norms.batch_norm import BatchNorm1d
from normlab.norms.derf import Derf
from normlab.norms.dynamic_tanh import DynamicTanh

__all__ = ["BatchNorm1d", "Derf", "DynamicTanh"]
