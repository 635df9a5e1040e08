"""Networks that are handed a normalizer."""

from normlab.models.cnn import CNN
from normlab.models.mlp import MLP
from normlab.models.resmlp import ResMLP
from normlab.models.source import SourceMLP

__all__ = ["CNN", "MLP", "ResMLP", "SourceMLP"]
