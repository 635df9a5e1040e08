"""Sentences on the terminal and the page: settings, scope, early stops, disagreements, earlier records."""

import html
import json
import logging
import re

import pytest

from normlab.report import finalize_sweep
from normlab.results.result import RESULT_FILE

WINE = {"seed": 42, "generated": False, "train": 106, "val": 36, "test": 36}
"""Data summary of a run on a split of a table."""
NOT_TUNED = "at lr 0.01, not tuned: other rates may reverse it"


@pytest.fixture
def texts(tmp_path, caplog):
    """Return a function that finalizes the sweep and returns the text of the terminal and of the page."""
    caplog.set_level(logging.INFO, "normlab")

    def finalize():
        caplog.clear()
        finalize_sweep(tmp_path / "sweep")
        page = (tmp_path / "sweep/report/index.html").read_text()
        page = html.unescape(re.sub(r"<[^>]+>", " ", re.sub(r"<(svg|style|script).*?</\1>", "", page, flags=re.S)))
        return " ".join(" ".join(caplog.messages).split()), " ".join(page.split())

    return finalize


def sweep(make_run, levels, seeds=8, rates=("0.01",), **how):
    """Write runs whose final loss is the level of their model plus 0.01 per seed."""
    for model, level in levels.items():
        for seed in range(seeds):
            for lr in rates:
                end = level + 0.01 * seed
                make_run(f"model={model} optimizer.lr={lr} seed={seed}", (9.0, 8.0, end), **how)


def test_untuned_comparison_names_the_learning_rate(make_run, texts):
    sweep(make_run, {"bn": 1.0, "nobn": 2.0})
    for text in texts():
        assert "over 8 draws of the data" in text
        assert NOT_TUNED in text


def test_edge_of_the_grid_is_named_once(make_run, texts):
    for rate, more in (("0.01", 1.0), ("0.1", 0.5), ("1.0", 0.0)):
        sweep(make_run, {"bn": 1.0 + more, "ln": 1.5 + more, "nobn": 2.0 + more}, 12, rates=(rate,))
    edge = "the best optimizer.lr is at an edge of the grid: 1 (the largest) for bn, ln, nobn: extend the grid"
    for text in texts():
        assert text.count(edge) == 1
        assert text.count("extend the grid") == 1
        assert "not tuned" not in text


@pytest.mark.parametrize(
    ("how", "scope"),
    [
        ({}, "over 8 draws of the data"),
        ({"data": WINE}, "over 8 splits of this table"),
        ({"data": WINE, "replicate": "seed"}, "over 8 seeds on this split"),
    ],
)
def test_verdict_names_its_scope(make_run, texts, how, scope):
    sweep(make_run, {"bn": 1.0, "nobn": 2.0}, **how)
    for text in texts():
        assert f"p = 0.016 (look 1), {scope}" in text
        assert ("also holds for new tables like this one, p =" in text) == (scope == "over 8 splits of this table")


def test_early_stopped_runs_are_counted(make_run, texts):
    sweep(make_run, {"bn": 1.0, "nobn": 2.0}, seeds=6)
    for seed in (6, 7):
        make_run(f"model=bn optimizer.lr=0.01 seed={seed}", (9.0, 1.0), max_epochs=3)
        make_run(f"model=nobn optimizer.lr=0.01 seed={seed}", (9.0, 8.0, 2.0), max_epochs=3)
    early = "runs that stopped early, counted with the last tenth of their own epochs: 2"
    for text in texts():
        assert "over 8 draws of the data" in text
        assert f"{NOT_TUNED}; {early}" in text


@pytest.mark.parametrize(
    ("val", "best", "line"),
    [
        (
            (2.0, 1.0),
            (0.5, 0.6),
            "the final validation shows that bn is worse than nobn: val/loss ratio 2, p = 0.0078",
        ),
        (
            (1.0, 2.0),
            (0.9, 0.6),
            "the best validation epoch shows that bn is worse than nobn: val/loss ratio 1.5, p = 0.0078",
        ),
    ],
)
def test_disagreeing_validation_is_named(make_run, texts, val, best, line):
    """bn is better by the test metric; ``val`` and ``best`` are the values of bn and nobn."""
    for model, end, least, test in zip(("bn", "nobn"), val, best, (1.0, 2.0), strict=True):
        for seed in range(8):
            noise = 1 + 0.001 * seed
            final = {"val/loss": end * noise, "test/loss": test * noise}
            make_run(f"model={model} seed={seed}", (9.0, least * noise, end * noise), final=final)
    for text in texts():
        assert "bn is better than nobn: test/loss ratio 0.5" in text
        assert f"unlike test/loss, {line}" in text


def test_agreeing_validation_is_not_named(make_run, texts):
    sweep(make_run, {"bn": 1.0, "nobn": 2.0})
    assert not any("unlike" in text for text in texts())


def test_failed_trainings_are_counted_with_p_value(make_run, texts):
    """All 8 runs of nobn and none of bn are untrained: McNemar's p is 2/256, doubled at the first look."""
    for seed in range(8):
        make_run(f"model=bn seed={seed}", (1.0, 0.5, 0.2), chance=1.0)
        make_run(f"model=nobn seed={seed}", (2.0, 2.0, 1.9), chance=1.0)
    for text in texts():
        assert "bn failed to train in 0 of 8 runs, nobn in 8, p = 0.016" in text


def test_margin_and_pairs_of_the_last_command_count(make_run, texts):
    sweep(make_run, {"bn": 1.0, "ln": 1.001, "nobn": 2.0}, margin=0.05, pairs=True, baseline="ln")
    for text in texts():
        assert "no difference shown between bn and ln" not in text  # each seed has the same tiny difference
        assert "bn is better than ln: test/loss ratio 0.999" in text
        # 1/256, times 2 for the first look and 3 for the pairs.
        assert "; equivalent within 5 %, p = 0.023" in text
        assert "nobn is worse than bn" in text


def test_seconds_are_not_compared_without_timing(make_run, texts, tmp_path):
    for seed in range(8):
        make_run(f"model=bn seed={seed}", (9.0, 1.0, 1.0), seconds=10.0)
        make_run(f"model=nobn seed={seed}", (9.0, 3.0, 0.9 + 0.01 * seed), seconds=1.0)
    terminal, page = texts()
    assert "bn reaches the target in" in page
    assert "times the steps of nobn" in page
    for text in (terminal, page):
        assert "times the seconds" not in text
    assert "seconds / nobn" not in page
    assert "by seconds" not in page
    assert not list((tmp_path / "sweep/report").glob("curves_by_seconds*"))
    assert "seconds" not in terminal.partition("/sweep: table.csv")[0].rpartition(" ")[0]


class TestEarlierRecords:
    """Records of earlier versions, without ``final``, ``data`` and ``replicate``."""

    EARLIER = {"final": {}, "data": {}, "replicate": None}  # noqa: RUF012

    def test_outcomes_come_from_the_curves(self, make_run, texts):
        sweep(make_run, {"bn": 1.0, "nobn": 2.0}, **self.EARLIER)
        for text in texts():
            assert "bn is better than nobn: val/loss ratio 0.51, 95 % CI" in text
            assert "p = 0.016 (look 1), over 8 seeds on this split" in text
        # The last tenth of 3 epochs is the last epoch, with loss 1.0 + 0.01 seed: mean 1.035.
        assert "bn 8 0 0 - 1.0350 ± 0.0087 -" in texts()[0]

    def test_training_loss_can_be_compared(self, make_run, tmp_path, capsys):
        from normlab.report.__main__ import main

        sweep(make_run, {"bn": 1.0, "nobn": 2.0}, **self.EARLIER)
        main([str(tmp_path / "sweep"), "--metric", "train/loss"])
        assert "train/loss ratio 0.51" in (tmp_path / "sweep/report-metric=train_loss/index.html").read_text()

    def test_records_without_the_keys(self, make_run, texts, tmp_path):
        sweep(make_run, {"bn": 1.0, "nobn": 2.0}, **self.EARLIER)
        for path in (tmp_path / "sweep").rglob(RESULT_FILE):
            content = json.loads(path.read_text())
            for key in ("final", "data", "started", "command", "sources"):
                del content[key]
            path.write_text(json.dumps(content))
        assert "bn is better than nobn: val/loss ratio 0.51" in texts()[0]
