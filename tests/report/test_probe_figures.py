import math

import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from normlab.report.console import printed_probes
from normlab.report.figures import COLOURS, drawing, save
from normlab.report.probe_data import measurements, probe_table
from normlab.report.probe_figures import FIGURES, draw_plain_numbers, probe_figures
from normlab.report.sweep_summary import summarize_sweep
from normlab.report.tensorboard import image_events
from normlab.results.events import replace_event_file
from normlab.results.result import Status
from normlab.results.series import ProbeRecord
from normlab.results.sweep import read_sweep

LIPSCHITZ = {"q25": 50.0, "q75": 200.0, "max": 400.0, "unreliable": 0.0}
CURVATURE = {"lambda_max": 4.0, "dhd_lambda_max": 8.0, "stability": 2.0, "indicative": 0.0}


def measurement(probe, step, mode="batch", arrays=None, headline=(), **numbers):
    values = {name.replace("__", "/"): float(x) for name, x in numbers.items()}
    return ProbeRecord(step // 10, step, 0.0, probe, mode, values, arrays or {}, headline)


def summary_of(tmp_path):
    return summarize_sweep(read_sweep(tmp_path / "sweep"))


def draw_probe(tmp_path, name, *, laid_out=False):
    """Draw the figure of a probe; return it and its axes, or None twice without values."""
    [probe] = [probe for probe in measurements(summary_of(tmp_path)) if probe.name == name]
    with drawing():
        figure = FIGURES.get(name, draw_plain_numbers)(probe) or draw_plain_numbers(probe)
        if laid_out:
            figure.draw_without_rendering()
    return figure, figure and figure.axes


def write_probe_figures(sweep, folder):
    drawn = probe_figures(sweep)
    return [save(figure, folder / f"{stem}.{kind}") for stem, figure, _ in drawn for kind in ("png", "svg")]


def caption_text(figure):
    titles = [legend.get_title() for legend in figure.legends]
    return " ".join(text.get_text() for text in [*figure.texts, *titles]).replace("\n", " ")


def legend_texts(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def panel_titles(figure):
    return [panel.get_title(loc="left") for panel in figure.axes]


def series(axes):
    """Return the values of the non-empty lines of a panel."""
    return [np.asarray(line.get_ydata()).tolist() for line in axes.lines if len(line.get_ydata())]


def dots(axes):
    """Return the positions of the dots of a panel, with a flag for hollow ones."""
    return [
        (x, round(y), bool((face == 1).all()))
        for dots in axes.collections
        if isinstance(dots, PathCollection)
        for (x, y), face in zip(dots.get_offsets().tolist(), dots.get_facecolors()[:, :3], strict=True)
    ]


def all_measurements(step, scale, modes=("batch", "frozen")):
    """Return measurements of all probes at one step."""
    grid, alphas = np.linspace(-1, 5 * scale, 20), np.linspace(-1, 1, 5)
    measurements = []
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
        measurements += [
            measurement("gradient_lipschitz", step, mode, median=100 * scale, **LIPSCHITZ),
            measurement(
                "along_gradient", step, mode, **ranges, predictiveness_max=scale, beta=scale, beta_lr=scale
            ),
            measurement(
                "covariate_shift", step, mode, difference=scale, relative=0.5, cosine=0.9, out__cosine=0.9
            ),
            measurement("preactivations", step, mode, **percentiles),
            measurement("curvature", step, mode, spectrum, lambda_max_lr=scale / 5, **CURVATURE),
            measurement("activations", step, mode, **layers),
            measurement("line", step, mode, losses, rise=scale),
            measurement("of_a_user", step, mode, norm=scale, hidden1__norm=scale),
        ]
    return measurements


NAMES = [*FIGURES, "of_a_user"]


@pytest.fixture
def full(probed, tmp_path):
    for k, arm in enumerate(("bn", "ln", "nobn")):
        for seed in range(2):
            measurements = [one for step in (0, 50, 100) for one in all_measurements(step, 1 + k + seed / 2)]
            probed(f"model={arm} seed={seed}", measurements)
    return tmp_path


def test_each_probe_has_png_and_svg(probed, tmp_path):
    probed("model=bn", all_measurements(0, 2.0, ["frozen"]))
    files = write_probe_figures(summary_of(tmp_path), tmp_path)
    assert {path.name for path in files} == {f"probe_{name}.{kind}" for name in NAMES for kind in ("png", "svg")}
    for path in files:
        if path.suffix == ".png":
            with Image.open(path) as picture:
                assert picture.width == 1440
        else:
            assert "frozen statistics" in path.read_text()


def test_svg_is_reproducible(probed, tmp_path):
    probed("model=bn", all_measurements(0, 1.0)[:1])
    _, one = write_probe_figures(summary_of(tmp_path), tmp_path)
    text = one.read_text()
    write_probe_figures(summary_of(tmp_path), tmp_path)
    assert one.read_text() == text


def test_no_figures_without_measurements(make_run, tmp_path):
    make_run("model=bn")
    assert write_probe_figures(summary_of(tmp_path), tmp_path) == []
    sweep = summary_of(tmp_path)
    assert printed_probes(sweep) == []
    assert probe_table(sweep).shape == (1, 0)
    assert sweep.probe_numbers.shape == (1, 0)


@pytest.mark.parametrize("name", NAMES)
def test_single_run_is_drawn(probed, tmp_path, name):
    steps = (0,) if name in NAMES[::2] else (0, 50)
    probed(
        "model=bn", [one for step in steps for one in all_measurements(step, 1.0, ["batch"]) if one.probe == name]
    )
    figure, axes = draw_probe(tmp_path, name)
    assert any(series(panel) or dots(panel) for panel in axes)
    assert "one seed per configuration: no spread" in caption_text(figure)


@pytest.mark.parametrize("name", NAMES)
def test_elements_do_not_overlap_or_leave_figure(probed, tmp_path, name):
    for k in range(5):
        for seed in range(2):
            status = Status.DIVERGED if (k, seed) == (1, 1) else Status.FINISHED
            measurements = [one for step in (0, 5000) for one in all_measurements(step, 10.0**k, ["batch"])]
            measurements = [one for one in measurements if one.probe == name]
            probed(f"model=arm{k} optimizer.lr=0.00{k} seed={seed}", measurements, status=status)
    figure, axes = draw_probe(tmp_path, name, laid_out=True)
    boxes = [panel.get_tightbbox() for panel in axes] + [text.get_window_extent() for text in figure.texts]
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
def test_unfinished_runs_alone_are_counted_in_labels(probed, tmp_path, name):
    for seed, status in enumerate((Status.DIVERGED, Status.FAILED, Status.STOPPED)):
        measurements = [
            one for step in (0, 50) for one in all_measurements(step, 2.0, ["batch"]) if one.probe == name
        ]
        probed(f"model=bn seed={seed}", measurements, status=status)
    figure, _ = draw_probe(tmp_path, name)
    assert figure is None or "1 of 3 diverged" in " ".join([*legend_texts(figure), *panel_titles(figure)])


@pytest.mark.parametrize("name", NAMES)
def test_no_figure_without_finite_values(probed, tmp_path, name):
    nothing, value = [], math.inf if name in NAMES[::2] else math.nan
    for one in all_measurements(0, 2.0):
        arrays = {key: np.full_like(array, value) for key, array in one.arrays.items()}
        numbers = dict.fromkeys(one.numbers, value)
        nothing += [ProbeRecord(1, 0, 0.0, one.probe, one.mode, numbers, arrays)] if one.probe == name else []
    probed("model=bn", nothing)
    assert draw_probe(tmp_path, name) == (None, None)


def test_line_is_median_and_band_is_interquartile_range(probed, tmp_path):
    for seed, x in enumerate((1.0, 2.0, 3.0, 4.0, 25.0)):
        probed(f"model=bn seed={seed}", [measurement("of_a_user", step, norm=x + step) for step in (0, 10)])
    figure, [axes] = draw_probe(tmp_path, "of_a_user")
    assert series(axes) == [[3.0, 13.0]]
    heights = axes.collections[0].get_paths()[0].vertices
    assert sorted(set(map(tuple, heights.tolist()))) == [(0.0, 2.0), (0.0, 4.0), (10.0, 12.0), (10.0, 14.0)]
    assert "line: median over 5 seeds; band: interquartile range over the seeds" in caption_text(figure)
    assert axes.get_xlabel() == "optimizer steps"
    assert legend_texts(figure) == ["model=bn"]


def test_nonfinite_value_is_gap(probed, tmp_path):
    values = (1.0, math.nan, 3.0, math.inf, 5.0)
    probed("model=bn", [measurement("of_a_user", 10 * k, norm=x) for k, x in enumerate(values)])
    _, [axes] = draw_probe(tmp_path, "of_a_user")
    [line] = series(axes)
    np.testing.assert_array_equal(line, [1.0, math.nan, 3.0, math.nan, 5.0])


def test_steps_of_few_seeds_are_skipped_without_gap(probed, tmp_path):
    for seed in range(3):
        steps = (0, 10, 10 + seed + 1, 20)
        probed(f"model=bn seed={seed}", [measurement("of_a_user", step, norm=step) for step in steps])
    _, [axes] = draw_probe(tmp_path, "of_a_user")
    assert series(axes) == [[0.0, 10.0, 20.0]]


def test_repeated_seed_counts_once(probed, tmp_path):
    for copy, x in enumerate((1.0, 9.0, 9.0)):
        probed(f"model=bn seed={min(copy, 1)} +copy={copy}", [measurement("of_a_user", 0, norm=x, other=x)])
    sweep = summary_of(tmp_path)
    [probe] = measurements(sweep)
    assert sum(map(len, probe.finished.values())) == (3 if len(sweep.configurations) > 1 else 2)


def test_diverged_run_is_thin_and_keeps_median_and_axis(probed, tmp_path):
    for seed in range(2):
        probed(
            f"model=bn seed={seed}", [measurement("of_a_user", step, norm=1 + step / 10) for step in (0, 10, 20)]
        )
    lost = [measurement("of_a_user", step, norm=x) for step, x in ((0, 1.0), (10, 1e30))]
    probed("model=bn seed=2", lost, status=Status.DIVERGED)
    figure, [axes] = draw_probe(tmp_path, "of_a_user")
    median, thin, cross = axes.lines
    assert median.get_ydata().tolist() == [1.0, 2.0, 3.0]
    assert (thin.get_linewidth(), thin.get_ydata().tolist()) == (0.7, [1.0, 1e30])
    assert (cross.get_marker(), cross.get_xdata().tolist()) == ("x", [10])
    assert axes.get_ylim()[1] < 10
    assert legend_texts(figure) == ["model=bn (1 of 3 diverged)"]
    assert "thin line: unfinished run; ×: divergence" in caption_text(figure)


def test_colour_matches_curves_if_others_are_not_probed(probed, make_run, tmp_path):
    make_run("model=bn")
    probed("model=nobn", [measurement("of_a_user", step, norm=1.0) for step in (0, 10)])
    figure, [axes] = draw_probe(tmp_path, "of_a_user")
    assert axes.lines[0].get_color() == COLOURS[1]
    assert legend_texts(figure) == ["model=nobn"]


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
    assert [text for text in legend_texts(figure) if "model=" not in text] == ["stability limit of Adam: 38"]
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


@pytest.mark.parametrize(("top", "expected"), [(5.0, "linear"), (50.0, "log"), (-1.0, "linear"), (1e8, "log")])
def test_axis_is_logarithmic_from_factor_ten(probed, tmp_path, top, expected):
    probed("model=bn", [measurement("mine", step, norm=x) for step, x in ((0, 1.0), (10, top))])
    _, [axes] = draw_probe(tmp_path, "mine", laid_out=True)
    assert axes.get_yscale() == expected
    assert not axes.yaxis.get_minor_ticks() or expected == "linear"
    assert ("10⁸" in [label.get_text() for label in axes.get_yticklabels()]) == (top == 1e8)


def test_damaged_files_do_not_affect_other_runs(probed, tmp_path, caplog):
    for seed in range(2):
        measurements = [
            one for step in (0, 50) for one in all_measurements(step, 2.0) if one.probe in ("line", "curvature")
        ]
        folder = probed(f"model=bn seed={seed}", measurements)
    (folder / "probes.csv").write_text("nonsense\n")
    (folder / "probes.npz").write_bytes(b"nonsense")
    assert draw_probe(tmp_path, "line")[1]
    assert draw_probe(tmp_path, "curvature")[1]
    assert "probes.csv is damaged" in caplog.text


def test_figures_are_in_images_tab(probed, tmp_path):
    probed("model=bn", all_measurements(0, 1.0)[:1])
    figures = write_probe_figures(summary_of(tmp_path), tmp_path)
    folder = tmp_path / "events"
    replace_event_file(folder, image_events(figures))
    events = EventAccumulator(str(folder)).Reload()
    assert events.Tags()["images"] == ["~figures/probe_gradient_lipschitz"]
    [image] = events.Images("~figures/probe_gradient_lipschitz")
    assert image.encoded_image_string == figures[0].read_bytes()
    assert image.width == 1440


def test_many_configurations_have_figure_per_panel(probed, tmp_path):
    for init in ("default", "kaiming"):
        for model in ("bn", "nobn", "ln", "gn"):
            shift = [measurement("covariate_shift", step, difference=1 + step) for step in (0, 10)]
            probed(f"net.init={init} model={model} seed=0", shift)
    files = [path.name for path in write_probe_figures(summary_of(tmp_path), tmp_path)]
    stems = [f"probe_covariate_shift_init={init}" for init in ("default", "kaiming")]
    assert files == [f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")]
    text = (tmp_path / files[1]).read_text()
    assert "init=default" in text
    assert "kaiming" not in text
