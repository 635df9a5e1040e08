"""Running, re-estimated and batch statistics in evaluation."""

import copy
from pathlib import Path

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn
from torch.testing import assert_close

from normlab.config.validation import validate
from normlab.data import Table
from normlab.models import CNN, MLP
from normlab.models.layer_lookup import use_batch_statistics
from normlab.norms import (
    BatchNorm1d,
    BatchNorm2d,
    BatchRenorm,
    GhostBatchNorm,
    L1BatchNorm,
    LInfBatchNorm,
    NoisyBatchNorm,
)
from normlab.norms.batch_statistics import expected_maximum
from normlab.population.evaluation import reestimate
from normlab.population.population import Population
from normlab.training.build import make_data
from normlab.training.run import train
from normlab.training.run_folders import Run

CONF = Path(__file__).parents[2] / "conf"
BY_VARIANCE = [BatchNorm1d, nn.BatchNorm1d, GhostBatchNorm, BatchRenorm, NoisyBatchNorm]
BY_SAMPLES = [*BY_VARIANCE, L1BatchNorm, LInfBatchNorm]


def net(norm, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return MLP((3,), 2, hidden=[6, 5], norm=norm, dropout=0.3).double()


def samples(number: int = 50, seed: int = 0) -> Tensor:
    return 2 + 3 * torch.randn(number, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def state(net: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(net.state_dict())


@pytest.mark.parametrize("norm", BY_VARIANCE)
@pytest.mark.parametrize("size", [50, 16, 9])
def test_first_normalizer_gets_exact_training_statistics(norm, size):
    model, x = net(norm), samples()
    reestimate(Population([model]), x[None].split(size, dim=1))
    h = model.hidden1.linear(x)
    assert_close(model.hidden1.norm.running_mean, h.mean(0), rtol=1e-12, atol=1e-12)
    assert_close(model.hidden1.norm.running_var, h.var(0), rtol=1e-12, atol=1e-12)


def test_second_normalizer_pools_batch_normalized_inputs():
    model, x = net(BatchNorm1d), samples()
    reestimate(Population([model]), x[None].split(16, dim=1))
    seen = []
    for batch in x.split(16):
        h = model.hidden1.linear(batch)
        x_hat = (h - h.mean(0)) / (h.var(0, correction=0) + 1e-5).sqrt()
        seen.append(model.hidden2.linear(x_hat.relu()))
    h = torch.cat(seen)
    assert_close(model.hidden2.norm.running_mean, h.mean(0))
    assert_close(model.hidden2.norm.running_var, h.var(0))


def test_pooling_differs_from_update_bn():
    """update_bn ignores the variance between batch means, and weights short batches like full ones."""
    x = samples(34).sort(dim=0).values
    ours, torchs = net(nn.BatchNorm1d), net(nn.BatchNorm1d)
    reestimate(Population([ours]), x[None].split(16, dim=1))
    torch.optim.swa_utils.update_bn(x.split(16), torchs)
    h = ours.hidden1.linear(x)
    assert_close(ours.hidden1.norm.running_var, h.var(0))
    assert (torchs.hidden1.norm.running_var / h.var(0)).max() < 0.8


def test_pixels_are_pooled():
    torch.manual_seed(0)
    model, x = CNN((1, 6, 6), 3, channels=[4, 5], norm2d=BatchNorm2d).double(), torch.randn(20, 1, 6, 6).double()
    reestimate(Population([model]), x[None].split(8, dim=1))
    h = model.hidden1.conv(x)
    assert_close(model.hidden1.norm.running_mean, h.mean((0, 2, 3)))
    assert_close(model.hidden1.norm.running_var, h.var((0, 2, 3)))


@pytest.mark.parametrize(("norm", "constant"), [(L1BatchNorm, (torch.pi / 2) ** 0.5), (LInfBatchNorm, None)])
def test_lp_spreads_are_averaged_over_samples(norm, constant):
    model, x = net(norm), samples()
    reestimate(Population([model]), x[None].split(16, dim=1))
    squares = 0
    for h in (model.hidden1.linear(batch) for batch in x.split(16)):
        size = len(h)
        deviations = (h - h.mean(0)).abs()
        sigma = constant * deviations.mean(0) if constant else deviations.amax(0) / expected_maximum(size)
        squares = squares + size * size / (size - 1) * sigma.square()
    assert_close(model.hidden1.norm.running_var, squares / 50)


@pytest.mark.parametrize("norm", BY_SAMPLES)
def test_members_are_reestimated_like_single_nets(norm):
    nets, x = [net(norm, seed) for seed in range(3)], torch.stack([samples(seed=seed) for seed in range(3)])
    alone = copy.deepcopy(nets)
    population = Population(copy.deepcopy(nets)).train()
    before = {name: tensor.clone() for name, tensor in population.state().items()}
    generator = torch.get_rng_state()
    reestimate(population, x.split(16, dim=1))
    assert population.training
    assert torch.equal(torch.get_rng_state(), generator)
    for name, tensor in population.state().items():
        assert torch.equal(tensor, before[name]) != ("running" in name), name
    for k, model in enumerate(alone):
        reestimate(Population([model]), x[k : k + 1].split(16, dim=1))
        for name, tensor in population.member(k).items():
            assert_close(tensor, model.state_dict()[name])


def test_net_without_running_statistics_is_unchanged():
    population = Population([net(nn.LayerNorm)])
    before = state(population.net)
    reestimate(population, iter([]))
    assert_close(state(population.net), before, rtol=0, atol=0)


@pytest.mark.parametrize("norm", BY_SAMPLES)
def test_batch_statistics_normalize_and_change_no_state(norm):
    model, x = net(norm), samples()
    for batch in x.split(10):
        model(batch)
    model.eval()
    before, usual = state(model), model(x)
    with use_batch_statistics(model):
        own = model(x)
        assert not torch.allclose(own, usual)
        assert torch.equal(model(x), own)
    assert torch.equal(model(x), usual)
    assert_close(state(model), before, rtol=0, atol=0)
    layer = model.hidden1.norm
    with use_batch_statistics(model):
        y = layer(x[:, :3] @ torch.ones(3, 6).double())
    assert_close(y.mean(0), layer.bias)


class MeanOnly(nn.Module):
    """A layer with a running mean but no running variance."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(num_features))

    def forward(self, x: Tensor) -> Tensor:
        return x - (x.mean(0) if self.running_mean is None else self.running_mean)


def test_bug_layer_with_only_a_running_mean():
    model, x = net(MeanOnly), samples()
    reestimate(Population([model]), x[None].split(16, dim=1))
    assert_close(model.hidden1.norm.running_mean, model.hidden1.linear(x).mean(0))
    with use_batch_statistics(model):
        assert model.hidden1.norm(x @ torch.ones(3, 6).double()).mean().abs() < 1e-12
    alone = Population([MeanOnly(3).double()])
    reestimate(alone, x[None].split(16, dim=1))
    assert_close(alone.net.running_mean, x.mean(0))


def test_running_statistics_are_restored_after_an_error():
    model = net(BatchNorm1d)
    with pytest.raises(RuntimeError, match="in the middle"), use_batch_statistics(model):
        raise RuntimeError("in the middle")
    assert model.hidden1.norm.running_mean is not None


def run_of(folder: Path, *overrides: str) -> Run:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        words = ["data=random", "trainer.max_epochs=3", "logger=csv", "trainer.precision=64-true", *overrides]
        config = validate(compose("train", overrides=words))
    return Run(config, folder, "one", {"model": "bn"}, [])


def loss_of(folder: Path, name: str, part: Table, by_own_batch: bool) -> tuple[float, nn.Module]:
    """Return the loss of a checkpoint, computed independently, and the net."""
    model = MLP((10,), 1, norm=BatchNorm1d).double().eval()
    saved = torch.load(folder / f"checkpoints/{name}.pt", weights_only=True)["state_dict"]
    model.load_state_dict(saved)
    if by_own_batch:
        model.hidden1.norm.running_mean = model.hidden1.norm.running_var = None
    return nn.functional.mse_loss(model(part.x.double()), part.y.double()).item(), model


@pytest.mark.parametrize("statistics", ["running", "reestimated", "batch"])
def test_checkpoints_reproduce_the_reported_losses(tmp_path, statistics):
    run = run_of(tmp_path, f"statistics={statistics}", "data.batch_size=250")
    (result,) = train([run])
    train_part, val, test = make_data(run.config).parts
    curve = pd.read_csv(tmp_path / "curves.csv").query("metric == 'loss' and split == 'val'").set_index("epoch")
    for moment, name in ((result.best, "best"), (result.last, "last")):
        loss, model = loss_of(tmp_path, name, val, statistics == "batch")
        assert moment.metrics["val/loss"] == pytest.approx(loss, rel=1e-9)
        in_curve = curve["value"][moment.epoch]
        assert (in_curve == pytest.approx(loss, rel=1e-6)) == (statistics != "reestimated")
        if statistics == "reestimated":
            h = model.hidden1.linear(train_part.x.double())
            assert_close(model.hidden1.norm.running_var, h.var(0))
    loss, _ = loss_of(tmp_path, "best", test, statistics == "batch")
    assert result.test["test/loss"] == pytest.approx(loss, rel=1e-9)
    assert result.objective.value == result.best.metrics["val/loss"]
