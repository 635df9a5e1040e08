"""Check the tables and statements of docs/normalizers.md on the nets that ``conf/`` builds."""

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

from normlab.config.frozen import FrozenConfig
from normlab.config.validation import validate
from normlab.data import InMemoryData, Table
from normlab.models import MLP
from normlab.models.layer_lookup import norm_slots, running_statistics
from normlab.norms import (
    BatchNorm1d,
    BatchRenorm,
    GhostBatchNorm,
    NoisyBatchNorm,
    scaled_weight_standardization,
    weight_normalization,
    weight_standardization,
)
from normlab.population.evaluation import reestimate
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
    """Return the first table below a heading, by row name (first cell) and column."""
    section = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert all(len(row) == len(header) for row in rows)
    named_rows = [(row[0].strip("`"), dict(zip(header[1:], row[1:], strict=True))) for row in rows]
    assert len(dict(named_rows)) == len(named_rows), "a model has two rows"
    return dict(named_rows)


EQUATIONS, PROPERTIES = table("Equations"), table("Properties")
REFUSED = {
    (model, net) for net, column in COLUMNS.items() for model in EQUATIONS if EQUATIONS[model][column] == "refused"
}
EACH_NET = pytest.mark.parametrize(
    ("model", "net_name"), [pair for pair in product(MODELS, SHAPES) if pair not in REFUSED]
)


@dataclass(kw_only=True, eq=False)
class Noise(InMemoryData):
    """Random inputs of one shape with mean 1 and standard deviation 3."""

    shape: tuple[int, ...]

    def table(self) -> Table:
        generator = torch.Generator().manual_seed(self.seed)
        x = 1 + 3 * torch.randn(60, *self.shape, generator=generator)
        return Table(x, torch.randn(60, 1, generator=generator))


@cache
def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=list(overrides))


def config(*overrides: str) -> FrozenConfig:
    return validate(composed(*overrides))


def config_of(model: str, net_name: str = "mlp") -> FrozenConfig:
    """Return the configuration of a model."""
    return validate(unresolved_config_of(model, net_name))


def unresolved_config_of(model: str, net_name: str = "mlp") -> DictConfig:
    """Return the configuration of a model as it is composed; composing each with Hydra would take seconds."""
    config = composed(f"net={net_name}", *ON_SMALL_NETS[net_name]).copy()
    config.model = OmegaConf.load(CONF / "model" / f"{model}.yaml")
    return config


def build_untrained(model: str, net_name: str) -> tuple[nn.Module, Tensor]:
    """Return the net of the configuration and the training samples, both in float64."""
    data = Noise(train=40, val=10, test=10, batch_size=10, seed=0, shape=SHAPES[net_name])
    torch.manual_seed(0)
    net = net_maker(config_of(model, net_name), data)()
    return net.double(), data.parts[0].x.double()


def build_trained(model: str, net_name: str) -> tuple[nn.Module, Tensor]:
    """Return a net after a few optimizer steps, and a batch."""
    net, x = build_untrained(model, net_name)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for batch in x.split(10):
        optimizer.zero_grad()
        (net(batch) - 1).square().mean().backward()
        optimizer.step()
    return net, x[:10]


def output_of(net: nn.Module, x: Tensor) -> Tensor:
    """Return the output of a copy of a net, whose own statistics and random numbers stay unchanged."""
    return copy.deepcopy(net)(x).detach()


def differ(one: Tensor, other: Tensor) -> bool:
    return not torch.allclose(one, other, rtol=1e-9, atol=1e-12)


def replace_other_samples(x: Tensor) -> Tensor:
    """Return a batch with the same first sample and other samples."""
    return torch.cat([x[:1], x[1:] + torch.randn_like(x[1:])])


def test_tables_list_every_model():
    assert sorted(EQUATIONS) == sorted(PROPERTIES) == MODELS
    assert {("in", "mlp")} == REFUSED, "the page explains only this refusal"


@EACH_NET
def test_dependence_on_batch(model, net_name):
    net, x = build_untrained(model, net_name)
    first = differ(output_of(net, x[:10])[0], output_of(net, replace_other_samples(x[:10]))[0])
    net, x = build_trained(model, net_name)
    later = differ(output_of(net, x)[0], output_of(net, replace_other_samples(x))[0])
    stated = PROPERTIES[model]["depends on batch"].split(",")[0]
    assert (first, later) == {"yes": (True, True), "no": (False, False), "first batch": (True, False)}[stated]


@EACH_NET
def test_difference_between_training_and_evaluation(model, net_name):
    net, x = build_trained(model, net_name)
    stated = PROPERTIES[model]["training ≠ evaluation"].split(",")[0]
    assert differ(output_of(net.train(), x), output_of(net.eval(), x)) == {"yes": True, "no": False}[stated]
    assert not differ(output_of(net, x)[0], output_of(net, replace_other_samples(x))[0]), (
        "evaluation is per sample"
    )


@EACH_NET
def test_axes_of_statistics(model, net_name):
    net, _ = build_untrained(model, net_name)
    slot = dict(norm_slots(net))["hidden1"].train()
    axes = "BC" if net_name == "mlp" else "BCHW"
    x = torch.randn(6, 8, *[4] * (len(axes) - 2), dtype=torch.float64)
    measured = set()
    for axis, letter in enumerate(axes):
        # All entries along this axis but the first, at index 0 of the other axes.
        line = tuple(slice(1, None) if other == axis else 0 for other in range(len(axes)))
        changed = x.clone()
        changed[line] += torch.randn_like(changed[line])
        origin = (0,) * len(axes)
        if differ(output_of(slot, x)[origin], output_of(slot, changed)[origin]):
            measured.add(letter)
    assert measured == set(re.findall(r"\b[BCHW]\b", EQUATIONS[model][COLUMNS[net_name]]))


@EACH_NET
def test_names_of_learned_parameters(model, net_name):
    net, _ = build_untrained(model, net_name)
    layer = net.get_submodule("hidden1")
    learned = [name for name, _ in dict(norm_slots(net))["hidden1"].named_parameters()]
    linear = layer.get_submodule("linear" if net_name == "mlp" else "conv")
    learned += [name for name, _ in linear.named_parameters() if name.startswith("parametrizations")]
    assert sorted(re.findall(r"`([^`]+)`", PROPERTIES[model]["learned"])) == sorted(learned)


@EACH_MODEL
def test_papers_are_cited_in_config_or_class(model):
    cited = set(re.findall(r"\d{4}\.\d{5}", EQUATIONS[model]["paper"]))
    sources = (CONF / "model" / f"{model}.yaml").read_text()
    for part in config_of(model).model.values():
        target = get_object(part._target_) if part else None
        for documented in getattr(target, "__mro__", [target] if target else []):
            sources += (getdoc(documented) or "") + (getattr(getmodule(documented), "__doc__", "") or "")
    assert cited <= set(re.findall(r"\d{4}\.\d{5}", sources))
    assert cited or model == "nobn"


def test_papers_are_linked():
    used = set(re.findall(r"\[(\d{4}\.\d{5})\](?!:)", TEXT))
    links = dict(re.findall(r"^\[(\d{4}\.\d{5})\]: (\S+)$", TEXT, re.MULTILINE))
    assert used == set(links)
    assert all(link == f"https://arxiv.org/abs/{number}" for number, link in links.items())


@pytest.mark.parametrize(
    "overrides",
    [["model=in"], ["model=gn", "net=mlp_linear"], ["model=ws_gn", "net=mlp_linear"], ["net=cnn"]],
    ids=" ".join,
)
def test_error_messages_of_invalid_combinations(overrides):
    with pytest.raises(ValueError, match=r"^(model: there is a|model\.norm\.num_groups|net=cnn takes)") as refusal:
        dry_run_once(config(*overrides))
    assert f"    error: {refusal.value}\n" in TEXT


@pytest.mark.parametrize("model", ["bn", "bn_formula", "bn_torch", "ghost", "brn", "noisy", "l1bn", "actnorm"])
def test_batch_of_one_raises(model):
    with pytest.raises(ValueError, match=r"hidden1\.norm .* cannot take a batch of 1"):
        dry_run_once(config(f"model={model}", "data.batch_size=1"))


def test_standardizing_one_input_raises():
    for model in ("ws", "ws_gn"):
        with pytest.raises(ValueError, match="needs at least 2 inputs"):
            dry_run_once(config(f"model={model}", "data=random", "data.in_features=1"))


@pytest.mark.parametrize("model", ["bn", "bn_formula", "bn_torch"])
def test_added_argument_reaches_both_parts(model):
    added = ["+model.norm.affine=false", "+model.norm2d.affine=false"]
    dry_run_once(config(f"model={model}", *added))
    for part in config(f"model={model}", "model.norm.eps=0.5", *added).model.values():
        assert part is None or (part.eps, part.affine) == (0.5, False)


def test_norm2d_inherits_values_of_norm():
    for model in MODELS:
        parts = unresolved_config_of(model).model
        if parts.norm and parts.norm2d:
            keys, keys_2d = (set(part) - {"_target_", "_partial_"} for part in (parts.norm, parts.norm2d))
            assert keys == keys_2d
            parts.norm.update({key: 0.125 for key in keys if isinstance(parts.norm[key], float)})
            assert all(parts.norm[key] == parts.norm2d[key] for key in keys)


def test_commands_compose():
    commands = [line.split() for line in re.findall(r"^    python train.py -m (.+)$", TEXT, re.MULTILINE)]
    assert len(commands) == 5
    for words in commands:
        for first in (True, False):
            # Of swept values, the first and the last are tested.
            values = [word.strip("'").partition("=") for word in words if not word.startswith("'seed")]
            chosen = [f"{key}={value.split(',')[0 if first else -1]}" for key, _, value in values]
            dry_run_once(config(*chosen))


def test_ghost_batch_sizes():
    x = torch.randn(30, 4)
    assert torch.equal(GhostBatchNorm(4, ghost_size=30)(x), BatchNorm1d(4)(x))
    layer = GhostBatchNorm(4, ghost_size=10)
    layer(x)
    assert layer.num_batches_tracked == 3
    assert [layer.left_over(size) for size in (30, 34, 31)] == [0, 4, 11]


def test_batch_renormalization_limits_in_500_steps():
    layer = BatchRenorm(1, total_steps=500)
    r_max, d_max = zip(*(layer.limits(torch.tensor(step + 1)) for step in (20, 21, 94, 95, 154, 155)), strict=True)
    assert (r_max[0], d_max[0]) == (1, 0)
    assert r_max[1] > 1 < d_max[3]
    assert d_max[2] < 5 == d_max[3]
    assert r_max[4] < 3 == r_max[5]


def test_unclipped_batch_renormalization_equals_evaluation():
    torch.manual_seed(0)
    layer = BatchRenorm(4).double()
    x = torch.randn(20, 4, dtype=torch.float64).requires_grad_()
    assert not differ(output_of(layer.train(), x), output_of(layer.eval(), x))
    assert not differ(output_of(layer.train(), x)[0], output_of(layer, replace_other_samples(x))[0])
    gradients = []
    for training in (True, False):
        (gradient,) = torch.autograd.grad(copy.deepcopy(layer).train(training)(x).pow(3).sum(), x)
        gradients.append(gradient)
    assert differ(*gradients)


def test_mean_noise_scale_in_training():
    layer = NoisyBatchNorm(400)
    _, scale = layer.noise(50, torch.float32)
    assert scale.mean().item() == pytest.approx(1.125, abs=0.02)
    assert torch.equal(layer.eval()(torch.ones(3, 400)), BatchNorm1d(400).eval()(torch.ones(3, 400)))


def test_actnorm_state_has_initial_statistics():
    net, _ = build_untrained("actnorm", "mlp")
    assert {"hidden1.norm.initial_mean", "hidden1.norm.initial_var"} <= set(net.state_dict())


def signal(weight, layers: int) -> float:
    """Return the standard deviation of the last preactivations in a net of layers with 64 ReLUs."""
    torch.manual_seed(0)
    net = MLP((64,), 1, hidden=[64] * layers, weight=weight).requires_grad_(False)
    last = net.get_submodule(f"hidden{layers}")
    spreads = []
    last.linear.register_forward_hook(lambda layer, inputs, y: spreads.append(y.std().item()))
    net(torch.randn(1000, 64))
    return spreads[0]


def test_signal_growth_with_standardized_weights():
    assert signal(weight_standardization, 10) == pytest.approx(8e6, rel=0.1)
    growth = signal(weight_standardization, 10) / signal(weight_standardization, 9)
    assert growth == pytest.approx(4.7, rel=0.1)
    assert signal(scaled_weight_standardization, 1) == pytest.approx(1.71, rel=0.1)
    assert signal(scaled_weight_standardization, 10) == pytest.approx(1.71, rel=0.1)


def test_weight_normalization_keeps_initial_weights():
    torch.manual_seed(0)
    layer = nn.Linear(5, 3)
    before = layer.weight.clone()
    torch.testing.assert_close(weight_normalization(layer).weight, before)


def test_models_with_running_statistics():
    sentence = TEXT.split("\n## Statistics in evaluation\n\n")[1].split(" need a mean and a variance")[0]
    models = {model for model in MODELS if running_statistics(build_untrained(*model_and_net(model))[0])}
    assert set(re.findall(r"`(\w+)`", sentence)) == models
    assert models == {model for model in MODELS if PROPERTIES[model]["training ≠ evaluation"].startswith("yes")}


def model_and_net(model: str) -> tuple[str, str]:
    """Return a model and a net that accepts it."""
    return model, "cnn" if (model, "mlp") in REFUSED else "mlp"


def test_reestimated_variance_differs_from_update_bn():
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


def test_example_output_matches_page(capsys):
    section = TEXT.split("\n## Features far from zero\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    exec(code, {})
    kernel, *ours = ([float(number) for number in line.split()] for line in capsys.readouterr().out.splitlines())
    assert kernel[0] > 1 or kernel[1] > 2
    for error, var, constant in ours:
        assert (error < 0.05, abs(var - 1) < 0.05, constant) == (True, True, 0)
