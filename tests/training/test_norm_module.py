"""``module=lightning`` and ``module=population`` give the same losses and weights, in float64."""

from functools import cache
from pathlib import Path

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from normlab.config.validation import validate
from normlab.results.result import Result
from normlab.training.run import train
from normlab.training.run_folders import Run

CONF = Path(__file__).parents[2] / "conf"
MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
NETS = {
    "mlp": ["data=random", "data.batch_size=33", "data.train=199", "data.val=40", "data.test=40"],
    "resmlp": ["net=resmlp", "net.width=16", "net.blocks=2", "data=random", "data.batch_size=128"],
    "cnn": [
        *("net=cnn", "net.channels=[8,8]", "data=digits", "data.batch_size=30"),
        *("data.train=151", "data.val=40", "data.test=40"),
    ],
}
# 600 or 199 samples make five or six steps per epoch.
STEPS = ["trainer.precision=64-true", "trainer.max_epochs=20", "logger=csv"]
OPTIMIZERS = {
    # A larger ε keeps Adam from scaling the rounding errors of idle biases to steps.
    "adam": ["optimizer=adam", "optimizer.lr=0.001", "optimizer.eps=1e-6"],
    "adamw": ["optimizer=adamw", "optimizer.lr=0.001", "optimizer.eps=1e-6"],
    "sgd": ["optimizer=sgd", "optimizer.lr=0.001"],
    "nesterov": ["optimizer=sgd", "optimizer.nesterov=true", "optimizer.lr=0.001", "optimizer.weight_decay=0.01"],
    "rmsprop": [
        *("++optimizer._target_=torch.optim.RMSprop", "~optimizer.betas"),
        *("optimizer.lr=0.001", "optimizer.eps=1e-5"),
    ],
    # Not NAdam: torch keeps its product of momenta in the default dtype, which Lightning sets within a step alone.
    "adagrad": ["++optimizer._target_=torch.optim.Adagrad", "~optimizer.betas", "optimizer.eps=1e-5"],
    "muon": ["optimizer=muon", "net.hidden=[16,16]", "optimizer.eps=1e-6"],
    "clipped": ["optimizer=sgd", "trainer.gradient_clip_val=0.5"],
    "clipped by value": [
        *("optimizer=sgd", "trainer.gradient_clip_val=0.01", "+trainer.gradient_clip_algorithm=value"),
    ],
}
RATE = "torch.optim.lr_scheduler"
SCHEDULES = {
    "step": ["scheduler=step", "scheduler.step_size=3"],
    "cosine": ["scheduler=cosine"],
    "plateau": ["scheduler=plateau", "scheduler.patience=1", "scheduler.threshold=0.1", "scheduler.factor=0.5"],
    "plateau, validated sometimes": [
        *("scheduler=plateau", "scheduler.patience=1", "scheduler.threshold=0.1"),
        "trainer.check_val_every_n_epoch=2",
    ],
    "one cycle": ["scheduler=onecycle", "scheduler.max_lr=0.003"],
    "warm-up, then cosine": [
        *(f"++scheduler._target_={RATE}.SequentialLR", "++scheduler.interval=step", "++scheduler.milestones=[10]"),
        f"++scheduler.schedulers=[{{_target_: {RATE}.LinearLR, start_factor: 0.1, total_iters: 10}}, "
        f"{{_target_: {RATE}.CosineAnnealingLR, T_max: 40}}]",
    ],
    "every third step": [
        *(f"++scheduler._target_={RATE}.ExponentialLR", "++scheduler.gamma=0.9"),
        *("++scheduler.interval=step", "++scheduler.frequency=3"),
    ],
}


@cache
def composed(*common: str) -> DictConfig:
    """Return a configuration; cached, since composing is slow."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=[*STEPS, *common])


def trained(folder: Path, module: str, *words: str) -> tuple[Run, Result]:
    """Train a run with a module."""
    target = {"lightning": "norm_module.NormModule", "population": "population_module.PopulationModule"}[module]
    node = OmegaConf.create({"module": {"_target_": f"normlab.training.{target}"}})
    config = validate(OmegaConf.merge(composed(*words), node))
    run = Run(config, folder / module, module, {"model": "x"}, [])
    (result,) = train([run])
    return run, result


def curves(folder: Path) -> pd.DataFrame:
    """Return a run's curves, a column for each metric."""
    frame = pd.read_csv(folder / "curves.csv")
    frame["name"] = frame["split"] + "/" + frame["metric"]
    return frame.drop_duplicates(["epoch", "name"]).pivot(index="epoch", columns="name", values="value")


def close(one: torch.Tensor, other: torch.Tensor, tolerance: float) -> bool:
    """Return True if two tensors differ by at most ``tolerance``, relative to the largest entry."""
    return bool((one.double() - other.double()).abs().max() <= tolerance * other.double().abs().max())


def check_equal(folder: Path, *words: str) -> tuple[Result, Result]:
    """Train a run with both modules, compare all its numbers, and return the results."""
    (ours, result), (theirs, reference) = (
        trained(folder, module, *words) for module in ("lightning", "population")
    )
    one, other = curves(ours.folder), curves(theirs.folder)
    assert sorted(one) == sorted(other)
    assert list(one.index) == list(other.index)
    states = [torch.load(run.folder / "checkpoints/last.pt", weights_only=True) for run in (ours, theirs)]
    assert [state["epoch"] for state in states] == [int(other.index.max())] * 2
    names = list(states[1]["state_dict"])
    assert list(states[0]["state_dict"]) == names
    # A bias before a norm that subtracts each feature's mean has no effect; rounding errors change it.
    idle = any("running_mean" in name for name in names) or "InstanceNorm" in str(ours.config.model)
    for name in other:
        if not (idle and "before" in name):
            pair = (torch.tensor(frame[name].dropna().to_numpy()) for frame in (one, other))
            assert close(*pair, 1e-9 if name.startswith("train/") else 1e-8), name
    for name in names:
        shifted = idle and (name.endswith("running_mean") or (name.endswith("bias") and ".norm." not in name))
        if not shifted or name.startswith("output"):
            assert close(*(state["state_dict"][name] for state in states), 1e-9), name
    assert (result.status, result.epochs, result.steps) == (reference.status, reference.epochs, reference.steps)
    for part in ("test", "final"):
        values = getattr(result, part)
        assert values.keys() == getattr(reference, part).keys()
        assert values == pytest.approx(getattr(reference, part), rel=1e-8)
    assert (result.best.epoch, result.best.step) == (reference.best.epoch, reference.best.step)
    assert (result.chance, result.data) == (reference.chance, reference.data)
    assert result.objective.value == pytest.approx(reference.objective.value, rel=1e-8)
    return result, reference


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("model", ["bn", "ln", "nobn", "rms"])
def test_a_hundred_steps_equal_the_population(tmp_path, model, optimizer):
    result, _ = check_equal(tmp_path, f"model={model}", *NETS["mlp"], *OPTIMIZERS[optimizer])
    assert result.steps >= 100


@pytest.mark.slow
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("model", MODELS)
def test_every_model_and_net_equals_the_population(tmp_path, model, net):
    if model == "in" and net != "cnn":
        pytest.skip("raises, see tests/training/test_build.py")
    # Two Latin squares: every model and every net meets each optimizer and schedule that is as stable.
    i, j = MODELS.index(model), list(NETS).index(net)
    optimizers = sorted(OPTIMIZERS.keys() - {"muon"})  # it needs two hidden layers
    schedule = list(SCHEDULES)[(i + 3 * j) % len(SCHEDULES)]
    optimizer = optimizers[(i + j) % len(optimizers)]
    if (optimizer, schedule) == ("adagrad", "one cycle"):
        schedule = "cosine"  # the cycle needs a momentum or beta1
    eps = ["optimizer.eps=1e-5"] if model == "brn" else []
    words = [word for word in OPTIMIZERS[optimizer] if not (eps and "eps" in word)]
    words += eps if "optimizer=sgd" not in words else []
    check_equal(tmp_path, f"model={model}", *NETS[net], *words, *SCHEDULES[schedule], "trainer.max_epochs=10")


@pytest.mark.slow
@pytest.mark.parametrize("schedule", [None, *SCHEDULES])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_and_schedule_equals_the_population(tmp_path, optimizer, schedule):
    if schedule == "one cycle" and optimizer in ("adagrad", "muon"):
        pytest.skip("the cycle needs a momentum or beta1")
    words = SCHEDULES[schedule] if schedule else []
    check_equal(tmp_path, "model=bn", *NETS["mlp"], *OPTIMIZERS[optimizer], *words, "trainer.max_epochs=10")


@pytest.mark.parametrize("loss", ["loss=huber", "loss=mse", "++loss._target_=torch.nn.L1Loss"])
def test_losses_equal_the_population(tmp_path, loss):
    check_equal(tmp_path, "model=bn", *NETS["mlp"], *OPTIMIZERS["sgd"], loss, "trainer.max_epochs=5")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_equal_the_population(tmp_path, schedule):
    words = [*NETS["mlp"], "optimizer.eps=1e-6", *SCHEDULES[schedule], "trainer.max_epochs=10"]
    check_equal(tmp_path, "model=bn", *words)
    rates = curves(tmp_path / "lightning")["train/lr"]
    assert rates.nunique() > 1


@pytest.mark.parametrize("statistics", ["batch", "reestimated"])
def test_statistics_equal_the_population(tmp_path, statistics):
    words = [*NETS["mlp"], *OPTIMIZERS["sgd"], f"statistics={statistics}", "trainer.max_epochs=3"]
    check_equal(tmp_path, "model=bn", *words)


@pytest.mark.parametrize(
    "words",
    [
        ["model=bn", "callbacks=early_stopping", "callbacks.early_stopping.patience=2", "optimizer.lr=0.1"],
        ["model=nobn", "optimizer=sgd", "optimizer.lr=1e6"],
        ["model=noisy", "net.dropout=0.3"],
        ["model=actnorm", "stats_warmup_epochs=2"],
        ["model=bn", "stats_warmup_epochs=2", "train_eval_every=2"],
        ["model=bn", "loss=squared_error"],
    ],
    ids=["early stopping", "diverged", "stochastic layers", "first minibatch", "warm-up", "squared error"],
)
def test_settings_of_a_run_equal_the_population(tmp_path, words):
    if "optimizer.lr=1e6" in words:
        results = [trained(tmp_path, module, *NETS["mlp"], *words)[1] for module in ("lightning", "population")]
        assert [(r.status, r.epochs, r.steps, r.best is None) for r in results] == [
            ("diverged", results[1].epochs, results[1].steps, results[1].best is None)
        ] * 2
        return
    check_equal(tmp_path, *NETS["mlp"], "optimizer.eps=1e-6", "trainer.max_epochs=12", *words)
