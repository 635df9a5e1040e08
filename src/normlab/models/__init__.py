"""Networks that take a normalizer as an argument: :class:`MLP`, :class:`ResMLP` and :class:`CNN`."""

from normlab.models.cnn import CNN
from normlab.models.mlp import MLP
from normlab.models.resmlp import ResMLP

__all__ = ["CNN", "MLP", "ResMLP"]
