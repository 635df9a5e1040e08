"""The head of the page: which arm is best, by how much."""

import numpy as np
import pandas as pd
import pytest

from normlab import load_sweep
from normlab.report.answer import finding_of
from normlab.report.effects import effect_table
from normlab.report.forest import Axis, effect_groups
from normlab.report.report import build_page
from normlab.report.report_data import ReportOptions, build_report_data
from normlab.results.result import Result
from normlab.results.sweep import read_sweep


@pytest.fixture
def page_of(tmp_path):
    """Return a function that analyzes the sweep and returns its page."""

    def build(**options):
        folder = tmp_path / "sweep"
        data = build_report_data(read_sweep(folder), ReportOptions(**options), folders=[folder])
        return build_page([folder], data)

    return build


def sweep(make_run, levels, seeds=8, extra="", **how):
    """Write runs whose final loss is the level of their model plus 0.01 per seed."""
    for model, level in levels.items():
        for seed in range(seeds):
            make_run(f"model={model} seed={seed}{extra}", (9.0, 8.0, level + 0.01 * seed), **how)


def row(arm, verdict, baseline="nobn", equivalent=1.0):
    """Return a comparison with a verdict."""
    differ = {"replicates": 8, "differing": 8, "disjoint": True, "factor": 1.0}
    names = {"arm": arm, "baseline": baseline, "verdict": verdict, "metric": "test/loss", "effect": "ratio"}
    return {**names, **differ, "equivalence_p_adjusted": equivalent, "margin": 0.05}


NOTHING_SHOWN, MISSING = "no difference shown", "not comparable: nobn differs in x"
FINDINGS = {
    "two arms": ([row("bn", "better")], "best", "bn", "bn is better than nobn", ()),
    "baseline": ([row("bn", "worse")], "best", "nobn", "nobn is better than bn", ()),
    "worse arms": (
        [row("bn", "worse"), row("ln", "worse")],
        *("best", "nobn", "nobn is best: better than bn and ln", ()),
    ),
    "uncompared arms": (
        [row("bn", "better"), row("ln", "better")],
        *("different", "", "bn or ln is best: bn and ln are better than nobn"),
        ("bn and ln were not compared with each other (normlab report --pairs does so)",),
    ),
    "all pairs": (
        [row("bn", "better"), row("ln", "better"), row("ln", "worse", "bn")],
        *("best", "bn", "bn is best: better than nobn and ln", ("ln is better than nobn",)),
    ),
    "one undecided": (
        [row("bn", "better"), row("ln", NOTHING_SHOWN)],
        *("different", "", "bn or ln is best: bn is better than nobn", None),
    ),
    "undecided": (
        [row("bn", NOTHING_SHOWN), row("ln", NOTHING_SHOWN)],
        *("undecided", "", "Undecided: no difference shown between bn or ln and nobn", ()),
    ),
    "too few": (
        [row("bn", "too few replicates") | {"replicates": 4, "differing": 4, "comparisons": 1}],
        *("undecided", ""),
        "Undecided: too few replicates to compare bn with nobn (4 of the 6 replicates needed)",
        (),
    ),
    "equivalent": (
        [row("bn", NOTHING_SHOWN, equivalent=0.01)],
        *("equivalent", "", "bn is equivalent to nobn within 5 %", ()),
    ),
    "better within the margin": (
        [row("bn", "better", equivalent=0.01)],
        *("best", "bn", "bn is better than nobn", ("bn differs from nobn by less than 5 %",)),
    ),
    "partly equivalent": (
        [row("bn", NOTHING_SHOWN, equivalent=0.01), row("ln", NOTHING_SHOWN)],
        *("undecided", ""),
        "Undecided: no difference shown between ln and nobn, bn is equivalent to nobn within 5 %",
        (),
    ),
    "not comparable": (
        [row("bn", MISSING)],
        *("not comparable", "", "bn and nobn are not comparable: nobn differs in x", ()),
    ),
    "partly comparable": (
        [row("bn", "better"), row("ln", MISSING)],
        *("different", "", "bn is better than nobn", None),
    ),
}


@pytest.mark.parametrize("case", FINDINGS)
def test_finding(case):
    rows, state, best, headline, details = FINDINGS[case]
    finding = finding_of(rows)
    assert (finding.state, finding.best, finding.headline) == (state, best, headline)
    assert details is None or finding.details == details


def test_best_arm_is_that_of_the_verdicts(make_run, page_of, tmp_path):
    sweep(make_run, {"bn": 1.0, "ln": 2.0, "nobn": 3.0})
    compared = load_sweep(tmp_path / "sweep").compare(pairs=True)
    of_metric = compared[compared["metric"] == "test/loss"]
    assert set(of_metric.loc[of_metric["arm"] == "bn", "verdict"]) == {"better"}
    (answer,) = page_of(pairs=True).answers
    assert answer.best == "bn"
    assert answer.text == (
        "bn is best: better than nobn and ln on test/loss and train_eval/loss, over 8 draws of the data. "
        "ln is better than nobn."
    )


def test_metrics_that_disagree_are_named(make_run, page_of):
    for seed in range(8):
        for model, test, train in (("bn", 1.0, 2.0), ("nobn", 2.0, 1.0)):
            noise = 1 + 0.01 * seed
            final = {"val/loss": test, "test/loss": test * noise, "train_eval/loss": train * noise}
            make_run(f"model={model} seed={seed}", final=final)
    (answer,) = page_of().answers
    assert answer.headline == "bn is better than nobn on test/loss, over 8 draws of the data"
    assert answer.details == ("On train_eval/loss, nobn is better than bn",)


def test_panels_have_answers_of_their_own(make_run, page_of):
    sweep(make_run, {"bn": 1.0, "nobn": 2.0}, extra=" data.batch_size=64")
    sweep(make_run, {"bn": 2.0, "nobn": 1.0}, extra=" data.batch_size=256")
    page = page_of()
    assert [(each.panel, each.best) for each in page.answers] == [
        ("data.batch_size=64", "bn"),
        ("data.batch_size=256", "nobn"),
    ]
    assert page.overview == "On test/loss, bn is best in 1 and nobn is best in 1 of 2 panels"
    labels = [effect.label for group in page.groups for effect in group.effects]
    assert labels == ["batch_size=64: bn", "batch_size=256: bn"] * 2


def test_more_effects_than_fit_are_collapsed(make_run, page_of):
    arms = {name: 1.0 + 0.1 * k for k, name in enumerate(["nobn", "bn", "ln", "rms", "gn", "ws", "in"])}
    sweep(make_run, arms)
    page = page_of()
    assert [(group.metric, len(group.effects)) for group in page.groups] == [("test/loss", 6)]
    assert [(group.metric, len(group.effects)) for group in page.more_groups] == [("train_eval/loss", 6)]


def test_best_epoch_is_the_same_metric_at_the_best_validation(make_run, tmp_path):
    """Interquartile means of eight replicates: those of seeds 2 to 5."""
    for model, best in (("bn", 1.0), ("nobn", 2.0)):
        for seed in range(8):
            folder = make_run(f"model={model} seed={seed}", (9.0, best, 3.0 + 0.1 * seed))
            result = Result.read(folder)
            result.test = {"test/loss": best + 0.1 * seed}
            result.best.metrics["train_eval/loss"] = best / 2 + 0.1 * seed
            result.write(folder)
    data = build_report_data(read_sweep(tmp_path / "sweep"), ReportOptions())
    table = effect_table(data).set_index("metric")
    best = table[["best_epoch", "baseline_best_epoch"]].to_numpy()
    assert best == pytest.approx(np.array([[1.35, 2.35], [0.85, 1.35]]))
    assert table.loc["test/loss", "value"] == pytest.approx(2 * 3.35)
    (group, _) = effect_groups(data, effect_table(data))
    assert (group.effects[0].value, group.effects[0].best) == ("6.7 vs. 6.7", "1.35 vs. 2.35")


def test_effects_are_those_of_the_comparison(make_run, tmp_path):
    sweep(make_run, {"bn": 1.0, "ln": 1.5, "nobn": 2.0})
    data = build_report_data(read_sweep(tmp_path / "sweep"), ReportOptions())
    compared = load_sweep(tmp_path / "sweep").compare().drop(columns=["sentence", "p"])
    pd.testing.assert_frame_equal(effect_table(data)[list(compared)], compared)


class TestAxis:
    """The common axis of the effects."""

    @staticmethod
    def axis(*numbers, effect="ratio"):
        rows = [dict(zip(("estimate", "low", "high"), each, strict=True), effect=effect) for each in numbers]
        return Axis.of(rows)

    def test_ratios_are_logarithmic(self):
        axis = self.axis((1.0, 0.25, 4.0))
        assert (axis.place(0.25), axis.place(0.5), axis.place(1.0), axis.place(4.0)) == (8.0, 29.0, 50.0, 92.0)

    def test_differences_are_linear(self):
        axis = self.axis((1.0, -1.0, 3.0), effect="points")
        assert (axis.place(-1.0), axis.place(1.0), axis.place(0.0)) == (8.0, 50.0, 29.0)

    @pytest.mark.parametrize("numbers", [(2.0, 0.0, np.inf), (2.0, np.nan, np.nan)])
    def test_unbounded_interval_reaches_both_ends(self, numbers):
        axis = self.axis(numbers)
        row = dict(zip(("estimate", "low", "high"), numbers, strict=True))
        assert axis.places(row) == (92.0, 0.0, 100.0)

    def test_equal_arms_have_an_axis(self):
        for effect, same in (("ratio", 1.0), ("points", 0.0)):
            axis = self.axis((same, same, same), effect=effect)
            assert axis.place(same) == 50.0

    def test_kinds_of_effects_do_not_share_an_axis(self):
        rows = [{"estimate": 1.0, "low": 1.0, "high": 1.0, "effect": effect} for effect in ("ratio", "difference")]
        assert Axis.of(rows) is None
        assert self.axis((np.nan, np.nan, np.nan)) is None

    @pytest.mark.parametrize("ends", [(0.98, 1.01), (0.2, 0.9), (0.1, 90.0), (1e-16, 2.0)])
    def test_ticks_are_apart_and_include_equality(self, ends):
        ticks = self.axis((ends[0], *ends)).ticks()
        places = [place for _, place in ticks]
        assert "1" in [text for text, _ in ticks]
        assert 2 <= len(ticks) <= 6
        assert min(np.diff(places)) >= 20
        assert 0 <= places[0] < places[-1] <= 100
