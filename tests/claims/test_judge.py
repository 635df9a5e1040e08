"""``train.py claim=…`` as typed: the record of a claim, deviations from its protocol, and its errors."""

import json
from pathlib import Path

import pytest
import yaml

from normlab.claims.judge import read_record
from normlab.errors import ConfigError

CLAIM = """\
# @package _global_
# Does BatchNorm reach a lower training loss on wine?
defaults:
  - override /data: wine
  - override /optimizer: sgd

net: {hidden: [8]}
trainer: {max_epochs: 2}
replicate: seed

claim:
  name: tiny
  statement: BatchNorm reaches a lower training loss.
  source: "Nobody 2020, arXiv:2001.00001"
  about: optimization
  protocol: One small net.
  criterion: {_target_: normlab.claims.Better, arm: bn, baseline: nobn, metric: train_eval/loss}
  confounds: [One net.]
  power: 90 %
  minutes: 1
  replace: bn
  full: {seed: "range(1000,1016)"}

hydra:
  mode: MULTIRUN
  sweeper:
    params:
      model: bn,nobn
      seed: range(1000,1008)
"""


@pytest.fixture
def claim_file(tmp_path):
    """The YAML of a claim in a folder of the user's own, ``mine``."""
    path = tmp_path / "mine" / "claim" / "tiny.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(CLAIM)
    return path


@pytest.fixture
def judge(run_train, claim_file):
    """Return a function that trains the sweep of the claim and returns its output and record."""

    def run(*words):
        outcome = run_train("-m", "--config-dir=mine", "claim=tiny", "hydra.sweep.dir=out", "logger=csv", *words)
        assert outcome.code == 0, outcome.err
        return outcome, read_record(Path("out"))

    return run


def test_registered_protocol(judge, claim_file):
    outcome, record = judge()
    verdict = record["verdict"]
    assert f"claim tiny: {verdict['sentence']}\n" in outcome.out
    assert verdict["answer"] in ("holds", "does not hold", "undecided")
    assert (verdict["n"], verdict["parts"][0]["region"]) == (8, [None, 1.0])
    assert (record["budget"], record["fresh"], record["overrides"]) == ("quick", False, [])
    assert (record["seeds"], record["runs"]) == ("1000 to 1007", {"finished": 16})
    assert record["scope"] == "8 seeds on one dataset"
    assert record["claim"]["statement"] == "BatchNorm reaches a lower training loss."
    assert Path("out", record["report"]).is_file()
    assert record["seconds"] > 0
    assert "claim" not in json.loads(Path("out/model=bn,seed=1000/result.json").read_text())["config"]

    before = record["seconds"]
    claim_file.write_text(CLAIM.replace("One small net.", "A net of eight units."))
    outcome, record = judge()
    assert "16 runs: already done" in outcome.out or "already" in outcome.out
    assert record["claim"]["protocol"] == "A net of eight units."
    assert record["seconds"] > before


def test_other_protocols_are_marked(judge):
    outcome, record = judge("net.hidden=[4]", "seed=range(0,8)")
    assert record["overrides"] == ["net.hidden=[4]", "seed=range(0,8)"]
    assert "(not the registered protocol: net.hidden=[4], seed=range(0,8))" in outcome.out


def test_full_budget(judge):
    _, record = judge("seed=range(1000,1016)")
    assert (record["budget"], record["overrides"], record["verdict"]["n"]) == ("full", [], 16)


def test_seeds_of_the_design_are_marked(judge, claim_file):
    claim_file.write_text(CLAIM.replace("range(1000,1008)", "range(8)"))
    _, record = judge()
    assert record["overrides"] == ["seeds below 1000"]


def test_profile(judge):
    """An arm with the layers of ln has the numbers of ln up to rounding; nobn is not compared with itself."""
    (Path("mine/model")).mkdir()
    Path("mine/model/copy.yaml").write_text(Path(__file__).parents[2].joinpath("conf/model/ln.yaml").read_text())
    _, record = judge("model=bn,nobn,ln,copy", "+claim.arms=[copy,bn,ln,nobn]")
    assert list(record["profile"]) == ["bn", "copy", "ln"]
    copy, ln = (record["profile"][arm] for arm in ("copy", "ln"))
    assert copy["sentence"].replace("copy", "ln") == ln["sentence"]
    assert [copy["effect"], *copy["interval"]] == pytest.approx([ln["effect"], *ln["interval"]], rel=1e-4)
    assert record["profile"]["bn"] == record["verdict"]
    assert record["overrides"] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("_target_: normlab.claims.Better", "_target_: normlab.claims.Bettr"), "error: claim.criterion: "),
        (("about: optimization", "about: speed"), "error: claim.about must be one of optimization, "),
        (("  power: 90 %\n", ""), "error: claim.power must be given, got nothing"),
    ],
)
def test_errors_before_training(run_train, claim_file, change, message):
    claim_file.write_text(CLAIM.replace(*change))
    outcome = run_train("--config-dir=mine", "claim=tiny", "hydra.sweep.dir=out")
    assert outcome.err.startswith(message)
    assert "\n" not in outcome.err.strip()
    assert not Path("out").exists()


def test_criterion_without_its_metric(run_train, claim_file):
    claim_file.write_text(CLAIM.replace("train_eval/loss", "test/acccc"))
    outcome = run_train("--config-dir=mine", "claim=tiny", "hydra.sweep.dir=out", "logger=csv")
    assert "claim tiny could not be judged: metric must be one of loss, mse" in outcome.out
    assert not Path("out/claim.json").exists()


def test_claim_without_a_file(run_train):
    outcome = run_train("-m", "seed=0,1", f"+claim={json.dumps(yaml.safe_load(CLAIM)['claim'])}")
    assert outcome.code != 0
    assert "claim" in outcome.err


def test_damaged_record(tmp_path):
    (tmp_path / "claim.json").write_text("{")
    with pytest.raises(ConfigError, match=r"must hold the record of a claim, got .*; remove it to judge again"):
        read_record(tmp_path)
