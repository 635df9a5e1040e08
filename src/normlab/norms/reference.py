"""Batch normalization in plain NumPy, the reference for the tests of the layers; start reading here.

x holds B samples (rows) of D features (columns), in float64; γ (gamma) and β (beta) have one number per feature.
A sequence of shape (B, C, L) counts as B·L samples of C features. Ioffe and Szegedy (2015), arXiv:1502.03167.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def batch_norm_loops(x: Array, gamma: Array, beta: Array, eps: float) -> Array:
    """Normalize x in training mode, with loops over single numbers: ``y = γ (x − μ) / √(σ² + ε) + β``.

    Shapes: x ``(B, D)``; gamma and beta ``(D,)``; returns ``(B, D)``.

    >>> x = np.array([[1.0, 10.0], [3.0, 30.0]])
    >>> batch_norm_loops(x, gamma=np.ones(2), beta=np.zeros(2), eps=0.0)
    array([[-1., -1.],
           [ 1.,  1.]])
    """
    num_samples, num_features = x.shape
    y = np.empty((num_samples, num_features))
    for d in range(num_features):
        mean = 0.0
        for b in range(num_samples):
            mean += x[b, d] / num_samples

        var = 0.0
        for b in range(num_samples):
            var += (x[b, d] - mean) ** 2 / num_samples

        for b in range(num_samples):
            x_hat = (x[b, d] - mean) / (var + eps) ** 0.5
            y[b, d] = gamma[d] * x_hat + beta[d]
    return y


def batch_norm_arrays(x: Array, gamma: Array, beta: Array, eps: float) -> Array:
    """Normalize x in training mode, with array operations: ``y = γ (x − μ) / √(σ² + ε) + β``.

    Shapes: x ``(B, D)``; gamma and beta ``(D,)``; returns ``(B, D)``.

    >>> x = np.array([[1.0, 10.0], [3.0, 30.0]])
    >>> batch_norm_arrays(x, gamma=np.array([1.0, 2.0]), beta=np.array([0.0, 5.0]), eps=0.0)
    array([[-1.,  3.],
           [ 1.,  7.]])
    """
    mean = x.mean(axis=0)
    var = ((x - mean) ** 2).mean(axis=0)
    x_hat = (x - mean) / np.sqrt(var + eps)
    return gamma * x_hat + beta


def batch_norm_backward(grad_y: Array, x: Array, gamma: Array, eps: float) -> tuple[Array, Array, Array]:
    """Return the gradients of a loss L with respect to x, γ and β, given ``g = ∂L/∂y``.

    ``∂L/∂x = γ / √(σ² + ε) · (g − mean(g) − x̂ · mean(g · x̂))``, ``∂L/∂γ = Σ g · x̂``, ``∂L/∂β = Σ g``.
    The two means in ∂L/∂x arise because each sample contributes to μ and σ². As a result the gradient has no
    component along a common shift of a feature, nor, for ε = 0, along its scale.

    Shapes: grad_y and x ``(B, D)``; gamma ``(D,)``; returns ``(B, D)``, ``(D,)`` and ``(D,)``.

    >>> x = np.array([[-1.0], [-1.0], [1.0], [1.0]])
    >>> grad_y = np.array([[1.0], [0.0], [0.0], [0.0]])
    >>> grad_x, grad_gamma, grad_beta = batch_norm_backward(grad_y, x, gamma=np.array([2.0]), eps=0.0)
    >>> grad_x.ravel(), grad_gamma, grad_beta
    (array([ 1., -1.,  0.,  0.]), array([-1.]), array([1.]))
    """
    mean = x.mean(axis=0)
    var = ((x - mean) ** 2).mean(axis=0)
    x_hat = (x - mean) / np.sqrt(var + eps)

    centered = grad_y - grad_y.mean(axis=0) - x_hat * (grad_y * x_hat).mean(axis=0)
    grad_x = gamma / np.sqrt(var + eps) * centered
    return grad_x, (grad_y * x_hat).sum(axis=0), grad_y.sum(axis=0)


def update_running_statistics(
    running_mean: Array, running_var: Array, x: Array, momentum: float
) -> tuple[Array, Array]:
    """Return the running statistics after one more batch: ``(1 − momentum) · running + momentum · batch``.

    The running variance averages the unbiased variance, divided by B − 1, although the batch itself is normalized
    by the biased one. With ``momentum = 1 / t`` at batch t, the result is the average of all batches so far.

    Shapes: running_mean and running_var ``(D,)``; x ``(B, D)`` with B > 1; returns ``(D,)`` and ``(D,)``.

    >>> x = np.array([[1.0], [3.0]])
    >>> update_running_statistics(np.array([0.0]), np.array([1.0]), x, momentum=0.5)
    (array([1.]), array([1.5]))
    """
    mean = x.mean(axis=0)
    unbiased_var = ((x - mean) ** 2).sum(axis=0) / (len(x) - 1)
    return (
        (1 - momentum) * running_mean + momentum * mean,
        (1 - momentum) * running_var + momentum * unbiased_var,
    )
