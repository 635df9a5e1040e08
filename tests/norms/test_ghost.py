"""Ghost batch norm, compared with torch's batch norm of each ghost batch in turn."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from normlab.norms import BatchNorm1d, GhostBatchNorm

BOTH_PATHS = pytest.mark.parametrize("fused", [False, True], ids=["formula", "fused"])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return 2 + torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def pair(fused: bool, ghost_size: int, **options) -> tuple[GhostBatchNorm, nn.Module]:
    ours = GhostBatchNorm(3, ghost_size=ghost_size, fused=fused, **options).double()
    torchs = nn.BatchNorm2d(3, **options).double()
    for layer in (ours, torchs):
        for seed, parameter in enumerate(layer.parameters()):
            parameter.data = normal(3, seed=seed)
    return ours, torchs


def normalize_in_turn(layer: nn.Module, x: Tensor, sizes: list[int]) -> Tensor:
    """Normalize ghost batches of these sizes in turn: every G-th sample, then the last of another size."""
    images = x.view(*x.shape, *[1] * (4 - x.dim()))
    number = sizes.count(sizes[0])
    cut = number * sizes[0]
    y = torch.empty_like(images)
    for ghost in range(number):
        y[ghost:cut:number] = layer(images[ghost:cut:number])
    if cut < len(x):
        y[cut:] = layer(images[cut:])
    return y.view(x.shape)


@BOTH_PATHS
@pytest.mark.parametrize("momentum", [0.1, 0.3, None])
@pytest.mark.parametrize("shape", [(), (2, 3)])
@pytest.mark.parametrize(
    ("samples", "ghost_size", "sizes"),
    [
        (12, 4, [4, 4, 4]),
        (12, 12, [12]),
        (5, 12, [5]),
        (14, 4, [4, 4, 4, 2]),
        (13, 4, [4, 4, 5]),
        (13, 6, [6, 7]),
        (5, 4, [5]),
    ],
)
def test_equals_torch_on_each_ghost_batch(fused, momentum, shape, samples, ghost_size, sizes):
    ours, torchs = pair(fused, ghost_size, momentum=momentum)
    for step in range(3):
        x, grad_y = normal(samples, 3, *shape, seed=step), normal(samples, 3, *shape, seed=step + 9)
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        y = [ours(inputs[0]), normalize_in_turn(torchs, inputs[1], sizes)]
        for layer, output in zip((ours, torchs), y, strict=True):
            layer.zero_grad()
            output.backward(grad_y)
        assert_close(y[0], y[1])
        assert_close(inputs[0].grad, inputs[1].grad)
        assert_close(ours.weight.grad, torchs.weight.grad)
        assert_close(ours.bias.grad, torchs.bias.grad)
        assert_close(ours.state_dict(), torchs.state_dict())
    assert ours.num_batches_tracked == 3 * len(sizes)
    x = normal(samples, 3, *shape, seed=8)
    assert_close(ours.eval()(x), normalize_in_turn(torchs.eval(), x, sizes))


@pytest.mark.parametrize(
    ("samples", "left"), [(32, 0), (8, 0), (64, 0), (40, 8), (33, 33), (65, 33), (63, 31), (31, 0), (1, 0)]
)
def test_left_over_sizes(samples, left):
    assert GhostBatchNorm(3, ghost_size=32).left_over(samples) == left


@BOTH_PATHS
def test_whole_batch_equals_batch_norm(fused):
    x = normal(8, 3)
    ghost, plain = GhostBatchNorm(3, ghost_size=8, fused=fused).double(), BatchNorm1d(3).double()
    assert_close(ghost(x), plain(x))
    assert_close(ghost.state_dict(), plain.state_dict())


@BOTH_PATHS
def test_single_image_equals_instance_norm(fused):
    x = normal(4, 3, 5, 5)
    ghost = GhostBatchNorm(3, ghost_size=1, fused=fused).double()
    assert_close(ghost(x), nn.InstanceNorm2d(3).double()(x))


@BOTH_PATHS
def test_ghost_batches_are_independent(fused):
    layer, x = GhostBatchNorm(3, ghost_size=4, fused=fused).double(), normal(8, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x)[0, 0], x)
    assert gradient[::2, 0].all()
    assert not gradient[1::2].any()


@BOTH_PATHS
def test_ghost_size_of_one_row_raises(fused):
    layer = GhostBatchNorm(3, ghost_size=1, fused=fused)
    with pytest.raises(ValueError, match="got ghost batches of 1; raise ghost_size"):
        layer(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="ghost_size must be at least 1 sample, got 0"):
        GhostBatchNorm(3, ghost_size=0)


@BOTH_PATHS
def test_disabling_tracking_freezes_statistics(fused):
    layer = GhostBatchNorm(3, ghost_size=4, fused=fused).double()
    layer.track_running_stats = False
    layer(normal(8, 3))
    assert not layer.running_mean.any()
    assert layer.num_batches_tracked == 0
    untracked = GhostBatchNorm(3, ghost_size=4, track_running_stats=False, fused=fused).double()
    assert_close(untracked(normal(8, 3)), GhostBatchNorm(3, ghost_size=4).double()(normal(8, 3)))


@BOTH_PATHS
def test_gradients_with_one_extra_sample_equal_batch_norm(fused):
    # A regression test: the gradient of the weight was NaN.
    layer, plain = GhostBatchNorm(3, ghost_size=4, fused=fused).double(), BatchNorm1d(3).double()
    x, grad_y = normal(5, 3), normal(5, 3, seed=1)
    for norm in (layer, plain):
        norm(x).backward(grad_y)
    assert_close(layer.weight.grad, plain.weight.grad)
    assert_close(layer.bias.grad, plain.bias.grad)


@pytest.mark.parametrize("samples", [8, 9, 11])
def test_fused_second_derivatives_equal_formula(samples):
    gradients = []
    for fused in (False, True):
        layer, x = pair(fused, 4)[0], normal(samples, 3, 2).requires_grad_()
        inputs = [x, layer.weight]
        first = torch.autograd.grad(layer(x), inputs, normal(samples, 3, 2, seed=1), create_graph=True)
        gradients.append(torch.autograd.grad(sum(g.square().sum() for g in first), inputs))
    assert_close(*gradients)


@BOTH_PATHS
def test_output_does_not_depend_on_batch_size(fused):
    layer, ghost = pair(fused, 4)[0], normal(4, 3, seed=1)
    alone = layer(ghost)
    for number in (2, 3, 5):
        x = normal(4 * number, 3, seed=number)
        x[1::number] = ghost
        assert_close(layer(x)[1::number], alone)


def test_running_statistics_by_hand():
    layer = GhostBatchNorm(1, ghost_size=2, momentum=0.5)
    layer(torch.tensor([[0.0], [10.0], [2.0], [14.0]]))
    # Ghost batches (0, 2) and (10, 14): means 1 and 12, unbiased variances 2 and 8, in this order from 0 and 1.
    assert layer.running_mean.item() == 0.5 * (0.5 * 0 + 0.5 * 1) + 0.5 * 12
    assert layer.running_var.item() == 0.5 * (0.5 * 1 + 0.5 * 2) + 0.5 * 8
    assert layer.num_batches_tracked == 2
