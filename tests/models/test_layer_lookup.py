from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from normlab.models import CNN, MLP, ResMLP
from normlab.models.layer_lookup import (
    MOMENTS,
    input_output_moments,
    mean_std,
    norm_slots,
    normalizers,
    scale_invariant_weights,
)
from normlab.norms import (
    ActNorm,
    BatchNorm1d,
    BatchNorm2d,
    BatchRenorm,
    Derf,
    DynamicTanh,
    GhostBatchNorm,
    GroupNorm,
    L1BatchNorm,
    LInfBatchNorm,
    NoisyBatchNorm,
    weight_normalization,
    weight_standardization,
)


def net(norm=BatchNorm1d, **options) -> MLP:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MLP((3,), 2, hidden=[6, 5], norm=norm, **options).double()


def inputs() -> Tensor:
    return 2 + 3 * torch.randn(20, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def expected_moments(x: Tensor, y: Tensor) -> Tensor:
    def std(t: Tensor) -> Tensor:
        return ((t - t.mean()).square().sum() / (t.numel() - 1)).sqrt()

    return torch.stack([x.mean(), std(x), y.mean(), std(y)])


def count_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("norm", [BatchNorm1d, nn.LayerNorm, None])
@pytest.mark.parametrize("position", ["before", "after"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_moments_equal_hand_computation(norm, position, training):
    model, x = net(norm, norm_position=position).train(training), inputs()
    outputs, measurements = normalizers(model).observe(lambda: model(x))

    reference = net(norm, norm_position=position).train(training)
    h = x
    assert list(measurements) == ["hidden1", "hidden2"]
    for layer in ("hidden1", "hidden2"):
        parts = reference.get_submodule(layer)
        before = parts.linear(h) if position == "before" else parts.linear(h).relu()
        after = parts.norm(before)
        assert_close(measurements[layer], expected_moments(before, after))
        h = after.relu() if position == "before" else after
    assert_close(outputs, reference.output(h))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mean_std_equals_torch(dtype):
    x = 5 + 3 * torch.randn(4, 100, dtype=dtype, generator=torch.Generator().manual_seed(0))
    std, mean = torch.std_mean(x, dim=1)
    torch.testing.assert_close(mean_std(x), (mean, std))
    assert mean_std(x[:, :1])[1].isnan().all()


def test_moments_follow_order_of_names():
    x, y = torch.tensor([[1.0, 3.0]]), torch.tensor([[-2.0, 4.0]])
    named = dict(zip(MOMENTS, input_output_moments(nn.Identity(), x[None], y[None], 1)[0].tolist(), strict=True))

    assert named == pytest.approx(
        {"before_mean": 2.0, "before_std": 2**0.5, "after_mean": 1.0, "after_std": 18**0.5}
    )


def test_norm_slots_are_found_at_any_depth():
    deep = nn.ModuleDict({"block": nn.ModuleDict({"norm": nn.Tanh(), "normal": nn.Tanh()}), "mlp": net(None)})

    assert [layer for layer, _ in norm_slots(deep)] == ["block", "mlp.hidden1", "mlp.hidden2"]


def test_observe_returns_result_without_side_effects():
    model, x = net().eval(), inputs()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = model(x)
    generator = torch.random.get_rng_state()

    outputs, _ = normalizers(model).observe(lambda: model(x))

    assert torch.equal(outputs, expected)
    assert count_hooks(model) == 0
    assert not model.training
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), generator)


def test_hooks_are_removed_after_exception():
    model = net()

    def call() -> Tensor:
        model(inputs())
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        normalizers(model).observe(call)
    assert count_hooks(model) == 0


def test_existing_hook_is_kept():
    model, calls = net().eval(), []
    model.hidden1.norm.register_forward_hook(lambda *_: calls.append(1))

    normalizers(model).observe(lambda: model(inputs()))
    model(inputs())

    assert calls == [1, 1]
    assert count_hooks(model) == 1


def test_observe_does_not_change_gradients():
    model, x = net(), inputs()
    normalizers(model).observe(lambda: model(x))[0].square().sum().backward()
    observed = [parameter.grad for parameter in model.parameters()]

    reference = net()
    reference(x).square().sum().backward()
    assert all(torch.equal(grad, p.grad) for grad, p in zip(observed, reference.parameters(), strict=True))


def change_by_rescaling(model: nn.Module, names: list[str], x: Tensor) -> float:
    """Return the largest change of the outputs in training if weights are multiplied by 5."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.zeros_(module.bias)
    model.train()(x)  # initializes actnorm
    rescaled = deepcopy(model)
    with torch.no_grad():
        for name in names:
            rescaled.get_parameter(name).mul_(5)
        return float((rescaled(x) - model(x)).abs().max())


HIDDEN_WEIGHTS = ["hidden1.linear.weight", "hidden2.linear.weight"]
KINDS = {
    "bn": BatchNorm1d,
    "ghost": partial(GhostBatchNorm, ghost_size=10),
    "l1": L1BatchNorm,
    "linf": LInfBatchNorm,
    "noisy": NoisyBatchNorm,
    "ln": nn.LayerNorm,
    "rms": nn.RMSNorm,
    "gn": partial(GroupNorm, num_groups=1),
    "bn_torch": nn.BatchNorm1d,
}


@pytest.mark.parametrize("kind", KINDS)
def test_weights_before_a_normalizer_are_scale_invariant(kind):
    def make(features: int) -> nn.Module:
        layer = KINDS[kind](features)
        layer.eps = 1e-15
        return layer

    model = net(make)
    assert sorted(scale_invariant_weights(model)) == HIDDEN_WEIGHTS
    assert change_by_rescaling(model, HIDDEN_WEIGHTS, inputs()) < 1e-9


@pytest.mark.parametrize("kind", [ActNorm, BatchRenorm, Derf, DynamicTanh, None])
def test_weights_before_other_layers_are_not(kind):
    model = net(kind)
    assert scale_invariant_weights(model) == set()
    assert change_by_rescaling(model, HIDDEN_WEIGHTS, inputs()) > 1e-3


def test_scale_invariant_weights_of_other_nets():
    assert scale_invariant_weights(net(norm_position="after")) == set()
    assert scale_invariant_weights(ResMLP((3,), 2, norm=BatchNorm1d)) == set()
    assert sorted(scale_invariant_weights(CNN((1, 8, 8), 2, channels=[2, 3], norm2d=BatchNorm2d))) == [
        "hidden1.conv.weight",
        "hidden2.conv.weight",
    ]
    plain = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.ReLU(), nn.BatchNorm1d(4))
    assert scale_invariant_weights(plain) == {"0.weight"}
    standardized = nn.Sequential(weight_standardization(nn.Linear(3, 4)), nn.LayerNorm(4))
    assert scale_invariant_weights(standardized) == {"0.parametrizations.weight.original"}
    normalized = nn.Sequential(weight_normalization(nn.Linear(3, 4)), nn.LayerNorm(4))
    originals = {f"0.parametrizations.weight.original{number}" for number in (0, 1)}
    assert scale_invariant_weights(normalized) == originals
