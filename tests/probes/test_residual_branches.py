import math
from statistics import stdev

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from normlab.models import MLP, ResMLP
from normlab.norms import BatchNorm1d
from normlab.probes import ResidualBranches
from normlab.probes.residual_branches import branch_and_skip_std


def make(**options) -> nn.Module:
    return ResMLP((3,), 2, **({"width": 5, "blocks": 3, "norm": BatchNorm1d} | options))


def expected(net: nn.Module, x: Tensor) -> dict[str, float]:
    """Return the standard deviations from the blocks written out."""
    numbers, h = {}, net.stem(x)
    for name in ("block1", "block2", "block3"):
        block = net.get_submodule(name)
        before = block.norm_position == "before"
        inner = block.norm(h) if before else h
        branch = block.branch_scale * block.linear2(torch.relu(block.linear1(inner)))
        numbers[f"{name}/skip_std"] = stdev(h.flatten().tolist())
        numbers[f"{name}/branch_std"] = stdev(branch.flatten().tolist())
        numbers[f"{name}/branch_ratio"] = numbers[f"{name}/branch_std"] / numbers[f"{name}/skip_std"]
        h = h + branch if before else block.norm(h + branch)
    return numbers | {"branch_ratio": numbers["block3/branch_ratio"]}


@pytest.mark.parametrize("mode", ["batch", "frozen"])
@pytest.mark.parametrize("options", [{}, {"norm_position": "after"}, {"branch_scale": None, "norm": None}])
def test_members_equal_the_formula_and_runs_alone(helpers, options, mode):
    snapshot, probe = helpers.make_stepped_snapshot(lambda: make(**options), (3,)), ResidualBranches(modes=[mode])
    (measurement,) = probe(snapshot)
    assert measurement.headline == ("branch_ratio",)
    for k in range(3):
        net = make(**options).double().train(mode == "batch")
        net.load_state_dict({name: tensor[k] for name, tensor in snapshot.before.items()})
        numbers = expected(net, snapshot.data("train")[0][k])
        assert set(measurement.numbers) == set(numbers)
        for name, value in numbers.items():
            assert measurement.numbers[name][k].item() == pytest.approx(value, rel=1e-9)
        (single,) = probe(helpers.alone(snapshot, k))
        for name, values in single.numbers.items():
            assert_close(values, measurement.numbers[name][k : k + 1])


def test_skipinit_starts_as_the_identity_and_learns(helpers):
    snapshot = helpers.make_stepped_snapshot(lambda: make(branch_scale="skipinit", norm=None), (3,))
    (measurement,) = ResidualBranches()(snapshot)
    assert measurement.numbers["branch_ratio"].tolist() == [0.0] * 3
    changed = {name: tensor + 0.5 * name.endswith("branch_scale") for name, tensor in snapshot.before.items()}
    (measurement,) = ResidualBranches()(snapshot.__class__(**(vars(snapshot) | {"before": changed})))
    net = make(branch_scale="skipinit", norm=None).double()
    net.load_state_dict({name: tensor[1] for name, tensor in changed.items()})
    value = expected(net, snapshot.data("train")[0][1])["branch_ratio"]
    assert measurement.numbers["branch_ratio"][1].item() == pytest.approx(value, rel=1e-9)


def test_batch_norm_makes_the_ratio_fall_as_the_root_of_the_depth():
    # A linear branch of a normalized stream has variance 1, and so the stream before block l has variance l.
    torch.manual_seed(0)
    options = {"width": 256, "blocks": 16, "activation": "identity", "branch_scale": None, "norm": BatchNorm1d}
    net = ResMLP((256,), 2, **options).double()
    for linear in (module for module in net.modules() if isinstance(module, nn.Linear)):
        nn.init.normal_(linear.weight, std=1 / math.sqrt(linear.in_features))
        nn.init.zeros_(linear.bias)
    with torch.no_grad():
        numbers = branch_and_skip_std(net, torch.randn(512, 256, dtype=torch.float64))
    ratios = [numbers[f"block{n}/branch_std"] / numbers[f"block{n}/skip_std"] for n in range(1, 17)]
    for n, ratio in enumerate(ratios, start=1):
        assert ratio.item() == pytest.approx(1 / math.sqrt(n), rel=0.1)


def test_net_without_blocks_yields_nothing(helpers):
    snapshot = helpers.make_stepped_snapshot(lambda: MLP((3,), 2, hidden=[6]), (3,))
    assert list(ResidualBranches()(snapshot)) == []
