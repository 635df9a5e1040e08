"""``trainable``: the parameters that train, in both modules, in populations and alone."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.testing import assert_close

from normlab.config.frozen import FrozenConfig
from normlab.config.validation import validate
from normlab.errors import ConfigError
from normlab.models import MLP
from normlab.norms import BatchNorm1d
from normlab.norms.weight import weight_normalization
from normlab.population.population import initial_nets
from normlab.training.build import make_data, net_maker
from normlab.training.run import train
from normlab.training.run_folders import Run
from normlab.training.trainable import restrict_training

CONF = Path(__file__).parents[2] / "conf"
COMMON = ["trainer.precision=64-true", "trainer.max_epochs=3", "logger=csv", "data=random", "data.batch_size=150"]
COMMON += ["data.train=300", "data.val=60", "data.test=60", "net.hidden=[8,8]", "optimizer.eps=1e-6"]
SHORT = [
    "trainer.max_epochs=2",
    "logger=csv",
    "data.train=60",
    "data.val=20",
    "data.test=20",
    "data.batch_size=30",
]


def make_net(norm=BatchNorm1d, **options) -> nn.Module:
    torch.manual_seed(0)
    return MLP((3,), 2, hidden=[4, 5], norm=norm, **options).double()


def trained(net: nn.Module) -> list[str]:
    return [name for name, parameter in net.named_parameters() if parameter.requires_grad]


def masks(net: nn.Module) -> list[Tensor]:
    return [buffer for name, buffer in net.named_buffers() if name.endswith(".mask")]


@pytest.mark.parametrize(
    ("trainable", "expected"),
    [
        ("norm", ["hidden1.norm.weight", "hidden1.norm.bias", "hidden2.norm.weight", "hidden2.norm.bias"]),
        ("^output", ["output.weight", "output.bias"]),
        ("norm.weight|output.bias", ["hidden1.norm.weight", "hidden2.norm.weight", "output.bias"]),
    ],
)
def test_selected_parameters(trainable, expected):
    assert trained(restrict_training(make_net(), trainable, 0)) == expected


def test_all_leaves_the_net_as_it_is():
    net = make_net()
    names = list(net.state_dict())
    assert list(restrict_training(net, "all", 0).state_dict()) == names
    assert len(trained(net)) == len(list(net.parameters()))


def test_random_entries():
    net, x = make_net(), torch.randn(16, 3, dtype=torch.float64)
    outputs = make_net()(x)
    restrict_training(net, "random:norm", 3)
    # As many as γ and β of 4 and 5 features, of the 16 + 25 + 12 entries of the linear maps.
    assert sum(int(mask.sum()) for mask in masks(net)) == 2 * (4 + 5)
    assert sum(mask.numel() for mask in masks(net)) == 53
    assert all("linear" in name or "output" in name for name in trained(net))
    assert torch.equal(net(x), outputs)
    flat = [
        torch.cat([m.flatten() for m in masks(restrict_training(make_net(), "random:norm", s))]) for s in (3, 4)
    ]
    assert torch.equal(flat[0], torch.cat([mask.flatten() for mask in masks(net)]))
    assert not torch.equal(*flat)


def test_entries_are_drawn_alike():
    counts = torch.zeros(53)
    for seed in range(400):
        counts += torch.cat([m.flatten() for m in masks(restrict_training(make_net(), "random:norm", seed))])
    # Each entry is drawn in 18 of 53 nets; five standard deviations of a binomial number.
    share = 18 / 53
    assert ((counts / 400 - share).abs() < 5 * (share * (1 - share) / 400) ** 0.5).all()


@pytest.mark.parametrize("weight", [None, weight_normalization])
@pytest.mark.parametrize("rule", [torch.optim.SGD, torch.optim.AdamW])
def test_steps_change_drawn_entries_alone(rule, weight):
    net, x = make_net(weight=weight), torch.randn(16, 3, dtype=torch.float64)
    restrict_training(net, "random:norm", 0)
    layers = [net.hidden1.linear, net.hidden2.linear, net.output]
    before = [layer.weight.detach().clone() for layer in layers]
    optimizer = rule(net.parameters(), lr=0.1, weight_decay=0.3)
    for _ in range(3):
        optimizer.zero_grad()
        net(x).square().sum().backward()
        optimizer.step()
    if weight is None:
        for layer, start in zip(layers, before, strict=True):
            mask = layer.parametrizations.weight[0].mask
            assert torch.equal(layer.weight[~mask], start[~mask])
            assert bool(mask.any())
            assert not bool((layer.weight == start)[mask].any())
    assert all(
        torch.equal(norm.weight, torch.ones_like(norm.weight)) for norm in (net.hidden1.norm, net.hidden2.norm)
    )


def test_errors():
    with pytest.raises(ConfigError, match=r"trainable=norm selects no parameter, as .*; choose another model"):
        restrict_training(make_net(None), "norm", 0)
    with pytest.raises(ConfigError, match=r"trainable must be all, norm or a part of .*, got gamma; the net has"):
        restrict_training(make_net(), "gamma", 0)
    with pytest.raises(ConfigError, match=r"as many entries as the other weights have, got 71 and 0"):
        restrict_training(make_net(), "random:all", 0)


def run_of(folder: Path, name: str, *words: str) -> Run:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = validate(compose("train", overrides=[*COMMON, *words]))
    return Run(config, folder / name, name, {"model": "x"}, list(words))


def final_state(run: Run) -> dict[str, Tensor]:
    return torch.load(run.folder / "checkpoints/last.pt", weights_only=True)["state_dict"]


def initial_state(config: FrozenConfig) -> dict[str, Tensor]:
    return initial_nets(net_maker(config, make_data(config)), [config.seed])[0].double().state_dict()


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "rule", [["optimizer=adamw"], ["optimizer._target_=torch.optim.RMSprop", "~optimizer.betas"]]
)
@pytest.mark.parametrize("trainable", ["norm", "output", "random:norm"])
def test_populations_and_lightning_equal_runs_alone(tmp_path, trainable, rule):
    words = ["model=ln", f"trainable={trainable}", "optimizer.weight_decay=0.1", *rule]
    together = [run_of(tmp_path, f"together{k}", *words, f"seed={k}") for k in range(2)]
    train(together)
    for k, member in enumerate(together):
        alone = run_of(tmp_path, f"alone{k}", *words, f"seed={k}")
        single = run_of(tmp_path, f"single{k}", *words, f"seed={k}", "module=lightning")
        train([alone])
        train([single])
        states = [final_state(run) for run in (member, alone, single)]
        start = initial_state(member.config)
        for name, tensor in states[0].items():
            assert_close(states[1][name], tensor, rtol=1e-9, atol=1e-12, msg=name)
            assert_close(states[2][name], tensor, rtol=1e-9, atol=1e-12, msg=name)
        fixed = [name for name in start if trainable not in name and "original" not in name]
        assert all(torch.equal(states[0][name], start[name]) for name in fixed)
        assert any(not torch.equal(states[0][name], start[name]) for name in start)


def test_compiled_steps_and_probes(tmp_path):
    words = ["model=bn", "trainable=random:norm", "probes=light", "trainer.compile=true"]
    together = [run_of(tmp_path, f"together{k}", *words, f"seed={k}") for k in range(2)]
    train(together)
    alone = run_of(tmp_path, "alone", *words[:-1], "trainer.compile=false", "seed=1")
    train([alone])
    for name, tensor in final_state(alone).items():
        if not name.endswith("bias.original") and "running_mean" not in name:
            assert_close(final_state(together[1])[name], tensor, rtol=1e-7, atol=1e-9, msg=name)


def test_command_line(run_train):
    words = ("-m", "model=bn", "trainable=norm,random:norm,output", "seed=0,1", *SHORT)
    outcome = run_train(*words)
    assert outcome.code == 0, outcome.err
    assert "random:norm" in outcome.out
    outcome = run_train("model=nobn", "trainable=norm", *SHORT)
    assert outcome.code == 1
    assert "trainable=norm selects no parameter" in outcome.err
    outcome = run_train("trainable=random:", *SHORT)
    assert "trainable must be all, norm or a part of a parameter's name" in outcome.err


def test_configurations_without_the_key_train_all():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert OmegaConf.to_container(compose("train"))["trainable"] == "all"


@pytest.mark.parametrize(("model", "agrees"), [("bn", True), ("ln", True), ("nobn", False)])
def test_weight_decay_of_scale_invariant_weights_is_an_exponential_rate(tmp_path, model, agrees):
    # Li and Arora (2019), arXiv:1910.07454: rates η(1 − ηλ)^(−2t − 1) without weight decay.
    rate, decay = 0.1, 0.05
    shrink = 1 - rate * decay
    words = [f"model={model}", "trainable=hidden..linear.weight", "net.init=kaiming", "optimizer=sgd"]
    words += ["optimizer.momentum=0", "trainer.max_epochs=20"] + (["model.norm.eps=1e-30"] if agrees else [])
    words = [*words, *(word for word in COMMON if "eps" not in word and "epochs" not in word)]
    schedule = ["+scheduler._target_=torch.optim.lr_scheduler.ExponentialLR", f"+scheduler.gamma={shrink**-2}"]
    schedule += ["+scheduler.interval=step", f"optimizer.lr={rate / shrink}"]
    decayed = [f"optimizer.lr={rate}", f"optimizer.weight_decay={decay}", "++optimizer.no_decay=[scale_dependent]"]
    if not agrees:
        decayed.pop()
    losses = []
    for name, own in (("decayed", decayed), ("grown", schedule)):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = validate(compose("train", overrides=[*words, *own]))
        train([Run(config, tmp_path / name, name, {"model": "x"}, own)])
        curves = pd.read_csv(tmp_path / name / "curves.csv").query("split == 'train' and metric == 'loss'")
        losses.append(torch.tensor(curves["value"].to_numpy()))
    largest = ((losses[0] - losses[1]) / losses[1]).abs().max().item()
    assert largest < 1e-6 if agrees else largest > 1e-3
