"""The charts of the report page: effects, learning curves and their limits."""

import numpy as np
import pandas as pd
import pytest

from normlab.report.charts import draw_curves, draw_effects, zoomed_limits
from normlab.report.figures import arm_styles, drawing
from normlab.stats.comparison import POINTS, RATIO

STYLES = arm_styles(["bn", "ln", "nobn"])


def curves(**medians):
    """Return curves with a band of ±10 % around each arm's medians."""
    frames = [
        pd.DataFrame({"name": arm, "epoch": range(1, len(values) + 1), "median": values}).assign(
            lower=lambda frame: 0.9 * frame["median"], upper=lambda frame: 1.1 * frame["median"]
        )
        for arm, values in medians.items()
    ]
    return pd.concat(frames)


def test_limits_span_the_second_half_of_training():
    """Losses from 100,000 to 226 and 238: the axis spans the bands from epoch 2 of 4 on."""
    low, high = zoomed_limits(
        curves(bn=[1e5, 300.0, 250.0, 226.0], nobn=[2e4, 280.0, 250.0, 238.0]), "epoch", "min"
    )
    assert low == pytest.approx(0.9 * 226)
    assert high == pytest.approx(1.1 * 300)


def test_limits_include_an_early_best_loss():
    low, _ = zoomed_limits(curves(bn=[9.0, 0.5, 3.0, 3.0, 3.0, 3.0]), "epoch", "min")
    assert low == 0.5


def test_arm_far_above_the_best_does_not_widen_the_axis():
    _, high = zoomed_limits(curves(bn=[9.0, 1.0, 1.0], ln=[9.0, 1.5, 1.5], nobn=[9.0, 80.0, 80.0]), "epoch", "min")
    assert high == pytest.approx(1.1 * 1.5)


def test_of_two_arms_both_are_shown():
    _, high = zoomed_limits(curves(bn=[9.0, 1.0, 1.0], nobn=[9.0, 80.0, 80.0]), "epoch", "min")
    assert high == pytest.approx(1.1 * 80)


def test_limits_of_accuracies_include_the_best():
    low, high = zoomed_limits(curves(bn=[0.1, 0.9, 0.7, 0.7], nobn=[0.1, 0.4, 0.5, 0.6]), "epoch", "max")
    assert (low, high) == pytest.approx((0.9 * 0.4, 0.99))


def test_curve_ends_with_a_cross_where_half_of_the_runs_diverged():
    with drawing():
        figure = draw_curves(curves(bn=[3.0, 2.0, np.inf], nobn=[3.0, 2.0, 1.0]), STYLES, title="", y="val/loss")
    crosses = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
    assert [line.get_xdata().tolist() for line in crosses] == [[2]]


def test_curves_that_diverge_at_once_have_a_cross_inside_the_panel():
    with drawing():
        figure = draw_curves(curves(bn=[np.inf], nobn=[np.inf]), STYLES, title="", y="val/loss")
        figure.draw_without_rendering()
    axes = figure.axes[0]
    crosses = [line for line in axes.lines if line.get_marker() == "x"]
    assert [line.get_xdata().tolist() for line in crosses] == [[1], [1]]
    assert axes.get_xlim()[1] > 1


def effects(kind=RATIO, **arms):
    rows = [(arm, arm, kind, *numbers, declared) for arm, (*numbers, declared) in arms.items()]
    names = ["arm", "label", "effect", "estimate", "estimate_low", "estimate_high", "declared"]
    return pd.DataFrame(rows, columns=names)


def test_effects_have_intervals_and_declared_ones_are_filled():
    rows = effects(bn=(0.5, 0.4, 0.6, True), ln=(0.9, 0.7, 1.1, False))
    axes = draw_effects(rows, STYLES, title="", x="ratio to nobn").axes[0]
    same, *lines = axes.lines
    assert same.get_xdata() == [1.0, 1.0]
    assert [list(line.get_xdata()) for line in lines[::2]] == [[0.4, 0.6], [0.7, 1.1]]
    assert [line.get_xdata().tolist() for line in lines[1::2]] == [[0.5], [0.9]]
    assert [line.get_markerfacecolor() for line in lines[1::2]] == [STYLES["bn"].colour, "white"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["bn", "ln"]


def test_unbounded_interval_reaches_the_edge():
    rows = effects(bn=(0.5, 0.0, 2.0, False), ln=(0.7, 0.4, np.inf, False))
    lines = draw_effects(rows, STYLES, title="", x="").axes[0].lines
    assert list(lines[1].get_xdata()) == [0.4, 2.0]
    assert list(lines[3].get_xdata()) == [0.4, 2.0]


def test_difference_of_zero_is_the_reference_of_points():
    rows = effects(POINTS, bn=(1.5, -0.5, 3.0, False))
    axes = draw_effects(rows, STYLES, title="", x="").axes[0]
    assert axes.lines[0].get_xdata() == [0.0, 0.0]
    assert axes.get_xscale() == "linear"
