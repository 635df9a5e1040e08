"""Dynamic Tanh and Derf: bounded elementwise functions that replace a normalizer."""

import torch
from torch import Tensor, nn

from normlab.norms.statistics import FeatureAffine


class DynamicTanh(FeatureAffine):
    r"""Applies tanh elementwise, with one learned slope α per layer.

    .. math:: y = \gamma \tanh(\alpha x) + \beta

    It uses no statistics, so training and evaluation are the same.

    Shapes: x and y ``(B, C, …)``; weight γ and bias β ``(C,)``; alpha ``()``.

    Args:
        num_features: C, the length of axis 1.
        alpha: the initial value of α.
        affine: whether γ and β exist.
        bias: whether β exists (with ``affine`` only).

    Raises:
        RuntimeError: axis 1 of the input does not have ``num_features`` entries.

    Zhu, Chen, He, LeCun and Liu (2025), Transformers without Normalization, arXiv:2503.10622.

    >>> DynamicTanh(2)(torch.tensor([[0.0, 2.0]]))
    tensor([[0.0000, 0.7616]], grad_fn=<AddcmulBackward0>)
    """

    def __init__(self, num_features: int, alpha: float = 0.5, affine: bool = True, *, bias: bool = True) -> None:
        super().__init__(num_features, affine, bias)
        self.alpha = nn.Parameter(torch.tensor(float(alpha)))

    def forward(self, x: Tensor) -> Tensor:
        """Return y for x."""
        return self.apply_affine(torch.tanh(self.alpha * x))


class Derf(FeatureAffine):
    r"""Applies the error function elementwise, with one learned slope α and one learned shift s per layer.

    .. math:: y = \gamma\, \mathrm{erf}(\alpha x + s) + \beta

    It uses no statistics, so training and evaluation are the same.

    Shapes: x and y ``(B, C, …)``; weight γ and bias β ``(C,)``; alpha and shift ``()``.

    Args:
        num_features: C, the length of axis 1.
        alpha: the initial value of α.
        shift: the initial value of s.
        affine: whether γ and β exist.
        bias: whether β exists (with ``affine`` only).

    Raises:
        RuntimeError: axis 1 of the input does not have ``num_features`` entries.

    Chen, Lu, Zhu, Sun and Liu (2025), Stronger Normalization-Free Transformers, arXiv:2512.10938.

    >>> Derf(2)(torch.tensor([[0.0, 2.0]]))
    tensor([[0.0000, 0.8427]], grad_fn=<AddcmulBackward0>)
    """

    def __init__(
        self,
        num_features: int,
        alpha: float = 0.5,
        shift: float = 0.0,
        affine: bool = True,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__(num_features, affine, bias)
        self.alpha = nn.Parameter(torch.tensor(float(alpha)))
        self.shift = nn.Parameter(torch.tensor(float(shift)))

    def forward(self, x: Tensor) -> Tensor:
        """Return y for x."""
        return self.apply_affine(torch.erf(self.alpha * x + self.shift))
