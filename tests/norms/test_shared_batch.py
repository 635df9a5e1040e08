"""Layers on shares of a minibatch in two processes give what they give in one process on the whole."""

import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from normlab.models.layers import Dropout
from normlab.norms import BatchNorm1d, BatchNorm2d, BatchRenorm, L1BatchNorm, NoisyBatchNorm
from normlab.norms.shared_batch import Share, current_share, shared_batch

FEATURES = 3
STEPS = 2
LAYERS = {
    "BatchNorm1d": lambda sync: BatchNorm1d(FEATURES, sync=sync),
    "BatchNorm1d, fused, cumulative": lambda sync: BatchNorm1d(FEATURES, momentum=None, fused=True, sync=sync),
    "BatchNorm2d": lambda sync: BatchNorm2d(FEATURES, sync=sync),
    "BatchRenorm": lambda sync: BatchRenorm(FEATURES, sync=sync),
    "NoisyBatchNorm": lambda sync: NoisyBatchNorm(FEATURES, sync=sync),
    "Dropout": lambda sync: Dropout(0.4),
}
SIZES = {"unequal": (5, 2), "one each": (1, 1)}


def inputs(name: str, samples: int) -> list[Tensor]:
    """Return the minibatch of each step, and the weights of the outputs in the loss."""
    shape = (STEPS + 1, samples, FEATURES, *((2, 3) if name == "BatchNorm2d" else ()))
    # A mean far from 0 shows a loss of digits.
    return list(100 + torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(samples)))


def trained(layer: nn.Module, xs: list[Tensor], weights: Tensor, share: Share | None) -> dict[str, Tensor]:
    """Return outputs, gradients and buffers of a layer on minibatches, or on this process's shares of them."""
    layer.double()
    rows = slice(None) if share is None else slice(share.start, share.start + share.samples)
    found = {}
    for step, whole in enumerate(xs):
        x = whole[rows].clone().requires_grad_()
        with shared_batch(share or Share(0, len(x), len(x))):
            y = layer(x)
        loss = (y.square() * weights[rows]).sum()
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True, retain_graph=True)
        # The loss of a gradient penalty, which differentiates the gradient.
        penalty = (gradient.square() * weights[rows]).sum()
        (second,) = torch.autograd.grad(penalty, x, retain_graph=True) if penalty.requires_grad else (x,)
        loss.backward()
        found |= {
            f"y {step}": y.detach(),
            f"gradient {step}": gradient.detach(),
            f"second {step}": second.detach(),
        }
    found |= {f"sum {name}": parameter.grad for name, parameter in layer.named_parameters()}
    return found | {f"buffer {name}": buffer for name, buffer in layer.named_buffers()}


def save_shares(rank: int, folder: str, sync: bool) -> None:
    """Train each layer on the shares of this process, and save all numbers."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {}
    for size, sizes in SIZES.items():
        for name, make in LAYERS.items():
            if sync or size == "unequal":
                *xs, weights = inputs(name, sum(sizes))
                found[name, size] = trained(make(sync), xs, weights, Share.of(sizes[rank]))
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def in_two_processes(folder: Path, sync: bool) -> list[dict]:
    context = multiprocessing.get_context("spawn")
    started = [context.Process(target=save_shares, args=(rank, str(folder), sync)) for rank in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def shares(tmp_path_factory) -> list[dict]:
    return in_two_processes(tmp_path_factory.mktemp("sync"), sync=True)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", LAYERS)
def test_two_processes_equal_one(shares, name, size):
    *xs, weights = inputs(name, sum(SIZES[size]))
    whole = trained(LAYERS[name](False), xs, weights, None)
    for key, expected in whole.items():
        parts = [share[name, size][key] for share in shares]
        if key.startswith("buffer"):
            torch.testing.assert_close(parts, [expected] * 2, rtol=1e-11, atol=1e-11)
            continue
        # The gradient of a parameter is the sum over processes; each sample is in one process.
        got = sum(parts) if key.startswith("sum") else torch.cat(parts)
        scale = expected.abs().max().item()
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-9 * max(scale, 1))


@pytest.mark.slow
def test_without_sync_each_process_uses_its_own_statistics(tmp_path):
    shares = in_two_processes(tmp_path, sync=False)
    *xs, weights = inputs("BatchNorm1d", sum(SIZES["unequal"]))
    start = 0
    for rank, samples in enumerate(SIZES["unequal"]):
        own = slice(start, start + samples)
        alone = trained(BatchNorm1d(FEATURES), [x[own] for x in xs], weights[own], None)
        got = shares[rank]["BatchNorm1d", "unequal"]
        assert all(torch.equal(got[key], value) for key, value in alone.items())
        start += samples


def test_a_process_with_whole_minibatches_computes_the_same_with_sync():
    x = torch.randn(8, FEATURES)
    plain, synced = BatchNorm1d(FEATURES, fused=True), BatchNorm1d(FEATURES, fused=True, sync=True)
    with shared_batch(Share.of(len(x))):
        assert current_share() is None
        assert torch.equal(plain(x), synced(x))
    assert torch.equal(plain.running_var, synced.running_var)
    assert synced.state_dict().keys() == plain.state_dict().keys()


def test_a_share_selects_its_rows():
    share = Share(start=2, samples=3, total=7)
    assert share.select(torch.arange(7)).tolist() == [2, 3, 4]
    # Two rows for each sample, as in a net that splits its inputs.
    assert share.select(torch.arange(14)).tolist() == [4, 5, 6, 7, 8, 9]
    assert (share.count(3), share.count(6)) == (7, 14)


def test_the_share_ends_with_its_context_also_after_an_error():
    share = Share(0, 1, 2)
    seen = []
    with pytest.raises(ZeroDivisionError), shared_batch(share):
        seen.append(current_share()) or 1 / 0
    assert seen == [share]
    assert current_share() is None


def test_evaluation_needs_no_other_process():
    layer = BatchNorm1d(FEATURES, sync=True).eval()
    x = torch.randn(4, FEATURES)
    with shared_batch(Share(0, 4, 8)):
        assert torch.equal(layer(x), BatchNorm1d(FEATURES).eval()(x))


def test_sync_is_refused_by_layers_with_other_statistics():
    class Halved(BatchNorm1d):
        def statistics(self, x):
            mean, centered, var = super().statistics(x)
            return mean, centered, var / 2

    with pytest.raises(ValueError, match="sync must be false for Halved"):
        Halved(FEATURES, sync=True)
    with pytest.raises(TypeError, match="sync"):
        L1BatchNorm(FEATURES, sync=True)
