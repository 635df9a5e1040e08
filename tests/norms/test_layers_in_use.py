"""All layers in use: training and evaluation in turn, copies and state dicts, 16-bit dtypes, invalid input."""

import copy
import pickle
from functools import partial

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from layer_catalogue import (
    ALL_LAYERS,
    BATCH_LAYERS,
    BOTH_16_BITS,
    BOTH_MODES,
    CONVOLUTIONS,
    FUSED,
    IMAGES,
    LINEARS,
    NORMALIZERS,
    RENORMS,
    SAMPLE_LAYERS,
    SEQUENCES,
    VECTORS,
    WEIGHTS,
    Make,
    backward,
    buffers_of,
    close,
    exclude,
    layers,
    make_trained,
    normal,
    same,
)
from torch import nn
from torch.testing import assert_close

from normlab.norms import (
    BatchRenorm,
    L1BatchNorm,
    NoisyBatchNorm,
    scaled_weight_standardization,
    weight_standardization,
)
from normlab.norms.batch_norm import BatchNorm


@ALL_LAYERS
def test_interleaved_evaluation_does_not_change_training(make, shape):
    layer, undisturbed = make_trained(make), make_trained(make)
    for seed in range(3):
        layer.eval()(normal(seed + 10, *shape))
        same(backward(layer.train(), normal(seed, *shape)), backward(undisturbed, normal(seed, *shape)))
    same(buffers_of(layer), buffers_of(undisturbed))


@ALL_LAYERS
def test_evaluation_is_per_sample_and_stateless(make, shape):
    layer, x = make_trained(make).eval(), normal(3, *shape)
    before = copy.deepcopy(layer.state_dict())
    y = layer(x)
    close(torch.cat([layer(sample) for sample in x.split(1)]), y)
    same(layer.state_dict(), before)


@layers(BATCH_LAYERS)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_update_only_while_tracking(make, momentum):
    layer = make_trained(make, momentum=momentum)
    before = copy.deepcopy(layer.state_dict())
    layer.track_running_stats = False
    layer(normal(1, *VECTORS))
    moved = {name for name, value in layer.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == ({"step"} if isinstance(layer, NoisyBatchNorm) else set())

    layer.track_running_stats = True
    layer(normal(1, *VECTORS))
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert (layer.get_buffer(name) != before[name]).all()


@layers(BATCH_LAYERS)
def test_momentum_none_averages_all_batches(make):
    layer = make(momentum=None).double()
    batches = [normal(seed, 8, 4) for seed in range(4)]
    for x in batches:
        layer(x)
    close(layer.running_mean, torch.cat(batches).mean(0))


@layers(NORMALIZERS)
@pytest.mark.parametrize("shape", [VECTORS, IMAGES], ids=["vectors", "images"])
def test_copies_continue_independently(make, shape):
    layer, fresh, x = make_trained(make), make().double(), normal(3, *shape)
    fresh.load_state_dict(layer.state_dict())
    twins = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), fresh]
    first, second = layer(x), layer(x)
    for twin in twins:
        assert torch.equal(twin(x), first)
        assert torch.equal(twin(x), second)
        same(twin.state_dict(), layer.state_dict())
    state = copy.deepcopy(layer.state_dict())
    twins[0](10 * x)
    same(layer.state_dict(), state)


@WEIGHTS
def test_copies_of_parametrized_weights(make, shape):
    layer, fresh, x = make_trained(make), make().double(), normal(1, *shape)
    fresh.load_state_dict(copy.deepcopy(layer.state_dict()))
    other = copy.deepcopy(layer)
    same(backward(fresh, x), backward(layer, x))
    same(backward(other, x), backward(layer, x))
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    same(backward(fresh, x), backward(layer, x))


@layers({**LINEARS, **CONVOLUTIONS})
def test_parametrized_weights_pickle_by_state_dict(make):
    layer = make()
    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        pickle.dumps(layer)
    same(pickle.loads(pickle.dumps(layer.state_dict())), layer.state_dict())


@layers(BATCH_LAYERS)
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"bias": False}], ids=str)
def test_state_dict_is_compatible_with_torch(make, options):
    layer, torchs = make_trained(make, **options), nn.BatchNorm1d(4, **options, dtype=torch.float64)
    own = ["key", "step"] if isinstance(layer, NoisyBatchNorm) else []
    x = normal(1, *VECTORS)

    keys = torchs.load_state_dict(layer.state_dict(), strict=False)
    assert (keys.missing_keys, sorted(keys.unexpected_keys)) == ([], own)
    close(torchs.eval()(x), layer.eval()(x))

    torchs.train()(x)
    keys = layer.load_state_dict(torchs.state_dict(), strict=False)
    assert (sorted(keys.missing_keys), keys.unexpected_keys) == (own, [])
    close(layer(x), torchs.eval()(x))


@layers(NORMALIZERS)
@BOTH_16_BITS
@pytest.mark.parametrize("shape", [(64, 4), (16, 4, 2, 2)], ids=["vectors", "images"])
@pytest.mark.parametrize("affine", [True, False])
def test_16_bit_input_is_normalized_in_32(make, dtype, shape, affine):
    # The largest float16 is 65504, so squares and sums of 6e4 overflow.
    size = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    size[0] = 1
    x = (6e4 * size * torch.sign(normal(2, *shape))).to(dtype)
    layer, double = make(affine=affine), make(affine=affine).double()
    result = backward(layer, x)
    assert {name: value.dtype for name, value in result.items() if name in "xy"} == {"y": dtype, "x": dtype}
    assert all(value.isfinite().all() for value in result.values())
    near = {"rtol": 1e-2, "atol": 1e-2, "check_dtype": False}
    assert_close(result["y"], double(x.double()).detach(), **near)
    assert_close(buffers_of(layer), buffers_of(double), **near)
    assert layer.eval()(x).dtype is dtype


@layers(exclude(BATCH_LAYERS, *RENORMS))
@BOTH_16_BITS
@pytest.mark.parametrize("affine", [True, False])
def test_16_bit_input_without_tracking(make, dtype, affine):
    options = {"affine": affine, "track_running_stats": False}
    x = normal(1, 64, 4).to(dtype)
    for layer in (make(**options), make(**options).to(dtype)):
        y = layer(x)
        assert y.dtype is dtype
        assert y.isfinite().all()


@layers(exclude(NORMALIZERS, *FUSED))
@BOTH_16_BITS
def test_16_bit_layer_computes_in_32(make, dtype):
    # Fused layers are excluded: torch's kernel rounds the statistics of a 16-bit layer to 16 bits.
    layer, double = make().to(dtype), make().double()
    near = {"rtol": 2e-2, "atol": 2e-2, "check_dtype": False}
    for seed in range(3):
        x = normal(seed, 64, 4).to(dtype)
        y = layer(x)
        assert y.dtype is dtype
        assert_close(y, double(x.double()), **near)
    assert_close(buffers_of(layer), buffers_of(double), **near)


@layers(exclude(NORMALIZERS, *FUSED, "group", "layer"))
def test_output_has_dtype_of_input(make):
    assert make()(normal(1, *VECTORS)).dtype is torch.float64
    assert make().double()(normal(1, *VECTORS).float()).dtype is torch.float32


@layers(BATCH_LAYERS)
@pytest.mark.parametrize("shape", [(0, 4), (5, 4, 0), (0, 4, 2, 3)])
def test_empty_batch_has_zero_gradients_and_counts(make, shape):
    layer = make_trained(make)
    before = buffers_of(layer)
    result = backward(layer, normal(1, *shape))
    assert result.pop("y").shape == shape
    assert all(gradient.eq(0).all() for gradient in result.values())
    moved = {name for name, buffer in layer.named_buffers() if not torch.equal(buffer, before[name])}
    assert moved == {"num_batches_tracked"} | ({"step"} if isinstance(layer, NoisyBatchNorm) else set())
    assert layer.eval()(normal(1, *shape)).shape == shape


@layers(exclude(NORMALIZERS, *BATCH_LAYERS))
@pytest.mark.parametrize("shape", [(0, 4), (0, 4, 2, 3)])
def test_empty_batch_has_zero_gradients(make, shape):
    layer = make_trained(make)
    before = buffers_of(layer)
    result = backward(layer, normal(1, *shape))
    assert result.pop("y").shape == shape
    assert all(gradient.eq(0).all() for gradient in result.values())
    same(buffers_of(layer), before)


@layers(BATCH_LAYERS)
@pytest.mark.parametrize("shape", [(1, 4), (1, 4, 1), (1, 4, 1, 1)])
def test_single_value_raises_only_in_training(make, shape):
    layer = make_trained(make)
    before = buffers_of(layer)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training, got input size"):
        layer(normal(1, *shape))
    same(buffers_of(layer), before)
    assert layer.eval()(normal(1, *shape)).isfinite().all()


@layers(NORMALIZERS)
@BOTH_MODES
@pytest.mark.parametrize("shape", [(6, 5), (4, 6), (6, 8), (6, 5, 4), (6, 5, 2, 2)])
@pytest.mark.parametrize("affine", [True, False])
def test_wrong_feature_count_raises(make, training, shape, affine):
    layer = make(affine=affine).double().train(training)
    before, name = buffers_of(layer), type(layer).__name__
    with pytest.raises(RuntimeError, match=rf"^{name} expected 4 features on axis 1, got .*\({shape[0]}, .*\)"):
        layer(normal(1, *shape))
    same(buffers_of(layer), before)


@layers(NORMALIZERS)
def test_input_without_feature_axis_raises(make):
    with pytest.raises((ValueError, RuntimeError), match=r"expected .*got .*"):
        make()(torch.ones(4))


@layers(BATCH_LAYERS)
def test_zero_eps_raises_in_training_negative_always(make):
    x = normal(1, *VECTORS)
    for eps in (0.0, -1e-5):
        with pytest.raises(ValueError, match=f"eps must be positive during training, but got {eps}"):
            make(eps=eps).double()(x)
    assert make(eps=0.0).double().eval()(x).isfinite().all()
    with pytest.raises(ValueError, match="eps must be non-negative, but got -1e-05"):
        make(eps=-1e-5).double().eval()(x)


STANDARDIZED: dict[str, Make] = {
    "standardized": lambda eps: weight_standardization(nn.Linear(4, 3), eps),
    "standardized_scaled": lambda eps: scaled_weight_standardization(nn.Linear(4, 3), eps=eps),
}


@layers({"actnorm": NORMALIZERS["actnorm"], **SAMPLE_LAYERS, **STANDARDIZED})
@pytest.mark.parametrize("eps", [0.0, -1e-5])
def test_nonpositive_eps_raises_in_constructor(make, eps):
    with pytest.raises(ValueError, match=rf"^eps of .* must be a number > 0, got {eps}$"):
        make(eps=eps)


@layers(NORMALIZERS)
def test_affine_false_equals_initial_affine(make):
    plain, x = make(affine=False).double(), normal(3, *IMAGES)
    assert not [name for name, _ in plain.named_parameters() if name in ("weight", "bias")]
    close(plain(x), make().double()(x))


@layers(exclude(NORMALIZERS, *SAMPLE_LAYERS))
@pytest.mark.parametrize("shape", [VECTORS, IMAGES], ids=["vectors", "images"])
@BOTH_MODES
def test_bias_false_equals_zero_bias(make, shape, training):
    one, full = make_trained(make, bias=False).train(training), make_trained(make).train(training)
    assert one.bias is None
    with torch.no_grad():
        full.bias.zero_()
        for name, parameter in one.named_parameters():
            parameter.copy_(full.get_parameter(name))
    close(one(normal(1, *shape)), full(normal(1, *shape)))


@layers(exclude(BATCH_LAYERS, *RENORMS))
def test_untracked_evaluation_uses_whole_batch(make):
    layer, tracking = make(track_running_stats=False).double(), make().double()
    x = normal(1, *VECTORS)
    assert not {"running_mean", "running_var", "num_batches_tracked"} & set(buffers_of(layer))
    close(layer(x), tracking(x))
    # The ghost batches and the noise are for training only.
    same_spread = make if isinstance(layer, L1BatchNorm) else partial(BatchNorm, 4)
    close(layer.eval()(x), same_spread(track_running_stats=False, dtype=torch.float64)(x))


@layers(BATCH_LAYERS)
def test_reset_restores_initial_state(make):
    layer, fresh = make_trained(make), make().double()
    layer.reset_parameters()
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        same(layer.state_dict()[name], fresh.state_dict()[name])


@layers(BATCH_LAYERS)
@settings(max_examples=20, deadline=None)
@given(
    shape=st.sampled_from([VECTORS, SEQUENCES, IMAGES]),
    scale=st.floats(0.1, 10),
    shift=st.floats(-10, 10),
    eps=st.floats(1e-4, 1),
)
def test_scaling_batch_equals_scaling_eps(make, shape, scale, shift, eps):
    layer, other = make(eps=eps).double(), make(eps=eps / scale**2).double()
    for one in (layer, other):
        # Batch renormalization depends on the running statistics unless its state is fixed.
        one.updates_state = not isinstance(one, BatchRenorm)
    x = normal(1, *shape)
    assert_close(layer(scale * x + shift), other(x), rtol=1e-7, atol=1e-7)
