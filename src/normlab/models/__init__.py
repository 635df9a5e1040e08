"""Networks that take a normalizer as an argument: :class:`MLP`, :class:`ResMLP` and :class:`CNN`."""

from normlab.models.nets import CNN, MLP, ResMLP

__all__ = ["CNN", "MLP", "ResMLP"]
