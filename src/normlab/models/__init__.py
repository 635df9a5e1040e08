"""Networks that are handed a normalizer."""

from normlab.models.mlp import MLP

__all__ = ["MLP"]
