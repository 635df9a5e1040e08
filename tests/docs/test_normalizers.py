"""The tables of docs/normalizers.md are what is measured on the nets that ``conf/`` builds; its sentences hold."""

import copy
import re
from dataclasses import dataclass
from functools import cache
from inspect import getdoc, getmodule
from itertools import product
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from normlab.data import InMemoryData, Table
from normlab.models import MLP
from normlab.models.layer_lookup import norm_slots
from normlab.norms import (
    BatchNorm1d,
    BatchRenorm,
    GhostBatchNorm,
    NoisyBatchNorm,
    scaled_weight_standardization,
    weight_normalization,
    weight_standardization,
)
from normlab.population.evaluation import reestimate, with_running_statistics
from normlab.population.population import Population
from normlab.training.build import net_maker
from normlab.training.dry_run import dry_run_once

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
TEXT = (ROOT / "docs" / "normalizers.md").read_text()
MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
SHAPES = {"mlp": (6,), "cnn": (2, 8, 8)}
COLUMNS = {"mlp": "rows `(B, C)`", "cnn": "images `(B, C, H, W)`"}
ON_SMALL_NETS = {"mlp": ["net.hidden=[8,8]"], "cnn": ["net.channels=[8,8]"]}
EACH_MODEL = pytest.mark.parametrize("model", MODELS)


def table(heading: str) -> dict[str, dict[str, str]]:
    """Return the first table below a heading: its rows by the name in their first cell, each by column."""
    section = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert all(len(row) == len(header) for row in rows)
    found = [(row[0].strip("`"), dict(zip(header[1:], row[1:], strict=True))) for row in rows]
    assert len(dict(found)) == len(found), "a model has two rows"
    return dict(found)


COMPUTED, FOLLOWS = table("What is computed"), table("What follows from it")
REFUSED = {
    (model, net) for net, column in COLUMNS.items() for model in COMPUTED if COMPUTED[model][column] == "refused"
}
EACH_NET = pytest.mark.parametrize(
    ("model", "net_name"), [pair for pair in product(MODELS, SHAPES) if pair not in REFUSED]
)


@dataclass(kw_only=True, eq=False)
class Noise(InMemoryData):
    """Inputs of one shape, off center and not of variance one."""

    shape: tuple[int, ...]

    def table(self) -> Table:
        generator = torch.Generator().manual_seed(self.seed)
        x = 1 + 3 * torch.randn(60, *self.shape, generator=generator)
        return Table(x, torch.randn(60, 1, generator=generator))


@cache
def config(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=list(overrides))


def config_of(model: str, net_name: str = "mlp") -> DictConfig:
    """Return a configuration as ``model=`` makes it; to compose each of them anew would take seconds."""
    composed = config(f"net={net_name}", *ON_SMALL_NETS[net_name]).copy()
    composed.model = OmegaConf.load(CONF / "model" / f"{model}.yaml")
    return composed


def fresh(model: str, net_name: str) -> tuple[nn.Module, Tensor]:
    """Return the net that the configuration builds, and the training samples, both in float64."""
    data = Noise(train=40, val=10, test=10, batch_size=10, seed=0, shape=SHAPES[net_name])
    torch.manual_seed(0)
    net = net_maker(config_of(model, net_name), data)()
    return net.double(), data.parts[0].x.double()


def trained(model: str, net_name: str) -> tuple[nn.Module, Tensor]:
    """Return a net after a few steps, and a batch."""
    net, x = fresh(model, net_name)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for batch in x.split(10):
        optimizer.zero_grad()
        (net(batch) - 1).square().mean().backward()
        optimizer.step()
    return net, x[:10]


def after(net: nn.Module, x: Tensor) -> Tensor:
    """Return what a copy of a net puts out: another forward pass would go on with other statistics and draws."""
    return copy.deepcopy(net)(x).detach()


def differ(one: Tensor, other: Tensor) -> bool:
    return not torch.allclose(one, other, rtol=1e-9, atol=1e-12)


def with_others(x: Tensor) -> Tensor:
    """Return a batch with the same first sample, and others."""
    return torch.cat([x[:1], x[1:] + torch.randn_like(x[1:])])


def test_both_tables_have_every_model_and_no_other():
    assert sorted(COMPUTED) == sorted(FOLLOWS) == MODELS
    assert {("in", "mlp")} == REFUSED, "the only one that the page says why of"


@EACH_NET
def test_by_the_batch(model, net_name):
    net, x = fresh(model, net_name)
    first = differ(after(net, x[:10])[0], after(net, with_others(x[:10]))[0])
    net, x = trained(model, net_name)
    later = differ(after(net, x)[0], after(net, with_others(x))[0])
    said = FOLLOWS[model]["by the batch"].split(",")[0]
    assert (first, later) == {"yes": (True, True), "no": (False, False), "first batch": (True, False)}[said]


@EACH_NET
def test_training_is_not_evaluation(model, net_name):
    net, x = trained(model, net_name)
    said = FOLLOWS[model]["training ≠ evaluation"].split(",")[0]
    assert differ(after(net.train(), x), after(net.eval(), x)) == {"yes": True, "no": False}[said]
    assert not differ(after(net, x)[0], after(net, with_others(x))[0]), "in evaluation each sample is alone"


@EACH_NET
def test_over_which_axes_statistics_are_taken(model, net_name):
    net, _ = fresh(model, net_name)
    slot = dict(norm_slots(net))["hidden1"].train()
    axes = "BC" if net_name == "mlp" else "BCHW"
    x = torch.randn(6, 8, *[4] * (len(axes) - 2), dtype=torch.float64)
    measured = set()
    for axis, letter in enumerate(axes):
        # The numbers that are in the first's place on every other axis.
        line = tuple(slice(1, None) if other == axis else 0 for other in range(len(axes)))
        changed = x.clone()
        changed[line] += torch.randn_like(changed[line])
        origin = (0,) * len(axes)
        if differ(after(slot, x)[origin], after(slot, changed)[origin]):
            measured.add(letter)
    assert measured == set(re.findall(r"\b[BCHW]\b", COMPUTED[model][COLUMNS[net_name]]))


@EACH_NET
def test_learned_parameters_by_their_names(model, net_name):
    net, _ = fresh(model, net_name)
    layer = net.get_submodule("hidden1")
    learned = [name for name, _ in dict(norm_slots(net))["hidden1"].named_parameters()]
    linear = layer.get_submodule("linear" if net_name == "mlp" else "conv")
    learned += [name for name, _ in linear.named_parameters() if name.startswith("parametrizations")]
    assert sorted(re.findall(r"`([^`]+)`", FOLLOWS[model]["learned"])) == sorted(learned)


@EACH_MODEL
def test_papers_are_those_of_the_configuration_or_of_the_class(model):
    said = set(re.findall(r"\d{4}\.\d{5}", COMPUTED[model]["paper"]))
    sources = (CONF / "model" / f"{model}.yaml").read_text()
    for part in config_of(model).model.values():
        target = get_object(part._target_) if part else None
        for documented in getattr(target, "__mro__", [target] if target else []):
            sources += (getdoc(documented) or "") + (getattr(getmodule(documented), "__doc__", "") or "")
    assert said <= set(re.findall(r"\d{4}\.\d{5}", sources))
    assert said or model == "nobn"


def test_every_number_of_a_paper_is_a_link():
    used = set(re.findall(r"\[(\d{4}\.\d{5})\](?!:)", TEXT))
    links = dict(re.findall(r"^\[(\d{4}\.\d{5})\]: (\S+)$", TEXT, re.MULTILINE))
    assert used == set(links)
    assert all(link == f"https://arxiv.org/abs/{number}" for number, link in links.items())


@pytest.mark.parametrize(
    "overrides",
    [["model=in"], ["model=gn", "net=mlp_linear"], ["model=ws_gn", "net=mlp_linear"], ["net=cnn"]],
    ids=" ".join,
)
def test_what_is_refused_in_these_words(overrides):
    with pytest.raises(ValueError, match=r"^(model: there is a|model\.norm\.num_groups|net=cnn takes)") as refusal:
        dry_run_once(config(*overrides))
    assert f"    error: {refusal.value}\n" in TEXT


@pytest.mark.parametrize("model", ["bn", "bn_formula", "bn_torch", "ghost", "brn", "noisy", "l1bn", "actnorm"])
def test_a_batch_of_one_is_refused(model):
    with pytest.raises(ValueError, match=r"hidden1\.norm .* cannot take a batch of 1"):
        dry_run_once(config(f"model={model}", "data.batch_size=1"))


def test_a_map_with_one_input_cannot_be_standardized():
    for model in ("ws", "ws_gn"):
        with pytest.raises(ValueError, match="needs at least 2 inputs"):
            dry_run_once(config(f"model={model}", "data=random", "data.in_features=1"))


@pytest.mark.parametrize("model", ["bn", "bn_formula", "bn_torch"])
def test_an_argument_is_added_to_both_parts(model):
    added = ["+model.norm.affine=false", "+model.norm2d.affine=false"]
    dry_run_once(config(f"model={model}", *added))
    for part in config(f"model={model}", "model.norm.eps=0.5", *added).model.values():
        assert part is None or (part.eps, part.affine) == (0.5, False)


def test_the_second_part_takes_over_what_stands_in_the_first():
    for model in MODELS:
        given = config_of(model).model
        if given.norm and given.norm2d:
            one, other = (set(part) - {"_target_", "_partial_"} for part in (given.norm, given.norm2d))
            assert one == other
            given.norm.update({key: 0.125 for key in one if isinstance(given.norm[key], float)})
            assert all(given.norm[key] == given.norm2d[key] for key in one)


def test_commands_of_the_page_are_composed():
    commands = [line.split() for line in re.findall(r"^    python train.py -m (.+)$", TEXT, re.MULTILINE)]
    assert len(commands) == 5
    for words in commands:
        for first in (True, False):
            # A list of values is swept: its first and its last one stand for it.
            values = [word.strip("'").partition("=") for word in words if not word.startswith("'seed")]
            chosen = [f"{key}={value.split(',')[0 if first else -1]}" for key, _, value in values]
            dry_run_once(config(*chosen))


def test_a_ghost_batch_of_the_whole_batch_is_batch_normalization_and_one_left_over_joins_the_last():
    x = torch.randn(30, 4)
    assert torch.equal(GhostBatchNorm(4, ghost_size=30)(x), BatchNorm1d(4)(x))
    layer = GhostBatchNorm(4, ghost_size=10)
    layer(x)
    assert layer.num_batches_tracked == 3
    assert [layer.left_over(size) for size in (30, 34, 31)] == [0, 4, 11]


def test_the_ramps_of_batch_renormalization_in_500_steps():
    layer = BatchRenorm(1, total_steps=500)
    r_max, d_max = zip(*(layer.limits(torch.tensor(step + 1)) for step in (20, 21, 94, 95, 154, 155)), strict=True)
    assert (r_max[0], d_max[0]) == (1, 0)
    assert r_max[1] > 1 < d_max[3]
    assert d_max[2] < 5 == d_max[3]
    assert r_max[4] < 3 == r_max[5]


def test_batch_renormalization_within_its_limits_is_evaluation_but_for_the_gradient():
    torch.manual_seed(0)
    layer = BatchRenorm(4).double()
    x = torch.randn(20, 4, dtype=torch.float64).requires_grad_()
    assert not differ(after(layer.train(), x), after(layer.eval(), x))
    assert not differ(after(layer.train(), x)[0], after(layer, with_others(x))[0])
    gradients = []
    for training in (True, False):
        (gradient,) = torch.autograd.grad(copy.deepcopy(layer).train(training)(x).pow(3).sum(), x)
        gradients.append(gradient)
    assert differ(*gradients)


def test_noise_has_a_scale_above_one_on_average_in_training_alone():
    layer = NoisyBatchNorm(400)
    _, scale = layer.noise(50, torch.float32)
    assert scale.mean().item() == pytest.approx(1.125, abs=0.02)
    assert torch.equal(layer.eval()(torch.ones(3, 400)), BatchNorm1d(400).eval()(torch.ones(3, 400)))


def test_actnorm_keeps_what_it_began_with():
    net, _ = fresh("actnorm", "mlp")
    assert {"hidden1.norm.initial_mean", "hidden1.norm.initial_var"} <= set(net.state_dict())


def signal(weight, layers: int) -> float:
    """Return the standard deviation before the activation of the last of several layers of 64 ReLUs."""
    torch.manual_seed(0)
    net = MLP((64,), 1, hidden=[64] * layers, weight=weight).requires_grad_(False)
    last = net.get_submodule(f"hidden{layers}")
    found = []
    last.linear.register_forward_hook(lambda layer, inputs, y: found.append(y.std().item()))
    net(torch.randn(1000, 64))
    return found[0]


def test_standardized_weights_alone_explode_and_scaled_ones_keep_the_signal():
    assert signal(weight_standardization, 10) == pytest.approx(8e6, rel=0.1)
    growth = signal(weight_standardization, 10) / signal(weight_standardization, 9)
    assert growth == pytest.approx(4.7, rel=0.1)
    assert signal(scaled_weight_standardization, 1) == pytest.approx(1.71, rel=0.1)
    assert signal(scaled_weight_standardization, 10) == pytest.approx(1.71, rel=0.1)


def test_weight_normalization_begins_with_the_weights_there_were():
    torch.manual_seed(0)
    layer = nn.Linear(5, 3)
    before = layer.weight.clone()
    torch.testing.assert_close(weight_normalization(layer).weight, before)


def test_what_has_running_statistics():
    sentence = TEXT.split("\n## What evaluation goes by\n\n")[1].split(" need a mean and a variance")[0]
    having = {model for model in MODELS if with_running_statistics(fresh(*first_net(model))[0])}
    assert set(re.findall(r"`(\w+)`", sentence)) == having
    assert having == {model for model in MODELS if FOLLOWS[model]["training ≠ evaluation"].startswith("yes")}


def first_net(model: str) -> tuple[str, str]:
    """Return a model with a net that takes it."""
    return model, "cnn" if (model, "mlp") in REFUSED else "mlp"


def test_reestimated_variance_is_that_of_all_samples_and_update_bn_s_is_not():
    torch.manual_seed(0)
    x = torch.randn(25, 3) * torch.linspace(1, 4, 25).unsqueeze(1)
    ours, torchs = BatchNorm1d(3), nn.BatchNorm1d(3)
    reestimate(Population([nn.Sequential(ours)]), x.unsqueeze(0).split(10, dim=1))
    torch.testing.assert_close(ours.running_mean, x.mean(0))
    torch.testing.assert_close(ours.running_var, x.var(0))
    update_bn(x.split(10), torchs)
    batches = torch.stack([part.var(0) for part in x.split(10)])
    torch.testing.assert_close(torchs.running_var, batches.mean(0))
    assert differ(torchs.running_var, ours.running_var)


def test_the_example_of_features_far_from_zero_prints_what_it_says(capsys):
    section = TEXT.split("\n## Features far from zero\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    exec(code, {})
    kernel, *ours = ([float(number) for number in line.split()] for line in capsys.readouterr().out.splitlines())
    assert kernel[0] > 1 or kernel[1] > 2
    for error, var, constant in ours:
        assert (error < 0.05, abs(var - 1) < 0.05, constant) == (True, True, 0)
