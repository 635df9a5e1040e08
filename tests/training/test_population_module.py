"""The LightningModule trains like a plain loop, and evaluation changes no state."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from normlab.config.frozen import FrozenConfig
from normlab.config.validation import validate
from normlab.data import InMemoryData, Table
from normlab.data.sampling import batch_sizes, epoch_order
from normlab.models.layers import Dropout
from normlab.training.build import make_data, make_module, make_trainer
from normlab.training.callbacks import FinalMetrics
from normlab.training.population_module import PopulationModule

CONF = str(Path(__file__).parents[2] / "conf")
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
Fitted = tuple[PopulationModule, InMemoryData, pl.Trainer]


def config_of(*overrides: str) -> FrozenConfig:
    """Return a configuration in float64, on random data."""
    with initialize_config_dir(CONF, version_base="1.3"):
        return validate(compose("train", overrides=["data=random", "trainer.precision=64-true", *overrides]))


def fitted(
    *overrides: str, callbacks: tuple[pl.Callback, ...] = ()
) -> tuple[PopulationModule, InMemoryData, pl.Trainer]:
    """Fit a module; return it with its data and trainer."""
    config = config_of(*overrides)
    data = make_data(config)
    module, trainer = make_module([config], data), make_trainer(config, list(callbacks))
    trainer.fit(module, datamodule=data)
    return module, data, trainer


class EpochRecorder(pl.Callback):
    """Records the value of a function of the module at the end of every epoch."""

    def __init__(self, measure: Callable[[PopulationModule], object]) -> None:
        self.measure = measure
        self.values: list = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: PopulationModule) -> None:
        self.values.append(self.measure(pl_module))


def plain_loop(net: nn.Module, data: InMemoryData, seed: int, epochs: int, lr: float) -> list[float]:
    """Train without Lightning; return each epoch's training loss."""
    x, y = data.parts[0].x.double(), data.parts[0].y.double()
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    losses = []
    for epoch in range(epochs):
        (order,) = epoch_order([seed], epoch, len(x))
        total = 0.0
        for index in order.split(batch_sizes(len(x), data.batch_size)):
            loss = nn.functional.mse_loss(net(x[index]), y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(index)
        losses.append(total / len(x))
    return losses


@pytest.mark.parametrize("batch_size", [128, 599, 600])
def test_training_equals_plain_pytorch_loop(batch_size):
    recorder = EpochRecorder(lambda module: module.metrics["train/loss"].item())
    changes = ["model=bn_torch", "net.hidden=[50]", "seed=3", f"data.batch_size={batch_size}"]
    module, data, _ = fitted(*changes, "trainer.max_epochs=5", callbacks=(recorder,))
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(10, 50), nn.BatchNorm1d(50), nn.ReLU(), nn.Linear(50, 1)).double()
    assert recorder.values == pytest.approx(plain_loop(net, data, seed=3, epochs=5, lr=0.01), rel=1e-9)
    # The gradient of a bias before the norm is rounding error, which Adam turns into steps: compare outputs.
    x = data.parts[1].x.double()
    torch.testing.assert_close(module.population.net.eval()(x), net.eval()(x), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(
        module.population.net.hidden1.norm.running_var, net[1].running_var, rtol=1e-9, atol=0
    )


@pytest.mark.parametrize("model", ["bn", "bn_formula"])
def test_batch_norm_trains_like_torch(model):
    losses = {}
    for name in (model, "bn_torch"):
        recorder = EpochRecorder(lambda module: module.metrics["val/loss"].item())
        fitted(f"model={name}", "trainer.max_epochs=5", callbacks=(recorder,))
        losses[name] = recorder.values
    assert losses[model] == pytest.approx(losses["bn_torch"], rel=1e-7)


def test_training_starts_in_training_mode():
    config = config_of("trainer.max_epochs=1")
    data = make_data(config)
    module, trainer = make_module([config], data), make_trainer(config, [])
    module.eval()
    modes = []
    norm = module.population.net.hidden1.norm
    norm.register_forward_hook(lambda layer, inputs, output: modes.append(layer.training))
    trainer.fit(module, datamodule=data)
    steps = len(batch_sizes(data.train, data.batch_size))
    assert modes[:steps] == [True] * steps
    assert not any(modes[steps:]), "training split by re-estimated statistics, test and validation"
    assert norm.num_batches_tracked == steps


def test_validation_and_test_change_no_state():
    config = config_of("trainer.max_epochs=1")
    data = make_data(config)
    module, trainer = make_module([config], data), make_trainer(config, [])
    before = {name: tensor.clone() for name, tensor in module.population.double().state().items()}
    trainer.validate(module, datamodule=data, verbose=False)
    trainer.test(module, datamodule=data, verbose=False)
    for name, tensor in module.population.state().items():
        assert torch.equal(tensor, before[name]), name


def test_activation_metrics_before_and_after_normalizers():
    module, data, _ = fitted("net.hidden=[20,30]", "trainer.max_epochs=2")
    net = module.population.net.eval()
    x = data.parts[1].x.double()
    before = net.hidden1.linear(x)
    after = net.hidden1.norm(before)
    second = net.hidden2.linear(net.hidden1.activation(after))
    expected = {
        "hidden1/before_mean": before.mean(),
        "hidden1/before_std": before.std(),
        "hidden1/after_mean": after.mean(),
        "hidden1/after_std": after.std(),
        "hidden2/before_mean": second.mean(),
    }
    for name, value in expected.items():
        assert module.metrics[f"activation/{name}"].item() == pytest.approx(value.item(), rel=1e-10), name


def test_gradient_clipping_bounds_the_step():
    changes = ["optimizer=sgd", "optimizer.lr=1", "optimizer.momentum=0", "data.batch_size=600"]
    before, _, _ = fitted(*changes, "trainer.max_epochs=0")
    after, _, _ = fitted(*changes, "trainer.max_epochs=1", "trainer.gradient_clip_val=0.01")
    weights = [
        torch.cat([p.detach().double().flatten() for p in module.population.parameters()])
        for module in (before, after)
    ]
    assert (weights[1] - weights[0]).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_scheduler_sets_next_epochs_learning_rate():
    recorder = EpochRecorder(lambda module: module.metrics["train/lr"].item())
    fitted("scheduler=step", "scheduler.step_size=2", "trainer.max_epochs=5", callbacks=(recorder,))
    assert recorder.values == pytest.approx([0.01, 0.01, 0.001, 0.001, 0.0001])


def test_plateau_scheduler_uses_validation_loss():
    recorder = EpochRecorder(lambda module: (module.metrics["train/lr"].item(), module.metrics["val/loss"].item()))
    changes = ["scheduler=plateau", "scheduler.patience=0", "scheduler.threshold=0", "trainer.max_epochs=30"]
    fitted(*changes, callbacks=(recorder,))
    lr, best = 0.01, float("inf")
    for rate, loss in recorder.values:
        assert rate == pytest.approx(lr)
        # Rates are not reduced by less than 1e-8.
        lr, best = (lr, loss) if loss < best else (lr * 0.1 if lr > 1.1e-8 else lr, best)
    assert lr < 0.01


def test_diverged_run_stops():
    module, _, trainer = fitted("optimizer=sgd", "optimizer.lr=1e6", "trainer.max_epochs=50")
    assert module.diverged.all()
    assert not module.active.any()
    assert trainer.current_epoch < 50


def test_lightning_gets_steps_and_metrics():
    stopping = pl.callbacks.EarlyStopping("val/loss", patience=1, min_delta=100.0)
    module, data, trainer = fitted("trainer.max_epochs=9", callbacks=(stopping,))
    assert trainer.current_epoch == 2, "Lightning's own early stopping saw no improvement"
    assert trainer.global_step == module.steps.item() == 2 * len(batch_sizes(data.train, data.batch_size))


def test_fast_dev_run_takes_one_step():
    module, _, _ = fitted("trainer.fast_dev_run=true")
    assert module.steps.item() == 1


def test_torch_optimizer_trains_a_single_run():
    changes = ["optimizer._target_=torch.optim.RMSprop", "~optimizer.betas", "scheduler=cosine"]
    recorder = EpochRecorder(lambda module: module.metrics["train/lr"].item())
    module, _, _ = fitted(*changes, "trainer.max_epochs=3", "optimizer.lr=0.001", callbacks=(recorder,))
    assert isinstance(module.optimizers(use_pl_optimizer=False), torch.optim.RMSprop)
    assert recorder.values == pytest.approx([0.001, 0.00075, 0.00025])
    assert module.metrics["val/loss"].isfinite()


class Signs(InMemoryData):
    """Two classes: whether the first of two numbers is positive."""

    def table(self) -> Table:
        x = torch.randn(500, 2, generator=torch.Generator().manual_seed(self.seed))
        return Table(x, (x[:, 0] > 0).long(), classes=2)


def test_classification_reports_accuracy():
    data = Signs(train=300, val=100, test=100, batch_size=50, seed=0)
    config = config_of("trainer.max_epochs=20", "optimized_metric=val/acc")
    module, trainer = make_module([config], data), make_trainer(config, [])
    trainer.fit(module, datamodule=data)
    assert module.metrics["val/acc"].item() > 0.9
    assert module.population.net.output.out_features == 2


def final(*overrides: str) -> tuple[PopulationModule, FinalMetrics, InMemoryData]:
    """Fit a module; return it with its recorded final metrics and its data."""
    final_metrics = FinalMetrics()
    module, data, _ = fitted(*overrides, callbacks=(final_metrics,))
    return module, final_metrics, data


@pytest.mark.parametrize("statistics", ["running", "reestimated", "batch"])
def test_train_eval_loss_uses_training_split_statistics(statistics):
    overrides = ["trainer.max_epochs=20", f"statistics={statistics}", "data.train=100", "data.batch_size=40"]
    module, final_metrics, data = final(*overrides)
    measured = [epoch for epoch, metrics in enumerate(final_metrics.epochs, 1) if "train_eval/loss" in metrics]
    assert measured == [2, 4, 6, 8, 10, 12, 14, 16, 18, 19, 20], "every tenth, and in the last tenth each"
    assert [epoch for epoch, metrics in enumerate(final_metrics.epochs, 1) if "test/loss" in metrics] == [19, 20]
    net, (train, _, test) = deepcopy(module.population.net), data.parts
    by_running = net.eval()(test.x)
    norm = net.hidden1.norm
    inputs = net.hidden1.linear(train.x).detach()
    norm.running_mean.copy_(inputs.mean(0))
    norm.running_var.copy_(inputs.var(0))
    expected = nn.functional.mse_loss(net.eval()(train.x), train.y)
    assert final_metrics.epochs[-1]["train_eval/loss"].item() == pytest.approx(expected.item(), rel=1e-9)
    if statistics != "batch":
        outputs = by_running if statistics == "running" else net(test.x)
        loss = nn.functional.mse_loss(outputs, test.y).item()
        assert final_metrics.epochs[-1]["test/loss"].item() == pytest.approx(loss, rel=1e-9)


def test_final_mean_covers_last_tenth_of_own_epochs():
    module, final_metrics, _ = final("trainer.max_epochs=20", "+callbacks.early_stopping.monitor=val/loss",
                            "+callbacks.early_stopping.patience=50")  # fmt: skip
    own = [metrics["val/loss"].item() for metrics in final_metrics.epochs]
    assert "test/loss" in final_metrics.epochs[0], "a run may stop at any epoch"
    found = {epochs: final_metrics.means(torch.tensor([epochs]))["val/loss"].item() for epochs in (5, 20)}
    assert found == pytest.approx({5: own[4], 20: (own[18] + own[19]) / 2})
    assert module.metrics["val/loss"].item() == own[-1]


def masks_of(monkeypatch: pytest.MonkeyPatch, model: str) -> list[list[torch.Tensor]]:
    """Return the dropout masks of each step of a training."""
    now: list[torch.Tensor] = []
    steps: list[list[torch.Tensor]] = []
    forward, take_step = Dropout.forward, PopulationModule.take_step

    def recorded(layer: Dropout, x: torch.Tensor) -> torch.Tensor:
        if layer.training:
            now.append(layer.uniform(x.shape) >= layer.p)
        return forward(layer, x)

    def step(module: PopulationModule, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        now.clear()
        loss = take_step(module, x, y)
        steps.append(list(now))
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(Dropout, "forward", recorded)
        patch.setattr(PopulationModule, "take_step", step)
        fitted(f"model={model}", "net.dropout=0.5", "net.hidden=[8,6]", "trainer.max_epochs=2", "seed=3")
    return steps


def test_arms_with_one_seed_share_dropout_masks(monkeypatch):
    bn, *others = [masks_of(monkeypatch, model) for model in ("bn", "nobn", "actnorm")]
    assert [len(masks) for masks in bn] == [2] * len(bn)
    assert not torch.equal(bn[0][0], bn[1][0])
    for other in others:
        assert len(other) == len(bn)
        for ours, theirs in zip(bn, other, strict=True):
            assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("model", ["bn", "nobn", "actnorm"])
def test_stochastic_layers_count_the_steps(model):
    configs = [
        config_of(f"model={model}", "net.dropout=0.5", "trainer.max_epochs=2", f"seed={seed}") for seed in (0, 1)
    ]
    data = make_data(configs[0])
    module = make_module(configs, data)
    make_trainer(configs[0], []).fit(module, datamodule=data)
    drawn = [tensor for name, tensor in module.population.state().items() if name.endswith("dropout.step")]
    assert drawn
    assert all(torch.equal(steps, module.steps) for steps in drawn)
