"""The fast gradient sign attack against its formula and against torch's autograd, net by net."""

import csv
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.probes.conftest import NORMS, alone, draws, make_net, make_snapshot
from torch import Tensor, nn

from normlab.population.evaluation import Classification
from normlab.probes import FastGradientSign, Measurement, TrainingSnapshot

K = 3
EPSILONS = [0.1, 0.4]


def nets_of(norm: str) -> list[nn.Module]:
    return [make_net(NORMS[norm], seed) for seed in range(K)]


def snapshot_of(nets: Sequence[nn.Module], classes: bool = True) -> TrainingSnapshot:
    snapshot = make_snapshot(nets, samples=24)
    x = draws(1, 40, 3, seed=7)
    if not classes:
        return replace(snapshot, test=(x, draws(1, 40, 2, seed=8)))
    return replace(snapshot, test=(x, (x.sum(2) > 0).long()), loss=Classification().loss)


def measure(snapshot: TrainingSnapshot, mode: str = "frozen", **options) -> Measurement:
    (measurement,) = FastGradientSign(epsilons=EPSILONS, modes=[mode], **options)(snapshot)
    return measurement


def load(net: nn.Module, snapshot: TrainingSnapshot, k: int) -> nn.Module:
    net.load_state_dict({name: tensor[k] for name, tensor in snapshot.before.items()}, strict=False)
    return net


def test_linear_regression_has_a_closed_form():
    nets = [nn.Linear(3, 1).double() for _ in range(2)]
    x, y = draws(1, 40, 3, seed=1), draws(1, 40, 1, seed=2)
    base = make_snapshot([make_net(seed=0), make_net(seed=1)])
    before = {name: torch.stack([getattr(net, name).detach() for net in nets]) for name in ("weight", "bias")}
    snapshot = replace(
        base, net=nets[0], trained=list(before), before=before, after=before, test=(x, y), folds=False
    )
    numbers = measure(snapshot).numbers

    assert set(numbers) == {"loss", "loss_eps0.1", "loss_eps0.4"}
    for k, net in enumerate(nets):
        # ∇ₓ(w·x + b − y)² = 2(w·x + b − y)w, so the residual grows by ε‖w‖₁ in absolute value.
        w, b = net.weight.detach()[0].tolist(), net.bias.item()
        residuals = [
            abs(sum(map(math.prod, zip(w, row, strict=True))) + b - t)
            for row, t in zip(x[0].tolist(), y[0, :, 0].tolist(), strict=True)
        ]
        for name, epsilon in (("loss", 0), ("loss_eps0.1", 0.1), ("loss_eps0.4", 0.4)):
            expected = sum((r + epsilon * sum(map(abs, w))) ** 2 for r in residuals) / 40
            assert numbers[name][k].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("mode", ["frozen", "batch"])
@pytest.mark.parametrize("norm", ["nobn", "bn", "bn_torch", "ln"])
def test_classification_equals_autograd_of_each_net(norm: str, mode: str):
    nets = nets_of(norm)
    snapshot = snapshot_of(nets)
    numbers = measure(snapshot, mode).numbers

    x, y = (part[0] for part in snapshot.test)
    for k, net in enumerate(nets):
        load(net, snapshot, k).train(mode == "batch")
        leaf = x.clone().requires_grad_()
        nn.functional.cross_entropy(net(leaf), y).backward()

        def scores(x: Tensor, net: nn.Module = net) -> tuple[float, float]:
            outputs = net(x)
            right = sum(int(row.argmax() == label) for row, label in zip(outputs, y, strict=True))
            return nn.functional.cross_entropy(outputs, y).item(), right / 40

        loss, acc = scores(x)
        assert (numbers["loss"][k].item(), numbers["acc"][k].item()) == pytest.approx((loss, acc))
        for epsilon in EPSILONS:
            attacked = scores(x + epsilon * leaf.grad.sign())
            got = [numbers[f"{name}_eps{epsilon}"][k].item() for name in ("loss", "acc", "acc_drop")]
            assert got == pytest.approx([*attacked, acc - attacked[1]])
            assert attacked[0] > loss


@pytest.mark.parametrize("mode", ["frozen", "batch"])
@pytest.mark.parametrize("norm", ["bn", "bn_fused", "ghost", "brn", "noisy", "dropout", "torch_dropout"])
def test_stacked_members_equal_single_members(norm: str, mode: str):
    snapshot = snapshot_of(nets_of(norm))
    together = measure(snapshot, mode).numbers

    for k in range(K):
        single = measure(replace(alone(snapshot, k), test=snapshot.test), mode).numbers
        for name, value in single.items():
            torch.testing.assert_close(together[name][k : k + 1], value)


def test_headline_is_the_lost_accuracy_or_the_loss():
    classes, regression = (measure(snapshot_of(nets_of("bn"), classes)) for classes in (True, False))

    assert list(classes.headline) == ["acc", "acc_drop_eps0.1", "acc_drop_eps0.4"]
    assert list(regression.headline) == list(regression.numbers) == ["loss", "loss_eps0.1", "loss_eps0.4"]


def test_members_with_test_splits_of_their_own():
    snapshot = snapshot_of(nets_of("bn"), classes=False)
    own = draws(K, 30, 3, seed=3), draws(K, 30, 2, seed=4)
    together = measure(replace(snapshot, test=own)).numbers

    for k in range(K):
        test = own[0][k : k + 1], own[1][k : k + 1]
        single = measure(replace(alone(snapshot, k), test=test)).numbers
        for name, value in single.items():
            torch.testing.assert_close(together[name][k : k + 1], value)


def test_double_computes_in_float64():
    snapshot = snapshot_of(nets_of("bn"))
    before = {
        name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in snapshot.before.items()
    }
    x, y = snapshot.test
    single = replace(snapshot, net=snapshot.net.float(), before=before, after=before, test=(x.float(), y))

    assert measure(single).numbers["loss"].dtype == torch.float32
    assert measure(single, double=True).numbers["loss"].dtype == torch.float64


def test_nonfinite_member_leaves_other_members_unchanged():
    snapshot = snapshot_of(nets_of("bn"))
    fine = measure(snapshot).numbers
    snapshot.before["hidden1.linear.weight"][1] = torch.nan
    for name, value in measure(snapshot).numbers.items():
        assert value[1].isnan()
        torch.testing.assert_close(value[[0, 2]], fine[name][[0, 2]])


@pytest.mark.parametrize("norm", ["bn", "brn", "torch_dropout"])
def test_measurement_changes_nothing(norm: str):
    snapshot = snapshot_of(nets_of(norm))
    before = {name: tensor.clone() for name, tensor in snapshot.before.items()}
    x, generator = snapshot.test[0].clone(), torch.get_rng_state()
    for mode in ("batch", "frozen"):
        measure(snapshot, mode)

    assert torch.equal(generator, torch.get_rng_state())
    assert torch.equal(x, snapshot.test[0])
    assert all(torch.equal(tensor, snapshot.before[name]) for name, tensor in before.items())


def test_missing_test_split_is_rejected():
    with pytest.raises(
        ValueError, match=r"data\.test must be at least 1, as the attack is on the test split, got 0"
    ):
        measure(replace(snapshot_of(nets_of("bn")), test=None))


@pytest.mark.parametrize(
    ("epsilons", "message"),
    [
        ([], "epsilons must be a list of numbers, as [0.1], got []"),
        (0.1, "epsilons must be a list of numbers, as [0.1], got 0.1"),
        ([0.1, 0.0], "epsilons must be finite numbers > 0, got 0.0"),
        (["a"], "epsilons must be finite numbers > 0, got a"),
        ([math.inf], "epsilons must be finite numbers > 0, got inf"),
        ([0.1, 0.1], "epsilons must differ in six digits, got [0.1, 0.1]"),
    ],
)
def test_impossible_epsilons_are_rejected(epsilons, message: str):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        FastGradientSign(epsilons=epsilons)


def measured(folder: str) -> dict[str, float]:
    with (Path(folder) / "probes.csv").open() as file:
        return {row["quantity"]: float(row["value"]) for row in csv.DictReader(file)}


def test_population_equals_runs_alone(run_train):
    words = ["data=wine", "probes=fgsm", "trainer.precision=64-true", "trainer.max_epochs=3", "logger=csv"]
    assert run_train("-m", *words, "seed=0,1", "hydra.sweep.dir=sweep").code == 0
    assert run_train(*words, "seed=1", "hydra.run.dir=alone").code == 0
    assert run_train(*words, "seed=1", "module=lightning", "hydra.run.dir=lightning").code == 0

    together = measured("sweep/seed=1")
    assert len(together) == 11
    record = json.loads(Path("sweep/seed=1/result.json").read_text())
    assert record["probes"]["probe/fgsm/frozen/acc_drop_eps0.1"] == together["acc_drop_eps0.1"]
    assert together != pytest.approx(measured("sweep/seed=0"))
    for folder in ("alone", "lightning"):
        assert measured(folder) == pytest.approx(together)
