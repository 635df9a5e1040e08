"""Verdicts on claims about scale invariance and normalizers without statistics, in sweeps with a planted truth."""

import pytest
from tests.claims.planted import PlantedSweep, load_criterion

from normlab.claims import Answer

HOLDS, FAILS = Answer.HOLDS, Answer.FAILS


@pytest.mark.parametrize(
    ("differing", "without_norm", "answer"),
    [((), 0.4, HOLDS), (("ln",), 0.4, FAILS), ((), 1.0, FAILS)],
    ids=["holds", "ln differs", "also without a normalizer"],
)
def test_wd_is_lr(differing, without_norm, answer):
    def loss(metric, arm, panel):
        ratio = {"nobn": without_norm}.get(panel["model"], 1.01 if panel["model"] in differing else 1.0)
        return 0.2 * (ratio if arm == "exponential" else 1.0)

    assert load_criterion("wd_is_lr")(PlantedSweep(loss, n=12, scatter=1e-9)).answer == answer


@pytest.mark.parametrize(
    ("settled", "answer"),
    [(lambda layer, lr: 1.0, HOLDS), (lambda layer, lr: 1.3 if (layer, lr) == ("hidden2", 0.03) else 1.0, FAILS)],
    ids=["holds", "another angle of one layer at one rate"],
)
def test_equilibrium(settled, answer):
    def angle(metric, arm, panel):
        return settled(metric.split("/")[4].removesuffix(".linear"), panel["optimizer.lr"])

    assert load_criterion("equilibrium")(PlantedSweep(angle, n=16)).answer == answer


@pytest.mark.parametrize(
    ("power", "skipinit", "answer"),
    [(-0.5, 0.97, HOLDS), (-0.2, 0.97, FAILS), (-0.5, 0.92, FAILS)],
    ids=["holds", "another slope", "SkipInit is worse"],
)
def test_identity(power, skipinit, answer):
    def value(metric, arm, panel):
        if metric == "test/acc":
            return skipinit if "skipinit" in arm else 0.97
        return panel["net.blocks"] ** power

    assert load_criterion("identity")(PlantedSweep(value, scatter=0.004, rows=(1080, 357))).answer == answer


@pytest.mark.parametrize("claim", ["rms_is_ln", "dyt_match"])
@pytest.mark.parametrize(
    ("accuracy", "loss", "answer"), [(0.976, 0.2, HOLDS), (0.94, 0.2, FAILS), (0.976, 0.26, FAILS)]
)
def test_as_good_as_layer_norm(claim, accuracy, loss, answer):
    def value(metric, arm, panel):
        ours = arm in ("rms", "dyt")
        return (accuracy if ours else 0.977) if metric == "test/acc" else (loss if ours else 0.2)

    assert load_criterion(claim)(PlantedSweep(value, n=36, scatter=0.004)).answer == answer


@pytest.mark.parametrize(("small", "large", "answer"), [(0.8, 1.2, HOLDS), (0.8, 0.9, FAILS), (1.1, 1.2, FAILS)])
def test_dyt_size(small, large, answer):
    def loss(metric, arm, panel):
        return (small if panel["data.train"] == 100 else large) if arm == "dyt" else 1.0

    assert load_criterion("dyt_size")(PlantedSweep(loss, n=16)).answer == answer
