"""Populations on a GPU: equal to runs alone and to module=lightning, compiled, halved without memory."""

import logging
import sys
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
from tests.training.equality import CASES, EPS, GENTLE, IMAGES_ONLY, MEMBERS, MODELS, compare, curves, runs_of

from normlab.execution.executors import InProcess, train_groups
from normlab.execution.grouping import Group
from normlab.population.resources import device as device_of
from normlab.population.resources import memory
from normlab.results.result import Result, Status
from normlab.training.dry_run import dry_run_once
from normlab.training.population_module import PopulationModule
from normlab.training.run import train

# Warnings of torch itself: of Inductor at its first import, and of Dynamo at an autograd.Function.
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]

NETS = {"mlp": CASES["random"], "resmlp": CASES["resmlp"], "cnn": CASES["cnn"]}
SHORT = ["trainer.max_epochs=5"]
PROBES = ["probes=full", "trainer.max_epochs=2"]


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("model", MODELS)
def test_population_equals_runs_alone(tmp_path, accelerator, model, net):
    if model in IMAGES_ONLY and net != "cnn":
        pytest.skip("this normalizer takes images alone")
    eps = ["optimizer.eps=1e-5"] if model == "brn" and EPS in NETS[net] else []
    members = MEMBERS if net == "mlp" else GENTLE[1:]
    compare(tmp_path, [f"model={model}", *NETS[net], *SHORT, *eps, accelerator], members)


@pytest.mark.parametrize("net", NETS)
def test_population_equals_module_lightning(tmp_path, accelerator, net):
    common = ["model=bn", *NETS[net], *SHORT, accelerator]
    for module in ("population", "lightning"):
        (run,) = runs_of(tmp_path / module, [*common, f"module={module}"], GENTLE[:1])
        train([run])
    ours, reference = (curves(tmp_path / module / "0") for module in ("population", "lightning"))
    for name in ("train/loss", "val/loss"):
        np.testing.assert_allclose(ours[name], reference[name], rtol=1e-8)


def test_compiled_steps_equal_uncompiled_ones(tmp_path, accelerator, caplog):
    for compiled in ("true", "false"):
        words = ["model=bn", *NETS["mlp"], *SHORT, accelerator, f"trainer.compile={compiled}"]
        with caplog.at_level(logging.WARNING, logger="normlab"):
            train(runs_of(tmp_path / compiled, words, MEMBERS))
    assert "uncompiled" not in caplog.text
    for k in range(len(MEMBERS)):
        ours, reference = (curves(tmp_path / compiled / str(k))["train/loss"] for compiled in ("true", "false"))
        np.testing.assert_allclose(ours, reference, rtol=1e-9)


@pytest.fixture
def little_memory(device, monkeypatch):
    """Return a function that leaves memory for two members of a wide net; on the CPU steps raise the error."""

    def leave(bytes_each):
        if device == "cpu":
            monkeypatch.setattr(PopulationModule, "take_steps", take_steps_of_few)
            return
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2.9 * bytes_each) / total)

    yield leave
    if device == "cuda":
        torch.cuda.set_per_process_memory_fraction(1.0)


def take_steps_of_few(module, batch, take=PopulationModule.take_steps):
    """Take the steps of at most two members."""
    if module.population.members > 2:
        raise torch.OutOfMemoryError("CUDA out of memory")
    take(module, batch)


def test_population_is_halved_if_memory_runs_out(tmp_path, device, accelerator, little_memory, caplog):
    wide = 2000 if device == "cuda" else 20
    words = ["model=bn", *NETS["mlp"], "trainer.max_epochs=2", accelerator, f"net.hidden=[{wide},{wide}]"]
    runs = runs_of(tmp_path, words, [[f"seed={seed}", "optimizer.lr=0.001"] for seed in range(8)])
    group = Group(list(range(8)), runs, dry_run_once(runs[0].config))
    # θ, its gradient, Adam's two moments, the best state, and as many temporary copies.
    little_memory(10 * group.trial.footprint.parameters * 8)
    with caplog.at_level(logging.WARNING, logger="normlab"):
        ((_, values),) = train_groups([group], InProcess())
    assert "out of memory with 8 runs at once; continuing with half as many" in caplog.text
    assert {Result.read(run.folder).status for run in runs} == {Status.FINISHED}, values


def test_memory_of_the_device_is_read(device):
    # Less than 4 TB, more than 1 GB.
    assert 1e9 < memory(device_of("auto")) < 4e12


def test_probes_run_and_checkpoints_hold_tensors_of_the_cpu(tmp_path, accelerator):
    words = ["model=bn", *NETS["mlp"], *PROBES, accelerator]
    runs = runs_of(tmp_path, words, GENTLE)
    train(runs)
    for run in runs:
        assert Result.read(run.folder).status is Status.FINISHED
        assert len(pd.read_csv(run.folder / "probes.csv")) > 0
        for name in ("best", "last"):
            state = torch.load(run.folder / f"checkpoints/{name}.pt", weights_only=True)["state_dict"]
            assert {tensor.device.type for tensor in state.values()} == {"cpu"}


class OwnNet(torch.nn.Sequential):
    """A net whose dropout draws from the generator of the device."""

    def __init__(self, input_shape, out_features):
        super().__init__(
            torch.nn.Linear(*input_shape, 20), torch.nn.Dropout(0.5), torch.nn.Linear(20, out_features)
        )


def test_probes_leave_the_generator_of_the_device(tmp_path, accelerator, monkeypatch):
    module = ModuleType("user_module")
    module.OwnNet = OwnNet
    monkeypatch.setitem(sys.modules, "user_module", module)
    plain = [word for word in NETS["mlp"] if not word.startswith("net")]
    common = ["model=nobn", *plain, *SHORT, accelerator, "net._target_=user_module.OwnNet", "~net.hidden"]
    removed = ["activation", "norm_position", "dropout", "init"]
    common += [f"~net.{key}" for key in removed]
    for probes in ("none", "full"):
        (run,) = runs_of(tmp_path / probes, [*common, f"probes={probes}"], GENTLE[:1])
        train([run])
    probed, plain = (curves(tmp_path / probes / "0")["train/loss"] for probes in ("full", "none"))
    assert probed.equals(plain)
