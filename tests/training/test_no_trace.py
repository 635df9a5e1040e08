"""Probes do not change the training."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from normlab.config.validation import validate
from normlab.population.population import copy_of
from normlab.training.build import make_data, make_module, make_probes
from normlab.training.probe_callback import ProbeCallback, ProbedStep
from normlab.training.run import train
from normlab.training.run_folders import Run
from normlab.training.stability import preconditioning

CONF = Path(__file__).parents[2] / "conf"
SMALL = [
    *("data.train=60", "data.val=20", "data.test=0", "data.batch_size=20", "net.hidden=[8,6]", "net.dropout=0.2"),
    *("trainer.max_epochs=2", "trainer.threads=1", "probes.gradient_lipschitz.samples=5"),
    *("probes.curvature.iterations=5", "probes.curvature.trace_samples=2", "probes.curvature.every_n_epochs=1"),
    *("probes.along_gradient.every_n_steps=2", "probes.covariate_shift.every_n_steps=2"),
    *("probes.line.count=3", "probes.activations.histograms_every=1"),
]
MODELS = ["bn", "brn", "noisy", "ln", "actnorm", "nobn"]


def config(model: str, seed: int = 0):
    with initialize_config_dir(str(CONF), version_base=None):
        overrides = [f"model={model}", f"seed={seed}", "probes=full", "data.standardize=true", *SMALL]
        return validate(compose("train", overrides=overrides))


def generator_states() -> tuple:
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002


def all_state(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """Return all state that a step depends on, in a comparable form."""
    named = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    return {
        "numbers": {name: tensor.tolist() for name, tensor in named.items()},
        "gradients": {
            name: None if tensor.grad is None else tensor.grad.tolist() for name, tensor in named.items()
        },
        "modes": [module.training for module in net.modules()],
        "settings": [{k: v for k, v in vars(module).items() if k[0] != "_"} for module in net.modules()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in net.modules()],
        "optimizer": {name: value.tolist() for name, value in optimizer.state.items()},
        "theta": optimizer.theta.tolist(),
    }


@pytest.mark.slow
@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("model", MODELS)
def test_probes_leave_all_state_bit_identical(model, members):
    configs = [config(model, seed) for seed in range(members)]
    data = make_data(configs[0])
    module = make_module(configs, data)
    optimizer = module.configure_optimizers()["optimizer"]
    x, y = (part[:20].expand(members, *part[:20].shape).clone() for part in (data.parts[0].x, data.parts[0].y))
    module.train()
    module.task.loss(module(x), y).sum().backward()
    optimizer.step()
    before = copy_of(module.population)
    module.zero_grad()
    module.task.loss(module(x), y).sum().backward()
    module.optimizers = lambda use_pl_optimizer=False: optimizer
    module.training_split = lambda: (data.split(0).x, data.split(0).y)
    module.data = data
    runs = [Run(one, Path("/nowhere"), "run", {}, []) for one in configs]
    probes = ProbeCallback(make_probes(configs[0]), runs, [], [], 0.0)
    probes.start = before

    state, drawn = all_state(module.population, optimizer), generator_states()
    probes.run(
        module,
        list(probes.probes),
        ProbedStep(before, copy_of(module.population), x, y, 1, 0, preconditioning(optimizer)),
    )
    assert all_state(module.population, optimizer) == state
    assert generator_states() == drawn
    found = {(one.probe, one.mode) for one in probes.unwritten[0]}
    both = {(probe, mode) for probe in ("gradient_lipschitz", "curvature", "line") for mode in ("batch", "frozen")}
    assert found == both | {(name, "batch") for name in probes.probes if (name, "batch") not in both}


@pytest.mark.slow
@pytest.mark.parametrize("model", ["bn", "noisy"])
def test_probed_run_equals_unprobed_run(tmp_path, model):
    for name, run_config in (("full", config(model)), ("none", config_without_probes(model))):
        train([Run(run_config, tmp_path / name, name, {"model": model}, [])])
    full, none = ((tmp_path / name / "curves.csv").read_text() for name in ("full", "none"))
    assert full == none
    states = [torch.load(tmp_path / name / "checkpoints" / "last.pt")["state_dict"] for name in ("full", "none")]
    assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())
    assert {path.name for path in (tmp_path / "full").iterdir()} >= {"probes.csv", "probes.npz", "graph.dot"}


def config_without_probes(model: str):
    with initialize_config_dir(str(CONF), version_base=None):
        overrides = [word for word in SMALL if not word.startswith("probes")]
        return validate(
            compose("train", overrides=[f"model={model}", "seed=0", "data.standardize=true", *overrides])
        )
