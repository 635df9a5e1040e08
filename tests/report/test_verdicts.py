"""``verdicts.json``: the number of looks, the settings fixed at the first verdict, and ``max_replicates``."""

import json
import logging

import pytest

from normlab.report import finalize_sweep
from normlab.report.__main__ import main
from normlab.report.report_data import VERDICTS_FILE
from normlab.results.folder import SWEEP_CONFIG


@pytest.fixture
def add_runs(make_run):
    """Return a function that writes runs of bn and nobn for the given seeds; bn is better."""

    def runs(seeds, rates=("0.01",), **how):
        for seed in seeds:
            for lr in rates:
                for model, level in (("bn", 1.0), ("nobn", 2.0)):
                    loss = level + 0.01 * (seed % 5) + 0.2 * (lr != "0.01")
                    make_run(f"model={model} optimizer.lr={lr} seed={seed}", (5.0, 4.0, loss), **how)

    return runs


@pytest.fixture
def finalize(tmp_path, caplog):
    """Return a function that finalizes the sweep and returns its log in one line."""
    caplog.set_level(logging.INFO, "normlab")

    def run():
        caplog.clear()
        finalize_sweep(tmp_path / "sweep")
        return " ".join(" ".join(caplog.messages).split())

    return run


@pytest.fixture
def verdicts(tmp_path):
    return lambda: json.loads((tmp_path / "sweep" / VERDICTS_FILE).read_text())


def test_file_is_written_at_the_first_verdict(add_runs, finalize, verdicts, tmp_path):
    add_runs(range(6))
    assert "too few replicates" in finalize()
    assert not (tmp_path / "sweep" / VERDICTS_FILE).exists()
    add_runs(range(6, 7))
    assert "p = 0.031 (look 1)" in finalize()  # 2 · 2/128
    assert verdicts() == {
        "max_replicates": None,
        "tuning_seeds": None,
        "settings": [{"panel": [], "arm": arm, "settings": [[]]} for arm in ("bn", "nobn")],
        "looks": [{"comparison": ["model", "bn", "nobn", ""], "replicates": [list(range(7))]}],
    }


def test_added_seeds_are_another_look(add_runs, finalize, verdicts, tmp_path):
    add_runs(range(8))
    finalize()
    first = verdicts()
    again = finalize()
    assert "p = 0.016 (look 1)" in again  # 2 · 2/256
    assert verdicts() == first
    add_runs(range(8, 12))
    output = finalize()
    assert "p = 0.0029 (look 2), over 12 draws of the data" in output  # 6 · 2/4096
    assert verdicts()["looks"][0]["replicates"] == [list(range(8)), list(range(12))]
    page = (tmp_path / "sweep/report/index.html").read_text()
    assert "looks at these comparisons: 2; settings were fixed at the first look" in page


def test_report_command_counts_a_look(add_runs, verdicts, tmp_path):
    add_runs(range(8))
    main([str(tmp_path / "sweep")])
    assert verdicts()["looks"][0]["replicates"] == [list(range(8))]


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "options", [["--pairs"], ["--margin", "0.05"], ["--metric", "val/loss"], ["--baseline", "bn"]], ids=str
)
def test_report_with_options_counts_no_look(add_runs, finalize, tmp_path, options):
    add_runs(range(8))
    main([str(tmp_path / "sweep"), *options])
    assert not (tmp_path / "sweep" / VERDICTS_FILE).exists()
    finalize()
    before = (tmp_path / "sweep" / VERDICTS_FILE).read_text()
    add_runs(range(8, 9))
    main([str(tmp_path / "sweep"), *options])
    assert (tmp_path / "sweep" / VERDICTS_FILE).read_text() == before


def test_first_verdict_fixes_tuning_seeds_and_settings(add_runs, finalize, verdicts):
    """A new analysis of 24 seeds would tune on 8, but the 4 tuning seeds and their learning rate stay fixed."""
    add_runs(range(12), ("0.01", "0.1"))
    assert "at lr 0.01, chosen on 4 other seeds" in finalize()
    assert verdicts()["tuning_seeds"] == [0, 1, 2, 3]
    assert {tuple(arm["settings"][0]) for arm in verdicts()["settings"]} == {("0.01",)}
    add_runs(range(12), ("0.001",), final={"val/loss": 0.1, "test/loss": 0.1, "train_eval/loss": 0.1})
    add_runs(range(12, 24), ("0.01", "0.1"))
    output = finalize()
    assert "(look 2), over 20 draws of the data" in output
    assert "; at lr 0.01, chosen on 4 other seeds" in output
    # The added learning rate is better, so it counts as a near-best setting of nobn.
    assert "near-best settings of nobn are not shown to be worse" in output


def test_damaged_file_raises_and_changes_nothing(add_runs, finalize, tmp_path):
    add_runs(range(8))
    finalize()
    folder = tmp_path / "sweep"
    (folder / VERDICTS_FILE).write_text('{"looks": ')
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as end:
        main([str(folder)])
    assert str(end.value.code).startswith(
        f"error: {folder / VERDICTS_FILE} must hold the earlier verdicts, got JSONDecodeError"
    )
    assert str(end.value.code).endswith("; restore it, or remove it to count looks from 1 again")
    assert "\n" not in str(end.value.code)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("content", ["[]", "{}", '{"max_replicates": 3}', '{"tuning_seeds": [0], "looks": 1}'])
def test_malformed_content_raises(add_runs, tmp_path, content):
    add_runs(range(2))
    (tmp_path / "sweep" / VERDICTS_FILE).write_text(content)
    with pytest.raises(SystemExit, match="must hold the earlier verdicts, got"):
        main([str(tmp_path / "sweep")])


class TestMaximum:
    """``max_replicates``, with the boundaries of O'Brien and Fleming."""

    def test_full_level_is_spent_at_the_maximum(self, add_runs, finalize, verdicts):
        add_runs(range(8), max_replicates=8)
        assert "p = 0.0078 (look 1)" in finalize()  # the full level is spent at the maximum: p is 2/256
        assert verdicts()["max_replicates"] == 8

    def test_no_verdict_beyond_the_maximum(self, add_runs, finalize, tmp_path):
        add_runs(range(8), max_replicates=8)
        finalize()
        add_runs(range(8, 9), max_replicates=8)
        output = finalize()
        assert "no verdict beyond max_replicates for bn against nobn; test/loss ratio" in output
        page = (tmp_path / "sweep/report/index.html").read_text()
        assert "max_replicates=8 was declared at the first verdict: no verdict with more replicates" in page

    def test_changed_maximum_warns(self, add_runs, finalize, tmp_path):
        add_runs(range(8), max_replicates=12)
        assert "has no effect" not in finalize()
        add_runs(range(8, 9), max_replicates=20)
        warning = "max_replicates=20 has no effect: max_replicates=12 was declared first"
        assert warning in finalize()
        assert warning in (tmp_path / "sweep/report/index.html").read_text()

    def test_maximum_without_new_runs_warns(self, add_runs, finalize, tmp_path):
        add_runs(range(8))
        finalize()
        (tmp_path / "sweep" / SWEEP_CONFIG).write_text("max_replicates: 20\n")
        assert "max_replicates=20 has no effect: the first verdict was given without a maximum" in finalize()

    def test_maximum_can_be_declared_before_any_verdict(self, add_runs, finalize, verdicts, tmp_path):
        add_runs(range(6), started="2026-01-01")
        finalize()
        add_runs(range(6, 8), max_replicates=8, started="2026-01-02")
        output = finalize()
        assert "p = 0.0078 (look 1)" in output
        assert "has no effect" not in output
        assert verdicts()["max_replicates"] == 8
