"""Properties of the figures of all probes: files, captions, medians, gaps, unfinished runs, axes, panels."""

import math

import numpy as np
import pytest
from PIL import Image
from probe_drawings import (
    NAMES,
    all_measurements,
    caption_text,
    dots,
    draw_probe,
    legend_texts,
    measurement,
    panel_titles,
    series,
    summary_of,
    write_probe_figures,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from normlab.report.console import printed_probes
from normlab.report.figures import COLOURS
from normlab.report.probe_data import measurements, probe_table
from normlab.report.tensorboard import image_events
from normlab.results.events import replace_event_file
from normlab.results.result import Status
from normlab.results.series import ProbeRecord


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
