from collections.abc import Sequence

import hypothesis.extra.numpy as npst
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from torch import Tensor
from torch.testing import assert_close

from normlab.probes.activations import output_statistics, preactivation_rank, saturated_share

K = 3


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def double(rows: Sequence) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize(
    ("rows", "mean", "std", "dead", "rank", "centered"),
    [
        ([[1, 0], [0, 1]], 1 / 2, (1 / 3) ** 0.5, 0, 2, 1),
        ([[1, 2], [2, 4], [3, 6]], 3, (16 / 5) ** 0.5, 0, 1, 1),
        ([[1, 0], [0, 2]], 3 / 4, (11 / 12) ** 0.5, 0, 25 / 17, 1),
        (
            [[2, 1], [2, 0], [2, 1], [2, 0]],
            10 / 8,
            (5.5 / 7) ** 0.5,
            1 / 2,
            (4 + 1 / 2) ** 2 / (16 + 2 + 1 / 4),
            1,
        ),
        ([[0, 1, -1], [0, 1, 3]], 4 / 6, (28 / 3 / 5) ** 0.5, 2 / 3, 144 / (4 + 100 + 2 * 4), 1),
        ([[6, 6], [6, 4], [4, 6], [4, 4]], 5, (8 / 7) ** 0.5, 0, 52**2 / (2 * 26**2 + 2 * 25**2), 2),
        ([[0, 0], [0, 0]], 0, 0, 1, 0, 0),
        ([[-3, -3], [-3, -3]], -3, 0, 1, 1, 0),
        ([[0.1, 0.1], [0.1, 0.1], [0.1, 0.1]], 0.1, 0, 1, 1, 0),
    ],
)
def test_statistics_match_hand_computation(rows, mean, std, dead, rank, centered):
    members = double([rows, rows]) * double([1, 2]).view(2, 1, 1)
    numbers = output_statistics([torch.zeros(2, 3, 1, dtype=torch.float64), members])
    expected = {"mean": [mean, 2 * mean], "std": [std, 2 * std], "dead": [dead] * 2, "effective_rank": [rank] * 2}
    expected["centered_effective_rank"] = [centered] * 2
    assert numbers.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(numbers[name][1], double(value))
    assert all(value.shape == (2, 2) and value.dtype == torch.float64 for value in numbers.values())


def test_dead_share_is_nan_for_single_row():
    numbers = {name: value.item() for name, value in output_statistics([double([[[1, 2, 3]]])]).items()}
    expected = {"mean": 2, "std": 1, "dead": np.nan, "effective_rank": 1, "centered_effective_rank": 0}
    assert numbers == pytest.approx(expected, nan_ok=True)
    (alone,) = output_statistics([double([[[2]]])])["std"].tolist()
    assert np.isnan(alone).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_member_leaves_other_members_unchanged(bad):
    h = draws(K, 7, 4)
    fine = output_statistics([h])
    h[1, 3, 2] = bad
    for name, value in output_statistics([h]).items():
        assert value[0, 1].isnan()
        assert_close(value[0, [0, 2]], fine[name][0, [0, 2]])
    assert saturated_share(h, -1, 1, 0.05).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("size", [1e-40, 1e-25, 1e-12, 1.0, 1e12, 1e25, 1e38])
def test_statistics_hold_where_float32_squares_overflow(size):
    h = draws(K, 7, 4) / 4
    expected, numbers = output_statistics([h]), output_statistics([(h * size).float()])
    # Below 1.2e-38 there are fewer digits.
    tolerance = {"rtol": 1e-5 if size > 1e-38 else 1e-2, "atol": 1e-6 if size > 1e-38 else 1e-2}
    for name, scale in {
        **{"mean": size, "std": size, "dead": 1},
        **{"effective_rank": 1, "centered_effective_rank": 1},
    }.items():
        assert_close(numbers[name] / scale, expected[name], **tolerance)


@pytest.mark.parametrize("width", [64, 256])
def test_pi_squared_bounds_only_uncentered_relu_rank(width):
    inputs = draws(1, 4000, width)
    numbers = output_statistics([inputs.relu()])
    assert numbers["effective_rank"].item() < np.pi**2
    assert numbers["centered_effective_rank"].item() > 0.9 * width
    assert preactivation_rank([inputs])["preactivation_effective_rank"].item() > 0.9 * width


@pytest.mark.parametrize("rows", [5, 40])
def test_large_mean_does_not_change_centered_rank(rows):
    h = draws(K, rows, 8).float()
    near, far = output_statistics([h]), output_statistics([(h.double() + 1e6)])
    assert_close(far["centered_effective_rank"], near["centered_effective_rank"], rtol=1e-6, atol=0)
    assert_close(far["effective_rank"], torch.ones(1, K).double())


def test_preactivation_rank_matches_singular_values():
    inputs = [1 + draws(K, 9, 4), draws(K, 3, 7, seed=1)]
    numbers = preactivation_rank(inputs)["preactivation_effective_rank"]
    for layer, h in enumerate(inputs):
        for k in range(K):
            values = torch.linalg.svdvals(h[k]).square()
            assert_close(numbers[layer, k], values.sum() ** 2 / values.square().sum())


MATRICES = npst.arrays(
    float,
    npst.array_shapes(min_dims=2, max_dims=2, max_side=6),
    elements=st.floats(-10, 10, allow_subnormal=False, width=32),
)
VECTORS = npst.arrays(float, st.integers(1, 6), elements=st.integers(-5, 5).map(float))


def rank_of(rows: np.ndarray) -> float:
    return output_statistics([torch.from_numpy(rows)[None]])["effective_rank"].item()


@settings(max_examples=60, deadline=None)
@given(rows=MATRICES)
def test_effective_rank_is_between_1_and_rank(rows):
    rank = rank_of(rows)
    assert rank <= np.linalg.matrix_rank(rows / max(1e-300, np.abs(rows).max())) + 1e-9
    assert rank == 0 if not rows.any() else rank >= 1 - 1e-9


@settings(max_examples=30, deadline=None)
@given(left=VECTORS, right=VECTORS)
def test_effective_rank_of_outer_product_is_1(left, right):
    assume(left.any() and right.any())
    assert rank_of(np.outer(left, right)) == pytest.approx(1, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(
    units=st.integers(1, 6), more=st.integers(0, 4), scale=st.floats(1e-38, 1e38), seed=st.integers(0, 2**32 - 1)
)
def test_effective_rank_of_orthonormal_units_is_their_count(units, more, scale, seed):
    columns, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(units + more, units)))
    assert rank_of(scale * columns) == pytest.approx(units, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(rows=MATRICES, scale=st.floats(1e-3, 1e3), seed=st.integers(0, 2**32 - 1))
def test_effective_rank_ignores_rotation_and_scale(rows, scale, seed):
    assume(np.abs(rows).max() > 1e-3)
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(rows.shape[1],) * 2))
    assert rank_of(scale * rows @ turn) == pytest.approx(rank_of(rows), abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(rows=MATRICES)
def test_dead_units_have_constant_output(rows):
    (dead,) = output_statistics([torch.from_numpy(rows)[None]])["dead"].tolist()[0]
    assert np.isnan(dead) if len(rows) == 1 else dead == pytest.approx((np.ptp(rows, axis=0) == 0).mean())


def test_saturated_share_counts_outputs_near_bounds():
    h = double([[[0.0, 0.049, 0.051], [0.949, 0.951, 1.0]], [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]])
    assert saturated_share(h, 0, 1, 0.05).tolist() == [4 / 6, 0]
    assert saturated_share(2 * h - 1, -1, 1, 0.05).tolist() == [4 / 6, 0]
    assert saturated_share(h, 0, 1, 0.49).tolist() == [1, 0]
    h[1, 0, 0] = torch.nan
    assert saturated_share(h, 0, 1, 0.05).isnan().tolist() == [False, True]
