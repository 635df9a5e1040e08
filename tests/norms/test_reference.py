import hypothesis.extra.numpy as npst
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from normlab.norms.reference import (
    batch_norm_arrays,
    batch_norm_backward,
    batch_norm_loops,
    update_running_statistics,
)

FORMS = pytest.mark.parametrize("batch_norm", [batch_norm_loops, batch_norm_arrays])

GOLDEN_X = np.array(
    [
        [0.13443642, 0.38237412, 0.43459833, 0.5555555, 0.46544354],
        [0.73888243, 0.76263731, 0.2219813, 0.65330424, 0.2280716],
        [0.16306301, 0.62442583, 0.54017516, 0.64500589, 0.29199674],
        [0.9398204, 0.87478007, 0.10693309, 0.75469117, 0.82808138],
    ]
)
GOLDEN_Y = np.array(
    [
        [-1.01966566, -1.51693113, 0.63686758, -1.36941136, 0.05167255],
        [0.69420696, 0.55294339, -0.60911539, 0.01651852, -0.96662445],
        [-0.93849655, -0.19937877, 1.25557123, -0.10113964, -0.69239332],
        [1.26395525, 1.16336652, -1.28332342, 1.45403248, 1.60734521],
    ]
)
BATCHES = npst.arrays(
    np.float64,
    st.tuples(st.integers(2, 6), st.integers(1, 4)),
    elements=st.floats(-10, 10, width=16),
)


@FORMS
def test_golden_case(batch_norm):
    y = batch_norm(GOLDEN_X, np.ones(5), np.zeros(5), eps=0.0)
    # The recorded input is rounded to 8 digits, and a standard deviation is as small as 0.07.
    np.testing.assert_allclose(y, GOLDEN_Y, rtol=0, atol=1e-7)


@FORMS
def test_eps_is_inside_the_root(batch_norm):
    y = batch_norm(np.array([[-4.0], [4.0]]), np.array([10.0]), np.array([1.0]), eps=9.0)
    np.testing.assert_allclose(y, [[-7.0], [9.0]], rtol=1e-15)


@settings(deadline=None)
@given(x=BATCHES, eps=st.floats(1e-3, 1), data=st.data())
def test_loops_and_arrays_agree(x, eps, data):
    per_feature = npst.arrays(np.float64, x.shape[1], elements=st.floats(-3, 3))
    gamma, beta = data.draw(per_feature), data.draw(per_feature)
    loops, arrays = batch_norm_loops(x, gamma, beta, eps), batch_norm_arrays(x, gamma, beta, eps)
    np.testing.assert_allclose(loops, arrays, rtol=1e-9, atol=1e-9)


@settings(deadline=None)
@given(x=BATCHES, eps=st.floats(1e-1, 1), seed=st.integers(0, 2**32 - 1))
def test_backward_matches_finite_differences(x, eps, seed):
    rng = np.random.default_rng(seed)
    grad_y, gamma, beta = rng.normal(size=x.shape), rng.normal(size=x.shape[1]), rng.normal(size=x.shape[1])

    def loss(x, gamma, beta):
        return (grad_y * batch_norm_arrays(x, gamma, beta, eps)).sum()

    # One random direction in all three arguments; central differences have an error of order h².
    h, dx, dgamma, dbeta = 1e-5, *(rng.normal(size=a.shape) for a in (x, gamma, beta))
    forth = loss(x + h * dx, gamma + h * dgamma, beta + h * dbeta)
    back = loss(x - h * dx, gamma - h * dgamma, beta - h * dbeta)
    grad_x, grad_gamma, grad_beta = batch_norm_backward(grad_y, x, gamma, eps)
    slope = (grad_x * dx).sum() + (grad_gamma * dgamma).sum() + (grad_beta * dbeta).sum()
    np.testing.assert_allclose((forth - back) / (2 * h), slope, rtol=1e-6, atol=1e-6)


@settings(deadline=None)
@given(x=BATCHES, seed=st.integers(0, 2**32 - 1))
def test_gradient_is_orthogonal_to_shift_and_scale(x, seed):
    x = x + np.arange(len(x))[:, None] * 25.0  # keeps all variances away from 0, as ε = 0
    grad_y = np.random.default_rng(seed).normal(size=x.shape)
    grad_x, _, _ = batch_norm_backward(grad_y, x, np.ones(x.shape[1]), eps=0.0)
    np.testing.assert_allclose(grad_x.sum(axis=0), 0.0, atol=1e-9)
    np.testing.assert_allclose((grad_x * x).sum(axis=0), 0.0, atol=1e-9)


@settings(deadline=None)
@given(x=BATCHES, momentum=st.floats(0, 1))
def test_running_statistics_use_unbiased_variance(x, momentum):
    start_mean, start_var = np.full(x.shape[1], 2.0), np.full(x.shape[1], 3.0)
    mean, var = update_running_statistics(start_mean, start_var, x, momentum)
    np.testing.assert_allclose(mean, start_mean + momentum * (x.mean(axis=0) - 2), atol=1e-12)
    np.testing.assert_allclose(var, start_var + momentum * (x.var(axis=0, ddof=1) - 3), atol=1e-12)
    assert (start_mean == 2.0).all()
    assert (start_var == 3.0).all()
