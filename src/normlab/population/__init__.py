"""Trains K nets as one in plain torch: stacked parameters, optimizers, schedulers and compiled steps."""

from torch import Tensor

State = dict[str, Tensor]
"""Parameters and buffers, or measurements, of all members by name, ``(K, …)`` each."""
