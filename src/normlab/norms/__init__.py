"""Normalization layers, one file each: the equation, the paper, the code."""

from normlab.norms.batch_norm import BatchNorm1d

__all__ = ["BatchNorm1d"]
