"""The sweeps of claims: their commands, the arms of a profile, and ``normlab claims`` as typed."""

import pytest
from tests.claims.test_claim import NODE

from normlab.claims.claim import Claim
from normlab.claims.runner import jobs_of, with_arms


@pytest.fixture
def claim():
    """A claim about generalization, with bn as the arm that can be replaced."""
    return Claim.of(NODE)


def commands(claim, tmp_path, budget="quick", arm=None):
    """Return the words of each sweep, with the folder left out."""
    jobs = jobs_of(claim, tmp_path / "mine.yaml", {"params": {"model": "bn,nobn"}}, tmp_path, budget, arm)
    return {job.name: job.words[2:-1] for job in jobs}


def test_sweeps_of_a_claim(claim, tmp_path):
    assert commands(claim, tmp_path) == {"mine": [], "mine-fresh": ["data=wine"]}
    full = ["seed=range(1000,1100)", "net.hidden=[64,64]"]
    assert commands(claim, tmp_path, "full") == {"mine": full, "mine-fresh": [*full, "data=wine"]}


def test_profile_is_one_sweep(claim, tmp_path):
    words = ["+claim.arms=[mine,bn,ln,rms,nobn]", "model=bn,nobn,mine,ln,rms"]
    assert commands(claim, tmp_path, arm="mine") == {"mine": words}


def test_arms_of_grids(claim):
    """The arms are added where the replaceable one is; settings of the other grids stay."""
    grids = [{"model": "bn", "optimizer.lr": "0.1,1.0"}, {"model": "nobn", "net.hidden": "[8],[8,8]"}]
    words = with_arms(claim, {"grids": grids, "params": {"seed": "range(4)"}}, "mine")
    assert words[1] == (
        'hydra.sweeper.grids=[{model:"bn,mine,ln,rms,nobn",optimizer.lr:"0.1,1.0"},{model:"nobn",net.hidden:"[8],[8,8]"}]'
    )


def test_single_model(claim):
    assert with_arms(claim, {"params": {"statistics": "running,batch"}}, "mine")[1] == "model=bn,mine,ln,rms,nobn"
