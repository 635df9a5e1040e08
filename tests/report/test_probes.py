import math

import numpy as np
import pandas as pd
import pytest
from matplotlib import rc_context
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from normlab.report.figures import COLOURS, LOOK
from normlab.report.probe_data import TABLE_LETTERS, measured, printed_probes, probe_columns, probe_table
from normlab.report.probe_figures import FIGURES, draw_plain_numbers, write_images, write_probe_figures
from normlab.report.sweep_summary import summarize_sweep
from normlab.results import probes as records
from normlab.results.events import EventFile
from normlab.results.probes import ProbeRecord
from normlab.results.result import Result, Status
from normlab.results.sweep import read_sweep

LIPSCHITZ = {"q25": 50.0, "q75": 200.0, "max": 400.0, "unreliable": 0.0}
CURVATURE = {"lambda_max": 4.0, "dhd_lambda_max": 8.0, "stability": 2.0, "indicative": 0.0}


@pytest.fixture
def probed(make_run):
    """Return a function that writes a run with what its probes left."""

    def make(overrides, founds, **how):
        folder = make_run(overrides, **how)
        records.append_probes(folder, founds)
        records.write_arrays(folder, founds)
        result = Result.read(folder)
        result.probes = records.headlines(founds)
        result.write(folder)
        return folder

    return make


def found(probe, step, mode="batch", arrays=None, headline=(), **numbers):
    values = {name.replace("__", "/"): float(x) for name, x in numbers.items()}
    return ProbeRecord(step // 10, step, 0.0, probe, mode, values, arrays or {}, headline)


def sweep_of(tmp_path):
    runs = read_sweep(tmp_path / "sweep")
    return summarize_sweep(runs), runs


def drawn(tmp_path, name, *, laid_out=False):
    """Return the figure of a probe and its panels."""
    [probe] = [probe for probe in measured(*sweep_of(tmp_path)) if probe.name == name]
    with rc_context(LOOK):
        figure = FIGURES.get(name, draw_plain_numbers)(probe) or draw_plain_numbers(probe)
        if laid_out:
            figure.draw_without_rendering()
    return figure, figure and figure.axes


def said(figure):
    return " ".join([text.get_text() for text in figure.texts])


def legend(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def titles(figure):
    return [place.get_title() for place in figure.axes]


def series(axes):
    """Return the values of the lines of a panel that are not NaN throughout."""
    return [np.asarray(line.get_ydata()).tolist() for line in axes.lines if len(line.get_ydata())]


def everything(step, scale, modes=("batch", "frozen")):
    """Return what all probes find at one moment."""
    grid, alphas = np.linspace(-1, 5 * scale, 20), np.linspace(-1, 1, 5)
    founds = []
    for mode in modes:
        spectrum = {"density": np.exp(-(grid**2)), "density_grid": grid}
        losses = {"random_alphas": alphas, "random_losses": 0.1 + scale * alphas**2}
        losses |= {"between_alphas": (alphas + 1) / 2, "between_losses": 1.1 + alphas * scale / 10}
        layers = {
            f"hidden{i}__{name}": scale / i
            for i in (1, 2, 3)
            for name in ("std", "gradient_rms", "effective_rank", "dead")
        }
        percentiles = {f"hidden{i}__{q}": i + x for i in (1, 2) for q, x in (("q15", -1), ("q50", 0), ("q85", 1))}
        ranges = {"loss": 1, "loss_min": 0.5, "loss_max": scale, "predictiveness_min": 0.1, "cosine_min": 0.9}
        founds += [
            found("gradient_lipschitz", step, mode, median=100 * scale, **LIPSCHITZ),
            found("along_gradient", step, mode, **ranges, predictiveness_max=scale, beta=scale, beta_lr=scale),
            found("covariate_shift", step, mode, difference=scale, relative=0.5, cosine=0.9, out__cosine=0.9),
            found("preactivations", step, mode, **percentiles),
            found("curvature", step, mode, spectrum, lambda_max_lr=scale / 5, **CURVATURE),
            found("activations", step, mode, **layers),
            found("line", step, mode, losses, rise=scale),
            found("of_a_user", step, mode, norm=scale, hidden1__norm=scale),
        ]
    return founds


NAMES = [*FIGURES, "of_a_user"]


@pytest.fixture
def full(probed, tmp_path):
    for k, arm in enumerate(("bn", "ln", "nobn")):
        for seed in range(2):
            founds = [one for step in (0, 50, 100) for one in everything(step, 1 + k + seed / 2)]
            probed(f"model={arm} seed={seed}", founds)
    return tmp_path


def test_each_probe_has_a_figure_as_png_and_svg(probed, tmp_path):
    probed("model=bn", everything(0, 2.0, ["frozen"]))
    files = write_probe_figures(*sweep_of(tmp_path), tmp_path)
    assert {path.name for path in files} == {f"probe_{name}.{kind}" for name in NAMES for kind in ("png", "svg")}
    for path in files:
        if path.suffix == ".png":
            with Image.open(path) as picture:
                assert picture.width == 1440
        else:
            assert "frozen statistics" in path.read_text()


def test_the_same_sweep_gives_the_same_svg(probed, tmp_path):
    probed("model=bn", everything(0, 1.0)[:1])
    _, one = write_probe_figures(*sweep_of(tmp_path), tmp_path)
    text = one.read_text()
    write_probe_figures(*sweep_of(tmp_path), tmp_path)
    assert one.read_text() == text


def test_nothing_measured_nothing_drawn(make_run, tmp_path):
    make_run("model=bn")
    assert write_probe_figures(*sweep_of(tmp_path), tmp_path) == []
    sweep, runs = sweep_of(tmp_path)
    assert printed_probes(sweep, runs) == []
    assert probe_table(sweep, runs).shape == (1, 0)
    assert probe_columns(runs).shape == (1, 0)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_alone_is_a_sweep_of_one_arm(probed, tmp_path, name):
    steps = (0,) if name in NAMES[::2] else (0, 50)
    probed("model=bn", [one for step in steps for one in everything(step, 1.0, ["batch"]) if one.probe == name])
    figure, axes = drawn(tmp_path, name)
    assert any(series(place) for place in axes)
    assert "one seed per arm: no spread" in said(figure)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_overlaps_and_nothing_is_cut_off(probed, tmp_path, name):
    for k in range(5):
        for seed in range(2):
            status = Status.DIVERGED if (k, seed) == (1, 1) else Status.FINISHED
            founds = [one for step in (0, 5000) for one in everything(step, 10.0**k, ["batch"])]
            founds = [one for one in founds if one.probe == name]
            probed(f"model=arm{k} optimizer.lr=0.00{k} seed={seed}", founds, status=status)
    figure, axes = drawn(tmp_path, name, laid_out=True)
    boxes = [place.get_tightbbox() for place in axes] + [text.get_window_extent() for text in figure.texts[:2]]
    boxes += [legend.get_window_extent() for legend in figure.legends]
    for number, box in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1 + 1
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1
        for other in boxes[:number]:
            width = min(box.x1, other.x1) - max(box.x0, other.x0)
            height = min(box.y1, other.y1) - max(box.y0, other.y0)
            # The numbers at the ends of two axes side by side may come within a few dots of each other.
            assert width < 8 or height < 8


@pytest.mark.parametrize("name", NAMES)
def test_no_run_that_finished(probed, tmp_path, name):
    for seed, status in enumerate((Status.DIVERGED, Status.FAILED, Status.STOPPED)):
        founds = [one for step in (0, 50) for one in everything(step, 2.0, ["batch"]) if one.probe == name]
        probed(f"model=bn seed={seed}", founds, status=status)
    figure, _ = drawn(tmp_path, name)
    assert figure is None or "1 of 3 diverged" in " ".join([*legend(figure), *titles(figure)])


@pytest.mark.parametrize("name", NAMES)
def test_no_number_at_all(probed, tmp_path, name):
    nothing, value = [], math.inf if name in NAMES[::2] else math.nan
    for one in everything(0, 2.0):
        arrays = {key: np.full_like(array, value) for key, array in one.arrays.items()}
        numbers = dict.fromkeys(one.numbers, value)
        nothing += [ProbeRecord(1, 0, 0.0, one.probe, one.mode, numbers, arrays)] if one.probe == name else []
    probed("model=bn", nothing)
    assert drawn(tmp_path, name) == (None, None)


def test_the_line_is_the_median_and_the_band_the_middle_half(probed, tmp_path):
    for seed, x in enumerate((1.0, 2.0, 3.0, 4.0, 25.0)):
        probed(f"model=bn seed={seed}", [found("of_a_user", step, norm=x + step) for step in (0, 10)])
    figure, [axes] = drawn(tmp_path, "of_a_user")
    assert series(axes) == [[3.0, 13.0]]
    heights = axes.collections[0].get_paths()[0].vertices
    assert sorted(set(map(tuple, heights.tolist()))) == [(0.0, 2.0), (0.0, 4.0), (10.0, 12.0), (10.0, 14.0)]
    assert "line: median over 5 seeds; band: the middle half of the seeds" in said(figure)
    assert axes.get_xlabel() == "steps of the optimizer"
    assert legend(figure) == ["model=bn"]


def test_a_value_that_is_not_finite_is_a_gap(probed, tmp_path):
    values = (1.0, math.nan, 3.0, math.inf, 5.0)
    probed("model=bn", [found("of_a_user", 10 * k, norm=x) for k, x in enumerate(values)])
    _, [axes] = drawn(tmp_path, "of_a_user")
    [line] = series(axes)
    np.testing.assert_array_equal(line, [1.0, math.nan, 3.0, math.nan, 5.0])


def test_steps_that_few_seeds_share_are_left_out_and_break_no_line(probed, tmp_path):
    for seed in range(3):
        steps = (0, 10, 10 + seed + 1, 20)
        probed(f"model=bn seed={seed}", [found("of_a_user", step, norm=step) for step in steps])
    _, [axes] = drawn(tmp_path, "of_a_user")
    assert series(axes) == [[0.0, 10.0, 20.0]]


def test_a_repeated_seed_counts_once(probed, tmp_path):
    for copy, x in enumerate((1.0, 9.0, 9.0)):
        probed(f"model=bn seed={min(copy, 1)} +copy={copy}", [found("of_a_user", 0, norm=x, other=x)])
    sweep, runs = sweep_of(tmp_path)
    [probe] = measured(sweep, runs)
    assert sum(map(len, probe.ended.values())) == (3 if len(sweep.configurations) > 1 else 2)


def test_a_diverged_run_is_thin_and_crossed_and_moves_neither_median_nor_axis(probed, tmp_path):
    for seed in range(2):
        probed(f"model=bn seed={seed}", [found("of_a_user", step, norm=1 + step / 10) for step in (0, 10, 20)])
    lost = [found("of_a_user", step, norm=x) for step, x in ((0, 1.0), (10, 1e30))]
    probed("model=bn seed=2", lost, status=Status.DIVERGED)
    figure, [axes] = drawn(tmp_path, "of_a_user")
    median, thin, cross = axes.lines
    assert median.get_ydata().tolist() == [1.0, 2.0, 3.0]
    assert (thin.get_linewidth(), thin.get_ydata().tolist()) == (0.7, [1.0, 1e30])
    assert (cross.get_marker(), cross.get_xdata().tolist()) == ("x", [10])
    assert axes.get_ylim()[1] < 10
    assert legend(figure) == ["model=bn (1 of 3 diverged)"]
    assert "thin: a run that did not finish; ×: where it diverged" in said(figure)


def test_an_arm_looks_as_in_the_curves_also_where_another_was_not_probed(probed, make_run, tmp_path):
    make_run("model=bn")
    probed("model=nobn", [found("of_a_user", step, norm=1.0) for step in (0, 10)])
    figure, [axes] = drawn(tmp_path, "of_a_user")
    assert axes.lines[0].get_color() == COLOURS[1]
    assert legend(figure) == ["model=nobn"]


def test_one_moment_is_a_dot_for_each_seed_below_each_other_by_arm(probed, tmp_path):
    for k, arm in enumerate(("bn", "nobn")):
        for seed, x in enumerate((10.0, 20.0, 4000.0)):
            doubt = {**LIPSCHITZ, "unreliable": float(arm == "nobn" and seed == 2)}
            probed(f"model={arm} seed={seed}", [found("gradient_lipschitz", 0, median=x * 10**k, **doubt)])
    figure, [axes] = drawn(tmp_path, "gradient_lipschitz")
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [line.get_xdata()[0] for line in dots] == [10, 20, 4000, 100, 200, 40000]
    assert [round(line.get_ydata()[0]) for line in dots] == [0, 0, 0, 1, 1, 1]
    assert [line.get_markerfacecolor() == "white" for line in dots] == [False] * 5 + [True]
    assert [line.get_xdata()[0] for line in axes.lines if line.get_linewidth() == 2] == [20.0, 200.0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["model=bn", "model=nobn"]
    assert axes.get_xscale() == "log"
    assert "dot: a seed; bar: the median over the seeds; thin bar: the middle half of the directions" in said(
        figure
    )
    assert "hollow: unreliable" in said(figure)


def test_over_steps_an_unreliable_median_is_hollow(probed, tmp_path):
    for seed in range(2):
        founds = [
            found("gradient_lipschitz", step, median=100, **{**LIPSCHITZ, "unreliable": step >= 10 * (seed + 1)})
            for step in (0, 10, 20)
        ]
        probed(f"model=bn seed={seed}", founds)
    figure, [axes] = drawn(tmp_path, "gradient_lipschitz")
    [marks] = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
    assert marks.get_xdata().tolist() == [10, 20]
    assert "hollow: unreliable" in said(figure)


def test_no_hollow_mark_is_explained_where_there_is_none(probed, tmp_path):
    probed("model=bn", [found("gradient_lipschitz", step, median=100, **LIPSCHITZ) for step in (0, 10)])
    assert "hollow" not in said(drawn(tmp_path, "gradient_lipschitz")[0])


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
def test_the_stability_limit_is_drawn_where_there_is_one(probed, tmp_path, limits, doubt, words):
    steps = (0, 10) if doubt or limits[0] == 3.8 else (0,)
    for arm, limit in zip(("bn", "nobn"), limits, strict=True):
        numbers = {"lambda_max": 5.0, "lambda_max_lr": 0.5, "stability": limit, "indicative": doubt}
        probed(f"model={arm}", [found("curvature", step, **numbers) for step in steps])
    figure, axes = drawn(tmp_path, "curvature")
    assert [text for text in legend(figure) if "model=" not in text] == words
    known = sorted({limit for limit in limits if not math.isnan(limit)})
    values = [line.get_xdata() if len(steps) == 1 else line.get_ydata() for line in axes[0].lines]
    assert sorted(x[0] for x in values if len(x) == 2 and x[0] == x[1] and x[0] > 1) == known
    low, high = axes[0].get_xlim() if len(steps) == 1 else axes[0].get_ylim()
    assert all(low < limit < high for limit in known)


def test_the_limit_of_adam_is_drawn_on_the_preconditioned_sharpness_alone(probed, tmp_path):
    for arm in ("bn", "nobn"):
        numbers = {"lambda_max": 5.0, "lambda_max_lr": 0.5, "stability": math.nan, "indicative": 0.0}
        numbers |= {"preconditioned_lambda_max_lr": 36.0, "preconditioned_stability": 38.0}
        probed(f"model={arm}", [found("curvature", step, **numbers) for step in (0, 10)])
    figure, axes = drawn(tmp_path, "curvature")
    assert [text for text in legend(figure) if "model=" not in text] == ["stability limit of Adam: 38"]
    limits = [{line.get_ydata()[0] for line in place.lines if len(line.get_ydata()) == 2} for place in axes]
    assert [38.0 in limit for limit in limits] == [False, True, False]
    assert axes[1].get_ylim()[1] > 38


def test_spectra_are_drawn_on_a_logarithmic_axis(probed, tmp_path):
    grid = np.linspace(-1, 9, 11)
    for arm, width in (("bn", 1), ("nobn", 1000)):
        arrays = {"density": np.exp(-grid), "density_grid": width * grid}
        probed(f"model={arm}", [found("curvature", 0, arrays=arrays, lambda_max=9 * width)])
    figure, axes = drawn(tmp_path, "curvature")
    assert (axes[-1].get_yscale(), axes[-1].get_xscale()) == ("log", "symlog")
    assert [line.get_xdata().max() for line in axes[-1].lines] == [9, 9000]
    assert "spectral density: at the last moment, of the first seed" in said(figure)


@pytest.mark.parametrize(("arms", "shown"), [(3, 1), (5, 5)])
def test_ranges_lie_over_each_other_or_have_a_panel_for_each_arm(probed, tmp_path, arms, shown):
    for k in range(arms):
        for seed in range(2):
            low, high = k + 1.0 + seed, k + 2.0 + seed
            founds = [found("along_gradient", step, loss_min=low, loss_max=high, beta=1.0) for step in (0, 10)]
            probed(f"model=arm{k} seed={seed}", founds)
    figure, axes = drawn(tmp_path, "along_gradient")
    assert len(axes) == shown + 1
    bands = [
        path.vertices[:, 1] for place in axes[:shown] for band in place.collections for path in band.get_paths()
    ]
    assert [(band.min(), band.max()) for band in bands] == [(k + 1.5, k + 2.5) for k in range(arms)]
    assert len({place.get_ylim() for place in axes[:shown]}) == 1
    assert "range: over the lengths of the step, its ends medians over the seeds" in said(figure)


def test_percentiles_have_a_panel_for_each_arm_and_one_axis(full):
    figure, axes = drawn(full, "preactivations")
    last, first = axes[:3], axes[3:6]
    assert titles(figure)[:3] == ["model=bn", "model=ln", "model=nobn"]
    assert series(last[0]) == [[1.0] * 3, [2.0] * 3, [3.0] * 3]
    assert series(first[0]) == [[0.0] * 3, [1.0] * 3, [2.0] * 3]
    assert len({place.get_ylim() for place in last}) == 1


def test_the_loss_on_a_line_is_the_median_over_the_seeds(full):
    figure, axes = drawn(full, "line")
    assert [place.get_xlabel()[0] for place in axes] == ["α"] * 4
    assert axes[0].lines[0].get_xdata().tolist() == [-1, -0.5, 0, 0.5, 1]
    assert axes[0].lines[0].get_ydata() == pytest.approx(0.1 + 1.25 * np.array([1, 0.25, 0, 0.25, 1]))
    assert legend(figure) == ["model=bn", "model=ln", "model=nobn"]


def test_a_line_without_arrays_shows_its_numbers(probed, tmp_path):
    probed("model=bn", [found("line", step, rise=1.0) for step in (0, 10)])
    assert [place.get_ylabel() for place in drawn(tmp_path, "line")[1]] == ["rise"]


def test_layers_are_in_the_order_of_the_net(probed, tmp_path):
    shallow = {"zeta__std": 1.0, "alpha__std": 2.0}
    probed("model=bn", [found("activations", step, **shallow) for step in (0, 10)])
    probed("model=nobn", [found("activations", 10, **{"zeta__std": 3.0, "mid__std": 4.0, "alpha__std": 5.0})])
    _, [axes] = drawn(tmp_path, "activations")
    assert series(axes) == [[1.0, 2.0], [3.0, 4.0, 5.0]]
    assert axes.get_xlabel() == "layer, from the input on"


def test_the_same_layers_everywhere_are_named(full):
    _, axes = drawn(full, "activations")
    assert [label.get_text() for label in axes[0].get_xticklabels()] == ["hidden1", "hidden2", "hidden3"]
    assert axes[3].get_ylim() == (-0.03, 1.03)


def test_many_layers_are_counted(probed, tmp_path):
    probed("model=bn", [found("activations", 0, **{f"hidden{i}__std": 1.0 for i in range(12)})])
    _, [axes] = drawn(tmp_path, "activations")
    assert axes.get_xlabel() == "layer, from 1: hidden0 to 12: hidden11"


def test_a_single_layer_is_shown_over_the_steps(probed, tmp_path):
    probed("model=bn", [found("activations", step, hidden1__std=step) for step in (5, 10, 15)])
    figure, [axes] = drawn(tmp_path, "activations")
    assert series(axes) == [[5.0, 10.0, 15.0]]
    assert "hidden1" in said(figure)


def test_a_probe_of_ones_own_shows_headlines_and_what_is_of_no_layer(probed, tmp_path):
    probed("model=bn", [found("mine", step, a=1, out__b=2, out__c=3, headline=("out/b",)) for step in (0, 10)])
    assert [place.get_ylabel() for place in drawn(tmp_path, "mine")[1]] == ["a", "out/b"]


def test_a_probe_of_ones_own_that_measures_layers_alone_shows_these(probed, tmp_path):
    probed("model=bn", [found("mine", step, out__b=2, out__c=3) for step in (0, 10)])
    assert [place.get_ylabel() for place in drawn(tmp_path, "mine")[1]] == ["out/b", "out/c"]


def test_another_probe_under_a_known_name_is_drawn_as_it_is(probed, tmp_path):
    probed("model=bn", [found("curvature", step, mine=1.0) for step in (0, 10)])
    assert [place.get_ylabel() for place in drawn(tmp_path, "curvature")[1]] == ["mine"]


@pytest.mark.parametrize(("top", "expected"), [(5.0, "linear"), (50.0, "log"), (-1.0, "linear"), (1e8, "log")])
def test_the_scale_is_logarithmic_where_the_range_asks_for_it(probed, tmp_path, top, expected):
    probed("model=bn", [found("mine", step, norm=x) for step, x in ((0, 1.0), (10, top))])
    _, [axes] = drawn(tmp_path, "mine", laid_out=True)
    assert axes.get_yscale() == expected
    assert not axes.yaxis.get_minor_ticks() or expected == "linear"
    assert ("10⁸" in [label.get_text() for label in axes.get_yticklabels()]) == (top == 1e8)


@pytest.fixture
def tabled(probed, tmp_path):
    head = ("beta", "beta_lr")
    values = {
        "bn": ((1.0, 0.5), (3.0, 1.5), (8.0, 2.5)),
        "nobn": ((10.0, 1.0), (30.0, math.nan), (math.nan, math.nan)),
    }
    for arm, pairs in values.items():
        for seed, (beta, beta_lr) in enumerate(pairs):
            founds = [found("along_gradient", 0, headline=head, beta=99, beta_lr=99)]
            founds += [found("along_gradient", 10, headline=head, beta=beta, beta_lr=beta_lr, loss=1.0)]
            founds += [found("mine", 10, "frozen", headline=("x",), x=seed)]
            probed(f"model={arm} seed={seed}", founds)
    probed("model=nobn seed=3", [found("mine", 10, "frozen", headline=("x",), x=1e9)], status=Status.DIVERGED)
    return tmp_path


def test_the_table_has_medians_over_seeds_of_what_was_found_last(tabled):
    table = probe_table(*sweep_of(tabled))
    columns = ["probe/along_gradient/batch/beta", "probe/along_gradient/batch/beta_lr", "probe/mine/frozen/x"]
    assert table.columns.tolist() == columns
    assert table.index.tolist() == ["model=bn", "model=nobn"]
    assert table.to_numpy().tolist() == [[3.0, 1.5, 1.0], [20.0, 1.0, 1.0]]


def test_the_printed_tables_name_probe_and_mode(tabled):
    assert printed_probes(*sweep_of(tabled)) == [
        "along_gradient: when it last looked, median over the finished seeds",
        "model  beta (batch)  beta_lr (batch)",
        "bn                3              1.5",
        "nobn             20                1",
        "",
        "mine: when it last looked, median over the finished seeds",
        "model  x (frozen)",
        "bn              1",
        "nobn            1",
    ]


def test_one_seed_is_no_median_and_a_missing_number_a_dash(probed, make_run, tmp_path):
    make_run("model=nobn")
    probed("model=bn", [found("mine", 10, headline=("x",), x=2.0)])
    assert printed_probes(*sweep_of(tmp_path)) == [
        "mine: when it last looked",
        "model  x (batch)",
        "bn             2",
        "nobn           -",
    ]


def test_a_wide_table_is_broken_and_each_part_names_the_arms(probed, tmp_path):
    numbers = {f"a_rather_long_name_{k}": float(k) for k in range(9)}
    probed("model=bn", [ProbeRecord(1, 1, 0.0, "mine", "batch", numbers, headline=tuple(numbers))])
    lines = printed_probes(*sweep_of(tmp_path))
    assert max(map(len, lines)) <= TABLE_LETTERS
    heads = [line for line in lines if line.startswith("arm")]
    assert len(heads) > 1
    assert [name for line in heads for name in line.split()[1::2]] == list(numbers)


def test_the_columns_of_runs_are_in_the_order_of_the_records(tabled):
    _, runs = sweep_of(tabled)
    columns = probe_columns(runs)
    assert columns.index.tolist() == list(range(7))
    beta = columns["probe/along_gradient/batch/beta"]
    assert beta.tolist() == pytest.approx([1, 3, 8, 10, 30, math.nan, math.nan], nan_ok=True)
    assert isinstance(columns, pd.DataFrame)


def test_damaged_files_leave_the_other_runs_drawn(probed, tmp_path, caplog):
    for seed in range(2):
        founds = [one for step in (0, 50) for one in everything(step, 2.0) if one.probe in ("line", "curvature")]
        folder = probed(f"model=bn seed={seed}", founds)
    (folder / "probes.csv").write_text("nonsense\n")
    (folder / "probes.npz").write_bytes(b"nonsense")
    assert drawn(tmp_path, "line")[1]
    assert drawn(tmp_path, "curvature")[1]
    assert "probes.csv is damaged" in caplog.text


def test_pictures_go_into_the_images_tab(probed, tmp_path):
    probed("model=bn", everything(0, 1.0)[:1])
    figures = write_probe_figures(*sweep_of(tmp_path), tmp_path)
    folder = tmp_path / "events"
    folder.mkdir()
    write_images(EventFile(folder), figures)
    events = EventAccumulator(str(folder)).Reload()
    assert events.Tags()["images"] == ["figures/probe_gradient_lipschitz"]
    [image] = events.Images("figures/probe_gradient_lipschitz")
    assert image.encoded_image_string == figures[0].read_bytes()
    assert image.width == 1440


def test_too_many_arms_for_one_figure_are_drawn_panel_by_panel(probed, tmp_path):
    for init in ("default", "kaiming"):
        for model in ("bn", "nobn", "ln", "gn"):
            shift = [found("covariate_shift", step, difference=1 + step) for step in (0, 10)]
            probed(f"net.init={init} model={model} seed=0", shift)
    files = [path.name for path in write_probe_figures(*sweep_of(tmp_path), tmp_path)]
    stems = [f"probe_covariate_shift_init={init}" for init in ("default", "kaiming")]
    assert files == [f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")]
    text = (tmp_path / files[1]).read_text()
    assert "init=default" in text
    assert "kaiming" not in text
