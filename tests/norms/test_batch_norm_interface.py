"""State dicts, errors, dtypes and subclasses of batch normalization, as in torch.nn."""

import copy

import pytest
import torch
from layer_catalogue import BOTH_PATHS, backward, close, normal, pair, randomize, same
from torch import Tensor, nn
from torch.testing import assert_close

from normlab.norms import BatchNorm1d, BatchNorm2d, BatchNorm3d
from normlab.norms.batch_norm import BatchNorm


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"bias": False}, {"track_running_stats": False}])
def test_state_dict_is_compatible_with_torch(options):
    x = normal(1, 4, 3)
    ours, torchs = pair(3, seed=1, **options)
    ours(x)
    assert list(ours.state_dict()) == list(torchs.state_dict())
    assert ours.state_dict()._metadata == torchs.state_dict()._metadata
    torchs.load_state_dict(ours.state_dict())
    close(torchs.eval()(x), ours.eval()(x))

    fresh = BatchNorm1d(3, dtype=torch.float64, **options)
    fresh.load_state_dict(torchs.state_dict())
    same(fresh.state_dict(), torchs.state_dict())


@pytest.mark.parametrize("version", [None, 1, 2])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_version_1_state_dict_lacks_count(version, device):
    def load(layer: nn.Module) -> tuple[list[str], Tensor]:
        state = nn.Sequential(nn.BatchNorm1d(3)).state_dict()
        del state["0.num_batches_tracked"]
        state._metadata["0"] = {} if version is None else {"version": version}
        net = nn.Sequential(layer.to(device))
        missing = net.load_state_dict(state, strict=False, assign=True).missing_keys
        return missing, net[0].num_batches_tracked

    ours, torchs = load(BatchNorm1d(3)), load(nn.BatchNorm1d(3))
    assert ours[0] == torchs[0] == (["0.num_batches_tracked"] if version == 2 else [])
    assert ours[1].device == torchs[1].device


def test_version_1_state_dict_keeps_count():
    layer = BatchNorm1d(3)
    layer(normal(1, 4, 3).float())
    state = {k: v for k, v in BatchNorm1d(3).state_dict().items() if k != "num_batches_tracked"}
    layer.load_state_dict(state)
    assert layer.num_batches_tracked == 1


def test_version_1_state_dict_without_statistics_loads():
    state = dict(nn.BatchNorm1d(3, track_running_stats=False).state_dict())
    BatchNorm1d(3, track_running_stats=False).load_state_dict(state)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("track_running_stats", [True, False])
def test_repr_equals_torch(momentum, affine, track_running_stats, bias):
    arguments = (3, 1e-3, momentum, affine, track_running_stats)
    assert repr(BatchNorm1d(*arguments, bias=bias)) == repr(nn.BatchNorm1d(*arguments, bias=bias))


def test_device_and_dtype_equal_torch():
    ours = BatchNorm1d(3, device="meta", dtype=torch.float16).state_dict()
    torchs = nn.BatchNorm1d(3, device="meta", dtype=torch.float16).state_dict()
    assert {k: (v.device, v.dtype) for k, v in ours.items()} == {k: (v.device, v.dtype) for k, v in torchs.items()}


def error_of(layer: nn.Module, x: Tensor) -> Exception:
    with pytest.raises((ValueError, RuntimeError)) as info:
        layer(x)
    return info.value


@BOTH_PATHS
@pytest.mark.parametrize(
    ("training", "shape", "options"),
    [
        (True, (3,), {}),
        (False, (2, 3, 4, 5), {}),
        (True, (1, 3), {}),
        (True, (1, 3, 1), {}),
        (False, (1, 3), {"track_running_stats": False}),
        (True, (4, 3), {"eps": 0}),
        (True, (4, 3), {"eps": 0.0}),
        (True, (4, 3), {"eps": -1e-5}),
        (False, (4, 3), {"eps": -1e-5}),
    ],
)
def test_errors_equal_torch(fused, training, shape, options):
    ours, torchs = pair(3, fused, **options)
    before = copy.deepcopy(ours.state_dict())
    actual = error_of(ours.train(training), torch.ones(shape).double())
    expected = error_of(torchs.train(training), torch.ones(shape).double())
    assert (type(actual), str(actual)) == (type(expected), str(expected))
    same(ours.state_dict(), before)


@BOTH_PATHS
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"affine": False, "track_running_stats": False}])
def test_wrong_feature_count_names_layer_and_counts(fused, training, options):
    layer = BatchNorm1d(3, fused=fused, **options).train(training)
    with pytest.raises(
        RuntimeError, match=r"^BatchNorm1d expected 3 features on axis 1, got input shape \(4, 5\);"
    ):
        layer(torch.ones(4, 5))


@BOTH_PATHS
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_non_floating_point_input_raises(fused, training, dtype):
    error = error_of(BatchNorm1d(3, fused=fused).train(training), torch.ones(4, 3, dtype=dtype))
    assert type(error) is type(error_of(nn.BatchNorm1d(3).train(training), torch.ones(4, 3, dtype=dtype)))
    assert str(dtype) in str(error)


def test_eps_zero_works_in_evaluation():
    ours, torchs = pair(3, eps=0.0)
    close(ours.eval()(normal(1, 4, 3)), torchs.eval()(normal(1, 4, 3)))


@BOTH_PATHS
@pytest.mark.parametrize(("shape", "torchs"), [((2, 3, 4, 5), nn.BatchNorm2d), ((2, 3, 2, 3, 2), nn.BatchNorm3d)])
def test_base_class_accepts_any_trailing_axes(fused, shape, torchs):
    ours, torchs = BatchNorm(3, fused=fused, dtype=torch.float64), torchs(3, dtype=torch.float64)
    x = normal(1, *shape)
    close(backward(ours, x), backward(torchs, x))
    close(ours.state_dict(), torchs.state_dict())
    with pytest.raises(ValueError, match="expected at least 2D input"):
        ours(torch.ones(3).double())


def test_formula_output_is_contiguous():
    assert BatchNorm1d(3)(torch.ones(4, 3, 5)).is_contiguous()


@BOTH_PATHS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layer_dtype", [torch.float32, None], ids=["float32 layer", "16-bit layer"])
def test_16_bit_input_has_32_bit_statistics(fused, dtype, layer_dtype):
    # The largest float16 is 65504, so squares and sums of 6e4 overflow.
    x = (6e4 * torch.sign(normal(1, 256, 3))).to(dtype)
    layer = BatchNorm1d(3, fused=fused, dtype=layer_dtype or dtype)
    result = backward(layer, x)
    assert all(value.isfinite().all() for value in result.values())
    assert result["y"].dtype == dtype

    double = BatchNorm1d(3, dtype=torch.float64)
    assert_close(result["y"].double(), double(x.double()).detach(), rtol=1e-2, atol=1e-2)
    close_enough = {"rtol": 1e-2, "atol": 1e-2, "check_dtype": False}
    assert_close(layer.running_mean, double.running_mean, **close_enough)
    if layer.running_var.dtype != torch.float16:
        assert_close(layer.running_var, double.running_var, **close_enough)


def test_16_bit_running_statistics_keep_eps():
    # The smallest positive float16 is 6e-8.
    layer = BatchNorm1d(1, eps=1e-8, dtype=torch.float16).eval()
    layer.running_var.zero_()
    x = torch.full((1, 1), 1e-3, dtype=torch.float16)
    assert_close(layer(x).item(), 1e-3 / 1e-8**0.5, rtol=1e-3, atol=0)


IMAGES_AND_VOLUMES = pytest.mark.parametrize(
    ("layer_class", "torchs_class", "shape"),
    [(BatchNorm2d, nn.BatchNorm2d, (3, 4, 2, 5)), (BatchNorm3d, nn.BatchNorm3d, (2, 4, 2, 3, 2))],
    ids=["2d", "3d"],
)


@BOTH_PATHS
@IMAGES_AND_VOLUMES
@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": None}, {"affine": False}, {"bias": False}, {"track_running_stats": False}],
    ids=str,
)
def test_images_and_volumes_equal_torch(fused, layer_class, torchs_class, shape, options):
    ours = randomize(layer_class(4, **options, fused=fused, dtype=torch.float64), 0)
    torchs = randomize(torchs_class(4, **options, dtype=torch.float64), 0)
    assert repr(ours) == repr(torchs)
    for step, training in enumerate([True, True, False, True]):
        x = 3 + normal(step, *shape)
        close(backward(ours.train(training), x), backward(torchs.train(training), x))
        close(ours.state_dict(), torchs.state_dict())


@BOTH_PATHS
@IMAGES_AND_VOLUMES
@pytest.mark.parametrize("training", [True, False])
def test_wrong_rank_raises_as_in_torch(fused, layer_class, torchs_class, shape, training):
    for rank in {1, 2, 3, 4, 5, 6} - {len(shape)}:
        x = torch.ones([4] * rank)
        actual = error_of(layer_class(4, fused=fused).train(training), x)
        expected = error_of(torchs_class(4).train(training), x)
        assert (type(actual), str(actual)) == (type(expected), str(expected))
