"""A finished run is reused only while its code and data are unchanged."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig

from normlab.errors import ConfigError
from normlab.results.provenance import require_same_sources, sources_of
from normlab.results.result import Objective, Result, Status

LAYER = """
from torch import nn


class Mine(nn.Identity):
    def __init__(self, num_features: int) -> None:
        super().__init__()


def make(num_features: int) -> Mine:
    return Mine(num_features)
"""
TABLE = "a,y\n" + "".join(f"{k},{k * k}\n" for k in range(60))
SWEEP = [
    *("-m", "seed=0,1", "trainer.max_epochs=1", "logger=csv", "hydra.sweep.dir=sweep", "model=nobn"),
    *("+model.norm._target_=mine_changing.Mine", "+model.norm._partial_=true"),
    *("data=csv", "data.path=table.csv", "data.target_column=y", "data.train=30", "data.val=10", "data.test=10"),
    "data.task=regression",
]


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Write an importable file with a user's layer, and a table; yield the file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine_changing", raising=False)
    HydraConfig.instance().cfg = None
    file = tmp_path / "mine_changing.py"
    file.write_text(LAYER)
    Path("table.csv").write_text(TABLE)
    yield file
    sys.modules.pop("mine_changing", None)


def test_sources_are_user_code_and_data_files(mine):
    config = {
        "model": {"norm": {"_target_": "mine_changing.make"}, "weight": {"_target_": "normlab.norms.BatchNorm1d"}},
        "net": {"_target_": "torch.nn.Linear", "activation": {"_target_": "math.tanh"}, "word": "table"},
        "data": {"path": "table.csv", "others": ["missing.csv", "table.csv"], "name": "x" * 5000},
        "callbacks": {"extra": {"one": {"_target_": "mine_changing.Mine"}}},
    }
    found = sources_of(config | {"baseline": "table.csv"})
    assert set(found) == {"model.norm._target_", "data.path", "data.others.1"}
    assert len(found["data.path"]) == 64
    assert found["data.path"] == found["data.others.1"] != found["model.norm._target_"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "named"),
    [("mine_changing.py", "model.norm._target_=mine_changing.Mine"), ("table.csv", "data.path=table.csv")],
)
def test_changed_source_raises_unless_retrain(mine, run_train, changed, named):
    assert run_train(*SWEEP).code == 0
    results = Path("sweep/seed=0/result.json"), Path("sweep/seed=1/result.json")
    before = [path.read_text() for path in results]
    assert run_train(*SWEEP).code == 0
    assert [path.read_text() for path in results] == before, "nothing changed"

    path = Path(changed)
    path.write_text(path.read_text() + ("# a remark\n" if changed.endswith("py") else "60,3600\n"))
    outcome = run_train(*SWEEP)
    assert outcome.code == 1
    assert outcome.err.strip().endswith(
        f"sweep/seed=0 holds a result of code or data that have changed since: {named}; "
        "add retrain=true to train it again, or choose another folder"
    )
    assert [path.read_text() for path in results] == before

    assert run_train(*SWEEP, "retrain=true").code == 0
    after = [path.read_text() for path in results]
    assert all(one != other for one, other in zip(before, after, strict=True))
    assert run_train(*SWEEP).code == 0
    assert [path.read_text() for path in results] == after


def test_result_of_another_version_raises(tmp_path):
    result = Result("", Status.FINISHED, {}, {}, [], Objective("val/loss", "min", 1.0))
    require_same_sources(tmp_path, result, {})
    old = replace(result, environment={"versions": {"normlab": "0.0.1"}})
    with pytest.raises(ConfigError, match=r"normlab 0\.0\.1 \(now .*\); add retrain=true"):
        require_same_sources(tmp_path, old, {})
