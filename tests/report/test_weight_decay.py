"""The report states which parameters had weight decay."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from normlab.report.weight_decay import weight_decay_texts

MUON = {"match": ["hidden"], "_target_": "torch.optim.Muon", "weight_decay": 0.2}


def texts(*nodes: dict) -> list[str]:
    return weight_decay_texts([SimpleNamespace(config={"optimizer": node}) for node in nodes])


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([{}], []),
        ([{"weight_decay": 0.0}], []),
        ([{"weight_decay": 0.0, "no_decay": ["norm"]}], []),
        ([{"weight_decay": 0.01}], ["weight decay 0.01 of all parameters"]),
        (
            [{"weight_decay": 0.01, "no_decay": ["norm", "bias"]}] * 2,
            ["weight decay 0.01 of all parameters except those of normalizers and biases"],
        ),
        (
            [{"weight_decay": 0.01, "no_decay": ["scale_dependent"]}],
            ["weight decay 0.01 of all parameters except those that are not scale-invariant"],
        ),
        ([{"no_decay": ["bias"]}], ["weight decay by default of all parameters except biases"]),
        ([{"weight_decay": 0.0}, {"weight_decay": 1.0}], ["no weight decay", "weight decay 1 of all parameters"]),
        (
            [{"weight_decay": 0.1, "no_decay": ["bias"], "groups": {"muon": MUON}}],
            [
                "weight decay 0.1 of all parameters except biases and hidden weight matrices; "
                "weight decay 0.2 of hidden weight matrices except biases"
            ],
        ),
        (
            [{"weight_decay": 0.1, "groups": {"slow": {"match": ["norm"], "lr": 0.1}}}],
            [
                "weight decay 0.1 of all parameters except those of normalizers; "
                "weight decay 0.1 of those of normalizers"
            ],
        ),
    ],
)
def test_texts(nodes, expected):
    assert texts(*nodes) == expected


def test_page(run_train):
    words = ["optimizer=adamw", "optimizer.no_decay=[norm,bias]", "trainer.max_epochs=1", "logger=csv"]
    outcome = run_train("-m", "model=bn,nobn", "seed=0,1", *words, "hydra.sweep.dir=sweep")
    assert outcome.code == 0, outcome.err
    page = Path("sweep/report/index.html").read_text().replace("\u00a0", " ")
    text = "weight decay 0.01 of all parameters except those of normalizers and biases"
    setup, conditions = page.split("In all comparisons:")
    assert text in setup
    assert text in conditions.partition("</p>")[0]
