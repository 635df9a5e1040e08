import math
from pathlib import Path

import pytest
from matplotlib import rcParams
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from normlab.report import figures, finalize_sweep
from normlab.report.charts import draw_configurations, write_curves
from normlab.report.figures import drawing, installed_cjk_fonts
from normlab.report.sweep_summary import quartile_curves, summarize_sweep
from normlab.results.result import Status
from normlab.results.sweep import read_sweep

LOSSES = ["train/loss", "val/loss"]


def summary_of(tmp_path):
    return summarize_sweep(read_sweep(tmp_path / "sweep"))


def svg(tmp_path):
    files = write_curves(summary_of(tmp_path), tmp_path)
    assert [path.name for path in files] == ["curves.png", "curves.svg"]
    with Image.open(files[0]) as picture:
        assert picture.width > 1000
    return files[1].read_text()


def drawn_configurations(folder: Path) -> Figure:
    sweep = summary_of(folder)
    curves = quartile_curves(sweep, sweep.curves[sweep.curves["metric"].isin(LOSSES)])
    return draw_configurations(sweep, curves, LOSSES)


def test_figure_labels_configurations_axes_and_band(make_run, tmp_path):
    for seed in range(2):
        make_run(f"model=bn seed={seed}")
        make_run(f"model=nobn seed={seed}")
    text = svg(tmp_path)
    for words in (
        "model=bn",
        "model=nobn",
        "epoch",
        "train/loss",
        "val/loss",
        "training loss",
        "validation loss",
    ):
        assert f">{words}<" in text
    assert "line: median over 2 seeds; band: interquartile range over the seeds" in text


def test_one_seed_has_no_band(make_run, tmp_path):
    make_run("model=bn")
    make_run("model=nobn")
    figure = drawn_configurations(tmp_path)
    assert [len(axes.collections) for axes in figure.axes] == [0, 0]
    assert "one seed per configuration: no spread" in svg(tmp_path)


def test_line_is_median_and_band_is_interquartile_range(make_run, tmp_path):
    for seed, losses in enumerate(([1.0, 2.0], [3.0, 2.5], [5.0, 3.0])):
        make_run(f"model=bn seed={seed}", losses)
    axes = drawn_configurations(tmp_path).axes[1]
    assert axes.lines[0].get_ydata().tolist() == [3.0, 2.5]
    heights = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (2.0, 4.0)


def test_line_ends_with_shortest_run(make_run, tmp_path):
    make_run("model=bn seed=0", [3.0, 2.0, 1.0])
    make_run("model=bn seed=1", [3.0, 2.0])
    axes = drawn_configurations(tmp_path).axes[1]
    assert axes.lines[0].get_xdata().tolist() == [1, 2]
    assert "a line ends with the shortest run" in svg(tmp_path)


def test_configuration_has_same_colour_in_all_panels(make_run, tmp_path):
    for arm in ("bn", "nobn", "ln"):
        make_run(f"model={arm}")
    one, other = drawn_configurations(tmp_path).axes
    assert [line.get_color() for line in one.lines] == [line.get_color() for line in other.lines]
    assert len({line.get_color() for line in one.lines}) == 3


def test_diverged_runs_are_marked_and_keep_axis_limits(make_run, tmp_path):
    make_run("model=bn", [3.0, 2.0, 1.0])
    make_run("model=nobn seed=0", [3.0, 1e30, math.nan], status=Status.DIVERGED)
    make_run("model=nobn seed=1", [math.nan], status=Status.DIVERGED)
    axes = drawn_configurations(tmp_path).axes[1]
    assert axes.get_ylim()[1] < 10
    crosses = [line for line in axes.lines if line.get_marker() == "x"]
    assert [line.get_xdata().tolist() for line in crosses] == [[1]]
    text = svg(tmp_path)
    assert "model=nobn (2 of 2 diverged)" in text
    assert "×: half of the runs diverged" in text


def test_unfinished_runs_alone_are_drawn(make_run, tmp_path):
    make_run("model=bn", [3.0, 9.0, math.nan], status=Status.DIVERGED)
    make_run("model=nobn", [3.0, 90.0], status=Status.STOPPED)
    axes = drawn_configurations(tmp_path).axes[1]
    assert axes.get_ylim()[1] > 90
    assert "model=nobn (1 of 1 stopped)" in svg(tmp_path)


def test_label_counts_are_integers(make_run, tmp_path):
    make_run("seed=0")
    make_run("seed=1", status=Status.FAILED)
    assert ">model=bn (1 of 2 failed)<" in svg(tmp_path)


def test_other_metric_has_own_panel(make_run, tmp_path):
    make_run("model=bn", [0.1, 0.9], metric="val/acc", direction="max", recorded="val/acc")
    assert ">val/acc<" in svg(tmp_path)


@pytest.mark.parametrize(
    ("losses", "scale"),
    [([100.0, 1.0], "log"), ([5.0, 1.0], "linear"), ([100.0, -1.0], "linear"), ([1e6, 1.0], "log")],
)
def test_axis_is_logarithmic_from_factor_ten(make_run, tmp_path, losses, scale):
    make_run("model=bn", losses)
    assert drawn_configurations(tmp_path).axes[1].get_yscale() == scale


def test_legend_of_twenty_entries_is_complete_below_panels(make_run, tmp_path):
    for model in ("bn", "bn_formula", "bn_torch", "nobn"):
        for lr in ("0.0001", "0.001", "0.01", "0.1", "1"):
            make_run(f"model={model} optimizer.lr={lr}")
    sweep = summary_of(tmp_path)
    with drawing():
        figure = drawn_configurations(tmp_path)
        FigureCanvasAgg(figure).draw()
    legend = figure.legends[0].get_window_extent()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        name.replace("optimizer.", "") for name in sweep.configurations.index
    ]
    assert all(axes.get_tightbbox().y0 > legend.y1 for axes in figure.axes)
    assert figure.bbox.x0 <= legend.x0 < legend.x1 <= figure.bbox.x1


def test_svg_is_reproducible(make_run, tmp_path):
    make_run("model=bn")
    assert svg(tmp_path) == svg(tmp_path)


def test_no_figure_without_curves(make_run, tmp_path):
    (make_run("model=bn") / "curves.csv").unlink()
    assert write_curves(summary_of(tmp_path), tmp_path) == []


def test_single_epoch_is_drawn_as_point(make_run, tmp_path):
    make_run("model=bn", [1.0])
    assert drawn_configurations(tmp_path).axes[1].lines[0].get_marker() == "o"


def test_letters_without_font_raise_no_warning(make_run, tmp_path, recwarn):
    for model in ("批归一", "nobn"):
        for seed in range(2):
            make_run(f"model={model} seed={seed}")
    finalize_sweep(tmp_path / "sweep")
    assert not recwarn.list
    assert "批归一" in (tmp_path / "sweep/curves.svg").read_text()
    assert "批归一" in (tmp_path / "sweep/report/index.html").read_text()
    assert "批归一" in (tmp_path / "sweep/table.csv").read_text()


def test_installed_cjk_fonts_are_used(monkeypatch):
    monkeypatch.setattr(figures, "installed_cjk_fonts", installed_cjk_fonts.__wrapped__)
    monkeypatch.setattr(figures.font_manager, "get_font_names", lambda: ["DejaVu Sans", "SimHei", "Yu Gothic"])
    with drawing():
        assert rcParams["font.family"] == ["sans-serif", "Yu Gothic", "SimHei"]
