"""Networks that are handed a normalizer."""

from normlab.models.cnn import CNN
from normlab.models.mlp import MLP
from normlab.models.resmlp import ResMLP

__all__ = ["CNN", "MLP", "ResMLP"]
