"""Claims from their YAML: validation, the protocol, the replaced arm, and the registration of the file."""

import subprocess

import pytest
import yaml
from tests.claims.planted import CLAIMS

from normlab.claims import AllOf, Better, Each, Interaction
from normlab.claims.claim import Claim, Registration, read_claim, read_claims
from normlab.errors import ConfigError

BETTER = {"_target_": "normlab.claims.Better", "arm": "bn", "baseline": "nobn", "metric": "test/loss"}
NODE = {
    "name": "mine",
    "statement": "BatchNorm is better.",
    "source": "Nobody 2020, arXiv:2001.00001",
    "about": "generalization",
    "protocol": "One net.",
    "criterion": BETTER,
    "power": "90 %",
    "minutes": 1,
    "replace": "bn",
    "fresh": {"data": "wine"},
    "full": {"seed": "range(1000,1100)", "net.hidden": [64, 64]},
}


@pytest.fixture
def write_claim(tmp_path):
    """Return a function that writes the YAML of a claim with some keys changed."""

    def write(**changes):
        path = tmp_path / "mine.yaml"
        path.write_text(
            yaml.safe_dump({"claim": NODE | changes, "hydra": {"sweeper": {"params": {"model": "bn,nobn"}}}})
        )
        return path

    return write


class TestValidation:
    def test_claim_and_sweep(self, write_claim):
        claim, sweep = read_claim(write_claim())
        assert claim.criterion_for("bn") == Better(arm="bn", baseline="nobn", metric="test/loss")
        assert sweep == {"params": {"model": "bn,nobn"}}

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"statment": "x"}, r"claim.statment: no such key; did you mean claim.statement\?"),
            ({"source": None}, "claim.source must be given"),
            ({"about": "everything"}, "claim.about must be one of optimization, .* got everything"),
            ({"controls": "one"}, "claim.controls must be a list, got 'one'"),
            ({"name": "other"}, "claim.name must be the name of the file, mine, got other"),
            ({"arms": ["ln"], "replace": None}, "claim.arms must be empty without claim.replace"),
            ({"criterion": {**BETTER, "marign": 1}}, "claim.criterion: .*marign"),
            ({"criterion": {"_target_": "pathlib.Path"}}, "claim.criterion must be a criterion of normlab.claims"),
        ],
    )
    def test_errors_are_one_line(self, write_claim, changes, message):
        with pytest.raises(ConfigError, match=message) as error:
            read_claim(write_claim(**changes))
        assert "\n" not in str(error.value)

    def test_file_without_a_claim(self, tmp_path):
        (tmp_path / "mine.yaml").write_text("seed: 1\n")
        with pytest.raises(ConfigError, match="must hold a claim"):
            read_claim(tmp_path / "mine.yaml")

    def test_claims_are_sorted_by_their_order(self, write_claim, tmp_path):
        (tmp_path / "zeroth.yaml").write_text(yaml.safe_dump({"claim": NODE | {"name": "zeroth", "order": 0}}))
        write_claim(order=1)
        assert list(read_claims(tmp_path)) == ["zeroth", "mine"]


class TestReplacedArm:
    def test_arm_and_baseline(self):
        node = {
            "_target_": "normlab.claims.AllOf",
            "criteria": [BETTER, {**BETTER, "arm": "gn", "baseline": "bn", "metric": "bn/loss"}],
        }
        claim = Claim.of(NODE | {"criterion": node})
        assert claim.criterion_for("ln") == AllOf(
            criteria=[
                Better(arm="ln", baseline="nobn", metric="test/loss"),
                Better(arm="gn", baseline="ln", metric="bn/loss"),
            ]
        )
        assert claim.compared_arms == {"bn", "gn", "nobn"}

    def test_list_of_arms(self):
        """The arm replaces the whole list, so that the answer is about it alone."""
        over = {"arm": ["bn", "gn"]}
        node = {"_target_": "normlab.claims.Each", "over": over, "criterion": {**BETTER, "arm": "{arm}"}}
        claim = Claim.of(NODE | {"criterion": node})
        assert claim.criterion_for("ln").over == {"arm": ["ln"]}
        assert claim.criterion_for("bn").over == over
        assert claim.compared_arms == {"bn", "gn", "{arm}", "nobn"}

    def test_model_of_the_panel_if_another_factor_is_compared(self):
        interaction = {
            "_target_": "normlab.claims.Interaction",
            "arm": "running",
            "baseline": "reestimated",
            "metric": "test/loss",
            "panel": {"net.dropout": 0.5},
            "other": {"net.dropout": 0.0},
            "above": 0.0,
        }
        node = {"_target_": "normlab.claims.Each", "over": {"data.batch_size": [4]}, "criterion": interaction}
        claim = Claim.of(NODE | {"criterion": node, "compare": "statistics"})
        expected = Interaction(
            arm="running",
            baseline="reestimated",
            metric="test/loss",
            panel={"net.dropout": 0.5, "model": "ln"},
            other={"net.dropout": 0.0, "model": "ln"},
            above=0.0,
        )
        assert claim.criterion_for("ln") == Each(over={"data.batch_size": [4]}, criterion=expected)
        assert "model" not in claim.criterion_for("bn").criterion.panel
        beside = Claim.of(NODE | {"criterion": node, "compare": "statistics", "arms": ["ln"]})
        assert beside.criterion_for("bn").criterion.panel["model"] == "bn"


class TestProtocol:
    @pytest.mark.parametrize(
        ("overrides", "expected"),
        [
            ([], ("quick", False, [])),
            (["hydra.sweep.dir='outputs/a'", "logger=csv", "trainer.threads=1"], ("quick", False, [])),
            (["seed=range(1000,1100)", "net.hidden=[64,64]"], ("full", False, [])),
            (["data=wine"], ("quick", True, [])),
            (["data=wine", "seed=range(1000,1100)", "net.hidden=[64,64]"], ("full", True, [])),
            (["data=digits"], ("quick", False, ["data=digits"])),
            (["claim.power=100 %"], ("quick", False, ["claim.power=100 %"])),
            (["seed=range(1000,1100)"], ("quick", False, ["seed=range(1000,1100)"])),
            (["hydra.sweeper.params.model=bn"], ("quick", False, ["hydra.sweeper.params.model=bn"])),
        ],
    )
    def test_deviations(self, overrides, expected):
        assert Claim.of(NODE).deviations(overrides) == expected

    def test_added_arms_are_no_deviation(self):
        claim = Claim.of(NODE | {"arms": ["mine"]})
        assert claim.deviations(["+claim.arms=[mine]", "model=bn,nobn,mine"]) == ("quick", False, [])


class TestRegistration:
    def test_commit_that_last_changed_the_file(self, write_claim):
        path = write_claim()

        def git(*words):
            identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
            return subprocess.run(
                ["git", *identity, *words], cwd=path.parent, check=True, capture_output=True, text=True
            ).stdout.strip()

        git("init", "--quiet")
        before = Registration.of(path)
        git("add", ".")
        git("commit", "--quiet", "--message", "claim")
        commit = git("rev-parse", "--short", "HEAD")
        (path.parent / "other").write_text("")
        git("add", ".")
        git("commit", "--quiet", "--message", "other")
        committed = Registration.of(path)
        write_claim(power="99 %")
        changed = Registration.of(path)
        assert (before.commit, before.modified) == (None, True)
        assert (committed.commit, committed.modified) == (commit, False)
        assert (changed.commit, changed.modified) == (commit, True)
        assert before.sha256 == committed.sha256 != changed.sha256

    def test_outside_of_git(self, write_claim):
        assert Registration.of(write_claim()).commit is None


def test_claims_of_the_repository():
    """Each file can be read, reports seeds that its design did not use, and fits on a screen."""
    claims = read_claims(CLAIMS)
    assert claims
    for name, (claim, sweep) in claims.items():
        text = (CLAIMS / f"{name}.yaml").read_text()
        assert len(text.splitlines()) <= 80, name
        seeds = [str(grid["seed"]) for grid in [sweep["params"], *sweep.get("grids", [])] if "seed" in grid]
        assert seeds, name
        assert all(seed.startswith("range(1") and len(seed.partition(",")[0]) == 10 for seed in seeds), name
        assert (claim.fresh is not None) == (claim.about == "generalization"), name
        assert claim.confounds, name
