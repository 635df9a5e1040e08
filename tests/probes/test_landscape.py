import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.testing import assert_close

from normlab.probes.landscape import POINTS_AT_ONCE, BatchedLoss

MODES = ["batch", "frozen"]
NORMS = ["nobn", "bn", "bn_fused", "bn_torch", "ghost", "brn", "noisy", "ln", "dropout"]


def symmetric(members: int, size: int) -> Tensor:
    a = torch.randn(members, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return a + a.mT


def points(count: int, landscape: BatchedLoss) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(count, *landscape.theta.shape, dtype=torch.float64, generator=generator)
    return landscape.theta + 0.1 * noise


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("count", [1, 2, POINTS_AT_ONCE + 3])
def test_quadratic_matches_hand_computation(helpers, members, count):
    h = symmetric(members, 4)
    landscape = helpers.quadratic(h)
    at = points(count, landscape)

    losses, gradients = landscape.losses_and_gradients(at)
    assert_close(losses, torch.einsum("ski,kij,skj->sk", at, h, at) / 2)
    assert_close(gradients, torch.einsum("kij,skj->ski", h, at))
    assert_close(landscape.losses(at), losses)
    assert_close(landscape.gradients(at), gradients)
    product = landscape.hessian()
    assert_close(product(at), torch.einsum("kij,skj->ski", h, at))
    assert_close(product(at[0]), torch.einsum("kij,kj->ki", h, at[0]))


def test_single_point_keeps_its_shape(helpers):
    landscape = helpers.quadratic(symmetric(3, 4))
    assert landscape.losses(landscape.theta).shape == (3,)
    assert landscape.gradients(landscape.theta).shape == (3, 4)


def test_hessian_of_linear_loss_is_zero():
    landscape = BatchedLoss.of(lambda params: params["w"].sum(), {"w": torch.ones(3)})
    assert_close(landscape.hessian()(torch.ones(1, 3)), torch.zeros(1, 3))


def test_unused_parameters_have_zero_gradient():
    landscape = BatchedLoss.of(lambda params: params["a"].square().sum(), {"a": torch.ones(2), "b": torch.ones(1)})
    assert_close(landscape.gradients(landscape.theta), torch.tensor([[2.0, 2.0, 0.0]]))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm", NORMS)
def test_gradients_and_hessians_match_original_net(helpers, norm, mode):
    """Compare with autograd through the original net, with noise and corrections fixed."""
    snapshot = helpers.make_snapshot([helpers.make_net(helpers.norms[norm])])
    landscape = snapshot.landscape(mode)

    net = helpers.make_net(helpers.norms[norm])
    net.load_state_dict({name: tensor[0] for name, tensor in snapshot.before.items()}, strict=False)
    net.train(mode == "batch")
    set_updates_state(net, False)
    x, y = (part[0] for part in snapshot.minibatch)
    buffers = {name: snapshot.before[name][0] for name in dict(net.named_buffers())}
    if norm == "brn" and mode == "batch":  # r and d as the step itself takes them
        set_updates_state(net, True)
        functional_call(net, {**dict(net.named_parameters()), **buffers}, (x,))
        set_updates_state(net, False)

    def loss(params: dict) -> Tensor:
        own = {name: buffer.clone() for name, buffer in buffers.items()}
        return helpers.squared(functional_call(net, {**params, **own}, (x,))[None], y[None]).sum()

    params = {name: parameter.detach() for name, parameter in net.named_parameters()}
    assert_close(landscape.gradients(landscape.theta)[0], gradient(loss, params))
    # Finite differences, because nested jacrev of torch 2.13 is wrong for layer norm.
    vectors = points(3, landscape) - landscape.theta
    for vector, product in zip(vectors, landscape.hessian()(vectors), strict=True):
        moves = dict(zip(params, landscape.unflatten(1e-5 * vector), strict=True))
        ahead, behind = (
            gradient(loss, {name: params[name] + sign * moves[name][0] for name in params}) for sign in (1, -1)
        )
        assert_close(product[0], (ahead - behind) / 2e-5, rtol=1e-6, atol=1e-7)


def gradient(loss: Callable[[dict], Tensor], params: dict) -> Tensor:
    own = {name: parameter.clone().requires_grad_() for name, parameter in params.items()}
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(loss(own), list(own.values()))])


def set_updates_state(net: nn.Module, value: bool) -> None:
    for layer in net.modules():
        if hasattr(layer, "updates_state"):
            layer.updates_state = value
        if hasattr(layer, "track_running_stats"):
            layer.track_running_stats = False


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm", [*NORMS, "torch_dropout"])
def test_stacked_members_equal_single_members(helpers, norm, mode):
    nets = [helpers.make_net(helpers.norms[norm], seed) for seed in range(3)]
    snapshot = helpers.make_snapshot(nets)
    together = snapshot.landscape(mode)
    at = points(4, together)
    for k in range(3):
        single = helpers.alone(snapshot, k).landscape(mode)
        assert_close(
            together.of_members(slice(k, k + 1)).losses(at[:, k : k + 1]), single.losses(at[:, k : k + 1])
        )
        assert_close(together.losses(at)[:, k], single.losses(at[:, k : k + 1])[:, 0])
        assert_close(together.gradients(at)[:, k], single.gradients(at[:, k : k + 1])[:, 0])
        assert_close(together.hessian()(at[0])[k], single.hessian()(at[0, k : k + 1])[0])


@pytest.mark.parametrize("norm", ["noisy", "dropout", "torch_dropout"])
def test_noise_is_same_at_all_points(helpers, norm):
    landscape = helpers.make_snapshot([helpers.make_net(helpers.norms[norm])]).landscape("batch")
    same = landscape.losses(landscape.theta.expand(POINTS_AT_ONCE + 1, 1, -1))
    assert_close(same, same[:1].expand_as(same))
    assert torch.equal(landscape.losses(landscape.theta), landscape.losses(landscape.theta))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm", [*NORMS, "torch_dropout"])
def test_evaluation_has_no_side_effects(helpers, norm, mode):
    net = helpers.make_net(helpers.norms[norm])
    snapshot = helpers.make_snapshot([net])
    before = {name: tensor.clone() for name, tensor in snapshot.before.items()}
    generator, own = torch.get_rng_state(), module_state(net)

    landscape = snapshot.landscape(mode)
    landscape.losses_and_gradients(points(2, landscape))
    landscape.hessian()(landscape.theta)

    assert all(torch.equal(snapshot.before[name], tensor) for name, tensor in before.items())
    assert module_state(net) == own
    assert torch.equal(torch.get_rng_state(), generator)


def module_state(net: nn.Module) -> list:
    """Return tensors, gradients, attributes and hook counts of a net in comparable form."""
    named = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    numbers = [(name, tensor.tolist(), tensor.grad) for name, tensor in named.items()]
    modules = [{key: value for key, value in vars(layer).items() if key[0] != "_"} for layer in net.modules()]
    return [*numbers, *modules, *(len(layer._forward_hooks) for layer in net.modules())]


def test_mode_selects_running_or_batch_statistics(helpers):
    snapshot = helpers.make_snapshot([helpers.make_net()])
    net = helpers.make_net()
    net.load_state_dict({name: tensor[0] for name, tensor in snapshot.before.items()})
    x, y = (part[0] for part in snapshot.minibatch)
    for mode in ("frozen", "batch"):
        expected = helpers.squared(net.train(mode == "batch")(x)[None], y[None])
        landscape = snapshot.landscape(mode)
        assert_close(landscape.losses(landscape.theta), expected.detach())


def test_landscape_accepts_other_state_and_data(helpers):
    snapshot = helpers.make_snapshot([helpers.make_net(seed=k) for k in range(2)])
    after = snapshot.landscape("frozen", state=snapshot.after)
    assert not torch.equal(after.theta, snapshot.landscape("frozen").theta)
    whole = snapshot.landscape("frozen", "train")
    x, y = (part[0] for part in snapshot.train)
    net = helpers.make_net().eval()
    net.load_state_dict({name: tensor[1] for name, tensor in snapshot.before.items()})
    assert_close(whole.losses(whole.theta)[1:], helpers.squared(net(x)[None], y[None]).detach())


def test_double_equals_float32_up_to_rounding(helpers):
    exact = helpers.make_snapshot([helpers.make_net()])
    before = {name: t.float() if t.is_floating_point() else t for name, t in exact.before.items()}
    minibatch = tuple(part.float() for part in exact.minibatch)
    single = replace(exact, before=before, minibatch=minibatch).landscape("batch")
    double = single.double()
    assert (single.theta.dtype, double.theta.dtype) == (torch.float32, torch.float64)
    assert_close(double.losses(double.theta).float(), single.losses(single.theta))
    assert_close(double.gradients(double.theta).float(), single.gradients(single.theta), rtol=1e-3, atol=1e-5)


def test_nonfinite_member_leaves_other_members_unchanged(helpers):
    nets = [helpers.make_net(seed=k) for k in range(2)]
    snapshot = helpers.make_snapshot(nets)
    broken = {name: tensor.clone() for name, tensor in snapshot.before.items()}
    broken["output.weight"][0] = math.nan
    landscape, whole = snapshot.landscape("batch", state=broken), snapshot.landscape("batch")
    assert landscape.losses(landscape.theta)[0].isnan()
    assert_close(landscape.losses(landscape.theta)[1], whole.losses(whole.theta)[1])
    assert_close(landscape.hessian()(whole.theta)[1], whole.hessian()(whole.theta)[1])


def test_nonfinite_loss_raises():
    with pytest.raises(ValueError, match="the loss must be finite where it is probed, got nan"):
        BatchedLoss.of(lambda params: params["w"].sum().log(), {"w": torch.tensor([-1.0])})


def test_parameter_mask_and_unflatten_follow_parameter_order():
    landscape = BatchedLoss.of(
        lambda p: p["a"].sum(), {"a": torch.ones(2), "b": torch.ones(2, 2), "c": torch.ones(())}
    )
    assert landscape.parameter_mask(["b"]).tolist() == [False, False, True, True, True, True, False]
    assert [part.shape for part in landscape.unflatten(landscape.theta)] == [(1, 2), (1, 2, 2), (1,)]
