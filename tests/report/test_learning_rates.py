import numpy as np
import pytest

from normlab.records.result import Status
from normlab.records.sweep import read_sweep
from normlab.report import learning_rates
from normlab.report.learning_rates import panels_of, write_learning_rates
from normlab.report.overview import overview

RATES = ("0.01", "0.1", "1.0")


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Return what draws the sweep, and returns the names of the files and the figure."""
    kept = []

    def save(figure, path):
        kept.append(figure)
        return path

    monkeypatch.setattr(learning_rates, "save", save)

    def draw():
        sweep = overview(read_sweep(tmp_path / "sweep"))
        files = write_learning_rates(sweep, tmp_path)
        return [path.name for path in files], kept[-1] if files else None

    return draw


def test_a_line_is_the_median_over_the_seeds_and_a_diverged_rate_a_cross(make_run, drawn):
    for model in ("bn", "nobn"):
        for lr in RATES:
            for seed in range(3):
                lost = model == "nobn" and lr == "1.0"
                status = Status.DIVERGED if lost else Status.FINISHED
                make_run(f"model={model} optimizer.lr={lr} seed={seed}", (9.0, float(lr) + seed), status=status)
    names, figure = drawn()
    assert names == ["learning_rates.png", "learning_rates.svg"]
    (axes,) = figure.axes
    bn, nobn, *marks = axes.get_lines()
    assert bn.get_xdata().tolist() == [0.01, 0.1, 1.0]
    assert bn.get_ydata().tolist() == pytest.approx([1.01, 1.1, 2.0])
    assert np.isnan(nobn.get_ydata()).tolist() == [False, False, True]
    assert [len(mark.get_xdata()) for mark in marks] == [0, 1]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["bn", "nobn"]


def test_other_settings_are_panels_in_their_order(make_run, tmp_path, drawn):
    for hidden in ("[100,100,100]", "[20]", "[100,100]"):
        for lr in RATES:
            make_run(f"model=bn net.hidden={hidden} optimizer.lr={lr} seed=0")
    sweep = overview(read_sweep(tmp_path / "sweep"))
    assert list(panels_of(sweep)) == ["hidden=1 × 20", "hidden=2 × 100", "hidden=3 × 100"]
    _, figure = drawn()
    assert [axes.get_title() for axes in figure.axes] == list(panels_of(sweep))
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    assert [bool(axes.get_ylabel()) for axes in figure.axes] == [True, False, False]
    assert not figure.legends


@pytest.mark.parametrize("rates", [("0.1",), ("0.1", "0.01")])
def test_two_learning_rates_make_no_figure(make_run, drawn, rates):
    for lr in rates:
        make_run(f"model=bn optimizer.lr={lr} seed=0")
    assert drawn() == ([], None)


def test_where_nothing_finished_there_is_no_figure(make_run, drawn):
    for lr in RATES:
        make_run(f"model=bn optimizer.lr={lr} seed=0", status=Status.FAILED)
    assert drawn() == ([], None)
