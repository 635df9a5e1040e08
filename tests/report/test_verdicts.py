"""``verdicts.json``: looks that are counted, what the first verdict fixes, and the declared maximum."""

import json
import logging

import pytest

from normlab.report.__main__ import main
from normlab.report.finalize import close_sweep
from normlab.report.report_data import VERDICTS_FILE
from normlab.results.folder import SWEEP_CONFIG


@pytest.fixture
def add(make_run):
    """Return a function that adds runs of bn and nobn with some seeds, bn better."""

    def runs(seeds, rates=("0.01",), **how):
        for seed in seeds:
            for lr in rates:
                for model, level in (("bn", 1.0), ("nobn", 2.0)):
                    loss = level + 0.01 * (seed % 5) + 0.2 * (lr != "0.01")
                    make_run(f"model={model} optimizer.lr={lr} seed={seed}", (5.0, 4.0, loss), **how)

    return runs


@pytest.fixture
def close(tmp_path, caplog):
    """Return a function that closes the sweep, and returns what is printed in one line."""
    caplog.set_level(logging.INFO, "normlab")

    def said():
        caplog.clear()
        close_sweep(tmp_path / "sweep")
        return " ".join(" ".join(caplog.messages).split())

    return said


@pytest.fixture
def verdicts(tmp_path):
    return lambda: json.loads((tmp_path / "sweep" / VERDICTS_FILE).read_text())


def test_it_is_written_at_the_first_verdict(add, close, verdicts, tmp_path):
    add(range(6))
    assert "too few replicates" in close()
    assert not (tmp_path / "sweep" / VERDICTS_FILE).exists()
    add(range(6, 7))
    assert "p = 0.031 (look 1)" in close()  # 2 · 2/128
    assert verdicts() == {
        "max_replicates": None,
        "tuning_seeds": None,
        "settings": [{"panel": [], "arm": arm, "settings": [[]]} for arm in ("bn", "nobn")],
        "looks": [{"comparison": ["model", "bn", "nobn", ""], "replicates": [list(range(7))]}],
    }


def test_added_seeds_are_another_look_and_the_same_records_are_none(add, close, verdicts, tmp_path):
    add(range(8))
    close()
    first = verdicts()
    again = close()
    assert "p = 0.016 (look 1)" in again  # 2 · 2/256
    assert verdicts() == first
    add(range(8, 12))
    said = close()
    assert "p = 0.0029 (look 2), over 12 draws of the data" in said  # 6 · 2/4096
    assert verdicts()["looks"][0]["replicates"] == [list(range(8)), list(range(12))]
    page = (tmp_path / "sweep/report/index.html").read_text()
    assert "looks at these comparisons: 2; settings were fixed at the first look" in page


def test_the_report_command_counts_a_look_too(add, verdicts, tmp_path):
    add(range(8))
    main([str(tmp_path / "sweep")])
    assert verdicts()["looks"][0]["replicates"] == [list(range(8))]


@pytest.mark.parametrize(
    "options", [["--pairs"], ["--margin", "0.05"], ["--metric", "val/loss"], ["--baseline", "bn"]], ids=str
)
def test_a_report_with_other_options_writes_nothing(add, close, tmp_path, options):
    add(range(8))
    main([str(tmp_path / "sweep"), *options])
    assert not (tmp_path / "sweep" / VERDICTS_FILE).exists()
    close()
    before = (tmp_path / "sweep" / VERDICTS_FILE).read_text()
    add(range(8, 9))
    main([str(tmp_path / "sweep"), *options])
    assert (tmp_path / "sweep" / VERDICTS_FILE).read_text() == before


def test_seeds_that_tune_and_settings_stay_those_of_the_first_verdict(add, close, verdicts):
    """Of 24 seeds, 8 would tune; the first verdict had 4, and the rate that they chose stays the choice."""
    add(range(12), ("0.01", "0.1"))
    assert "at lr 0.01, chosen on 4 other seeds" in close()
    assert verdicts()["tuning_seeds"] == [0, 1, 2, 3]
    assert {tuple(arm["settings"][0]) for arm in verdicts()["settings"]} == {("0.01",)}
    add(range(12), ("0.001",), final={"val/loss": 0.1, "test/loss": 0.1, "train_eval/loss": 0.1})
    add(range(12, 24), ("0.01", "0.1"))
    said = close()
    assert "(look 2), over 20 draws of the data; " in said
    assert "; at lr 0.01, chosen on 4 other seeds" in said
    # The rate that was added is better, so the verdict is not kept as if it had not been tried.
    assert "near-best settings of nobn are not shown to be worse" in said


def test_a_damaged_file_is_refused_in_one_line_and_the_folder_stays_as_it_is(add, close, tmp_path):
    add(range(8))
    close()
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
def test_content_of_another_form_is_damage(add, tmp_path, content):
    add(range(2))
    (tmp_path / "sweep" / VERDICTS_FILE).write_text(content)
    with pytest.raises(SystemExit, match="must hold the earlier verdicts, got"):
        main([str(tmp_path / "sweep")])


class TestMaximum:
    """``max_replicates``, with the boundaries of O'Brien and Fleming."""

    def test_the_level_grows_to_that_of_one_test(self, add, close, verdicts):
        add(range(8), max_replicates=8)
        assert "p = 0.0078 (look 1)" in close()  # all is spent at the maximum: no multiple of 2/256
        assert verdicts()["max_replicates"] == 8

    def test_bug_beyond_the_maximum_the_sweep_was_not_closed(self, add, close, tmp_path):
        add(range(8), max_replicates=8)
        close()
        add(range(8, 9), max_replicates=8)
        said = close()
        assert "no verdict beyond max_replicates for bn against nobn; test/loss ratio" in said
        page = (tmp_path / "sweep/report/index.html").read_text()
        assert "max_replicates=8 was declared at the first verdict: no verdict with more replicates" in page

    def test_another_maximum_later_is_warned_of(self, add, close, tmp_path):
        add(range(8), max_replicates=12)
        assert "has no effect" not in close()
        add(range(8, 9), max_replicates=20)
        warning = "max_replicates=20 has no effect: max_replicates=12 was declared first"
        assert warning in close()
        assert warning in (tmp_path / "sweep/report/index.html").read_text()

    def test_a_maximum_that_is_typed_when_nothing_is_left_to_train_is_warned_of(self, add, close, tmp_path):
        add(range(8))
        close()
        (tmp_path / "sweep" / SWEEP_CONFIG).write_text("max_replicates: 20\n")
        assert "max_replicates=20 has no effect: the first verdict was given without one" in close()

    def test_before_any_verdict_it_can_still_be_declared(self, add, close, verdicts, tmp_path):
        add(range(6), started="2026-01-01")
        close()
        add(range(6, 8), max_replicates=8, started="2026-01-02")
        said = close()
        assert "p = 0.0078 (look 1)" in said
        assert "has no effect" not in said
        assert verdicts()["max_replicates"] == 8
