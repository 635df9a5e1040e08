"""Combinations of model and net: nets are made and stacked, or the dry run raises a reason."""

from functools import cache
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from normlab.config.frozen import FrozenConfig
from normlab.config.validation import validate
from normlab.errors import ConfigError
from normlab.execution.grouping import group_runs
from normlab.norms import BatchRenorm
from normlab.population.stacking_check import Stacking
from normlab.training.build import make_data, net_maker
from normlab.training.dry_run import dry_run_once
from normlab.training.run_folders import Run

CONF = Path(__file__).parents[2] / "conf"
MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
NETS = sorted(path.stem for path in (CONF / "net").glob("*.yaml"))
FEW = ["data.train=90", "data.val=20", "data.test=0", "data.batch_size=32"]
REFUSED = {
    ("in", "mlp"): "takes one for rows of features, model.norm; choose another net or model",
    ("in", "mlp_linear"): "takes one for rows of features, model.norm; choose another net or model",
    ("in", "resmlp"): "takes one for rows of features, model.norm; choose another net or model",
    ("in", "source_mlp"): "takes one for rows of features, model.norm; choose another net or model",
    ("gn", "mlp_linear"): "num_groups must divide the 10 features of every normalized layer, got 4",
    ("ws_gn", "mlp_linear"): "num_groups must divide the 10 features of every normalized layer, got 4",
}


@cache
def config_of(*overrides: str) -> FrozenConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return validate(compose("train", overrides=list(overrides)))


@pytest.mark.slow
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("model", MODELS)
def test_model_and_net_stack_or_raise_the_reason(model, net):
    config = config_of(f"model={model}", f"net={net}", "data=digits", *FEW)
    configs = [FrozenConfig.of(config | {"seed": seed}) for seed in (0, 1)]
    if (model, net) in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[model, net]):
            dry_run_once(configs[0])
        return
    dry_run_once(configs[0])
    (group,) = group_runs([Run(config, Path(), "", {}, []) for config in configs], chunk=None)
    assert group.indices == [0, 1]
    assert group.stacking == Stacking()


@pytest.mark.sampled(2)
# The source program draws two nets, of which the one without a normalizer is the second.
@pytest.mark.parametrize("net", [net for net in NETS if net != "source_mlp"])
def test_arms_with_one_seed_share_initial_weights(net):
    def maps(model: str) -> dict[str, torch.Tensor]:
        config = config_of(f"model={model}", f"net={net}", "data=digits", *FEW)
        torch.manual_seed(3)
        state = net_maker(config, make_data(config))().state_dict()
        return {name: tensor for name, tensor in state.items() if "norm." not in name and "param" not in name}

    without = maps("nobn")
    for model in sorted(set(MODELS) - {model for model, refused in REFUSED if refused == net}):
        arm = maps(model)
        assert arm.keys() <= without.keys()
        assert all(torch.equal(tensor, without[name]) for name, tensor in arm.items()), model


def test_batch_renorm_gets_total_steps():
    config = config_of("model=brn", "data=random", "data.train=90", "data.batch_size=32", "trainer.max_epochs=7")
    net = net_maker(config, make_data(config))()
    assert [layer.total_steps for layer in net.modules() if isinstance(layer, BatchRenorm)] == [3 * 7]
    with_steps = config_of("model=brn", "data=random", "+model.norm.total_steps=5")
    assert net_maker(with_steps, make_data(with_steps))().hidden1.norm.total_steps == 5


def test_net_without_weight_argument_raises():
    config = config_of("model=wn", "net._target_=torch.nn.Linear")
    with pytest.raises(ConfigError, match=r"torch.nn.Linear takes no weight parametrization"):
        net_maker(config, make_data(config))


def test_indivisible_ghost_batches_warn():
    config = config_of(
        "model=ghost", "data=random", "data.train=90", "data.batch_size=40", "model.norm.ghost_size=16"
    )
    assert dry_run_once(config).warnings == [
        "model.norm.ghost_size=16 does not divide a minibatch of 40: its last ghost batch has 8 samples"
    ]
    even = config_of(
        "model=ghost", "data=random", "data.train=64", "data.batch_size=32", "model.norm.ghost_size=16"
    )
    assert dry_run_once(even).warnings == []


def test_model_sets_the_branch_scale():
    words = ["model=nobn", "+model.branch_scale=skipinit", "data=digits", *FEW]
    config = config_of(*words, "net=resmlp")
    net = net_maker(config, make_data(config))()
    scales = [f"block{number}.branch_scale" for number in range(1, 5)]
    assert [name for name, _ in net.named_parameters() if "scale" in name] == scales
    given = config_of(*words, "net=resmlp", "net.branch_scale=0.1")
    assert net_maker(given, make_data(given))().block1.branch_scale == 0.1
    with pytest.raises(ConfigError, match=r"normlab\.models\.MLP has no residual branches; choose net=resmlp"):
        net_maker(config_of(*words), make_data(config))
