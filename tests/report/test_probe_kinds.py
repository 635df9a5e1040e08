"""The figure of each kind of probe."""

import math

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from probe_drawings import (
    LIPSCHITZ,
    all_measurements,
    caption_text,
    dots,
    draw_probe,
    legend_texts,
    measurement,
    panel_titles,
    series,
)


@pytest.fixture
def full(probed, tmp_path):
    for k, arm in enumerate(("bn", "ln", "nobn")):
        for seed in range(2):
            measurements = [one for step in (0, 50, 100) for one in all_measurements(step, 1 + k + seed / 2)]
            probed(f"model={arm} seed={seed}", measurements)
    return tmp_path


def test_single_measurement_is_dot_per_seed(probed, tmp_path):
    for k, arm in enumerate(("bn", "nobn")):
        for seed, x in enumerate((10.0, 20.0, 4000.0)):
            doubt = {**LIPSCHITZ, "unreliable": float(arm == "nobn" and seed == 2)}
            probed(f"model={arm} seed={seed}", [measurement("gradient_lipschitz", 0, median=x * 10**k, **doubt)])
    figure, [axes] = draw_probe(tmp_path, "gradient_lipschitz")
    values = [(10, 0), (20, 0), (4000, 0), (100, 1), (200, 1), (40000, 1)]
    assert dots(axes) == [(*value, value == (40000, 1)) for value in values]
    bars = [line for line in axes.collections if isinstance(line, LineCollection) and line.get_linewidth() == 2]
    assert [bar.get_segments()[0][0][0] for bar in bars] == [20.0, 200.0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["model=bn", "model=nobn"]
    assert axes.get_xscale() == "log"
    assert (
        "dot: one seed; bar: median over the seeds; thin bar: interquartile range over the directions"
        in caption_text(figure)
    )
    assert "hollow: unreliable" in caption_text(figure)


def test_unreliable_median_over_steps_is_hollow(probed, tmp_path):
    for seed in range(2):
        measurements = [
            measurement(
                "gradient_lipschitz", step, median=100, **{**LIPSCHITZ, "unreliable": step >= 10 * (seed + 1)}
            )
            for step in (0, 10, 20)
        ]
        probed(f"model=bn seed={seed}", measurements)
    figure, [axes] = draw_probe(tmp_path, "gradient_lipschitz")
    [marks] = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
    assert marks.get_xdata().tolist() == [10, 20]
    assert "hollow: unreliable" in caption_text(figure)


def test_caption_omits_absent_hollow_marker(probed, tmp_path):
    probed("model=bn", [measurement("gradient_lipschitz", step, median=100, **LIPSCHITZ) for step in (0, 10)])
    assert "hollow" not in caption_text(draw_probe(tmp_path, "gradient_lipschitz")[0])


@pytest.mark.parametrize(
    ("limits", "doubt", "words"),
    [
        ((2.0, 2.0), 0, ["stability limit of gradient descent: 2"]),
        ((2.0, math.nan), 1, ["stability limit of gradient descent: 2 (indicative: minibatches)"]),
        ((3.8, 3.8), 0, ["stability limit of gradient descent: 3.8"]),
        ((3.0, 2.0), 0, ["stability limit of gradient descent: 2, 3"]),
        ((math.nan, math.nan), 0, []),
    ],
)
def test_known_stability_limit_is_drawn(probed, tmp_path, limits, doubt, words):
    steps = (0, 10) if doubt or limits[0] == 3.8 else (0,)
    for arm, limit in zip(("bn", "nobn"), limits, strict=True):
        numbers = {"lambda_max": 5.0, "lambda_max_lr": 0.5, "stability": limit, "indicative": doubt}
        probed(f"model={arm}", [measurement("curvature", step, **numbers) for step in steps])
    figure, axes = draw_probe(tmp_path, "curvature")
    assert [text for text in legend_texts(figure) if "model=" not in text] == words
    known = sorted({limit for limit in limits if not math.isnan(limit)})
    values = [line.get_xdata() if len(steps) == 1 else line.get_ydata() for line in axes[0].lines]
    assert sorted(x[0] for x in values if len(x) == 2 and x[0] == x[1] and x[0] > 1) == known
    low, high = axes[0].get_xlim() if len(steps) == 1 else axes[0].get_ylim()
    assert all(low < limit < high for limit in known)


def test_adam_limit_is_on_preconditioned_sharpness_only(probed, tmp_path):
    for arm in ("bn", "nobn"):
        numbers = {"lambda_max": 5.0, "lambda_max_lr": 0.5, "stability": math.nan, "indicative": 0.0}
        numbers |= {"preconditioned_lambda_max_lr": 36.0, "preconditioned_stability": 38.0}
        probed(f"model={arm}", [measurement("curvature", step, **numbers) for step in (0, 10)])
    figure, axes = draw_probe(tmp_path, "curvature")
    assert [text for text in legend_texts(figure) if "model=" not in text] == [
        "stability limit of the preconditioned Hessian: 38"
    ]
    limits = [{line.get_ydata()[0] for line in panel.lines if len(line.get_ydata()) == 2} for panel in axes]
    assert [38.0 in limit for limit in limits] == [False, True, False]
    assert axes[1].get_ylim()[1] > 38


def test_spectra_have_logarithmic_axes(probed, tmp_path):
    grid = np.linspace(-1, 9, 11)
    for arm, width in (("bn", 1), ("nobn", 1000)):
        arrays = {"density": np.exp(-grid), "density_grid": width * grid}
        probed(f"model={arm}", [measurement("curvature", 0, arrays=arrays, lambda_max=9 * width)])
    figure, axes = draw_probe(tmp_path, "curvature")
    assert (axes[-1].get_yscale(), axes[-1].get_xscale()) == ("log", "symlog")
    assert [line.get_xdata().max() for line in axes[-1].lines] == [9, 9000]
    assert "spectral density: last measurement of the first seed" in caption_text(figure)


@pytest.mark.parametrize(("arms", "shown"), [(3, 1), (5, 5)])
def test_ranges_overlay_or_have_panel_per_configuration(probed, tmp_path, arms, shown):
    for k in range(arms):
        for seed in range(2):
            low, high = k + 1.0 + seed, k + 2.0 + seed
            measurements = [
                measurement("along_gradient", step, loss_min=low, loss_max=high, beta=1.0) for step in (0, 10)
            ]
            probed(f"model=arm{k} seed={seed}", measurements)
    figure, axes = draw_probe(tmp_path, "along_gradient")
    assert len(axes) == shown + 1
    bands = [path.vertices[:, 1] for panel in axes[1:] for band in panel.collections for path in band.get_paths()]
    assert [(band.min(), band.max()) for band in bands] == [(k + 1.5, k + 2.5) for k in range(arms)]
    assert len({panel.get_ylim() for panel in axes[1:]}) == 1
    assert "range: over the step lengths, its ends are medians over the seeds" in caption_text(figure)


def test_percentiles_have_panel_per_configuration(full):
    figure, axes = draw_probe(full, "preactivations")
    last, first = axes[:3], axes[3:6]
    assert panel_titles(figure)[:3] == [f"hidden2, batch statistics\nmodel={arm}" for arm in ("bn", "ln", "nobn")]
    assert series(last[0]) == [[1.0] * 3, [2.0] * 3, [3.0] * 3]
    assert series(first[0]) == [[0.0] * 3, [1.0] * 3, [2.0] * 3]
    assert len({panel.get_ylim() for panel in last}) == 1


def test_loss_on_line_is_median_over_seeds(full):
    figure, axes = draw_probe(full, "line")
    assert [panel.get_xlabel()[0] for panel in axes] == ["α"] * 4
    assert axes[0].lines[0].get_xdata().tolist() == [-1, -0.5, 0, 0.5, 1]
    assert axes[0].lines[0].get_ydata() == pytest.approx(0.1 + 1.25 * np.array([1, 0.25, 0, 0.25, 1]))
    assert legend_texts(figure) == ["model=bn", "model=ln", "model=nobn"]


def test_line_without_arrays_shows_numbers(probed, tmp_path):
    probed("model=bn", [measurement("line", step, rise=1.0) for step in (0, 10)])
    assert [panel.get_ylabel() for panel in draw_probe(tmp_path, "line")[1]] == ["rise"]


def test_layers_keep_order_of_net(probed, tmp_path):
    shallow = {"zeta__std": 1.0, "alpha__std": 2.0}
    probed("model=bn", [measurement("activations", step, **shallow) for step in (0, 10)])
    probed(
        "model=nobn", [measurement("activations", 10, **{"zeta__std": 3.0, "mid__std": 4.0, "alpha__std": 5.0})]
    )
    _, [axes] = draw_probe(tmp_path, "activations")
    assert series(axes) == [[1.0, 2.0], [3.0, 4.0, 5.0]]
    assert axes.get_xlabel() == "layer, counted from the input"


def test_common_layers_are_named(full):
    _, axes = draw_probe(full, "activations")
    assert [label.get_text() for label in axes[0].get_xticklabels()] == ["hidden1", "hidden2", "hidden3"]
    assert axes[3].get_ylim() == (-0.03, 1.03)


def test_many_layers_are_counted(probed, tmp_path):
    probed("model=bn", [measurement("activations", 0, **{f"hidden{i}__std": 1.0 for i in range(12)})])
    _, [axes] = draw_probe(tmp_path, "activations")
    assert axes.get_xlabel() == "layer, from 1 (hidden0) to 12 (hidden11)"


def test_single_layer_is_drawn_over_steps(probed, tmp_path):
    probed("model=bn", [measurement("activations", step, hidden1__std=step) for step in (5, 10, 15)])
    figure, [axes] = draw_probe(tmp_path, "activations")
    assert series(axes) == [[5.0, 10.0, 15.0]]
    assert "hidden1" in caption_text(figure)


def test_user_probe_shows_headlines_and_overall_numbers(probed, tmp_path):
    probed(
        "model=bn", [measurement("mine", step, a=1, out__b=2, out__c=3, headline=("out/b",)) for step in (0, 10)]
    )
    assert [panel.get_ylabel() for panel in draw_probe(tmp_path, "mine")[1]] == ["a", "out/b"]


def test_user_probe_of_layers_shows_all_numbers(probed, tmp_path):
    probed("model=bn", [measurement("mine", step, out__b=2, out__c=3) for step in (0, 10)])
    assert [panel.get_ylabel() for panel in draw_probe(tmp_path, "mine")[1]] == ["out/b", "out/c"]


def test_other_probe_of_known_name_shows_plain_numbers(probed, tmp_path):
    probed("model=bn", [measurement("curvature", step, mine=1.0) for step in (0, 10)])
    assert [panel.get_ylabel() for panel in draw_probe(tmp_path, "curvature")[1]] == ["mine"]
