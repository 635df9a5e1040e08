import pandas as pd
import pytest

from normlab.report.console import footnotes, ratio_lines
from normlab.report.probe_data import probe_ratios
from normlab.report.report_data import ReportOptions, build_report_data
from normlab.report.sweep_summary import summarize_sweep
from normlab.results.sweep import read_sweep

BETA = "probe/along_gradient/batch/beta"


@pytest.fixture
def ratios(tmp_path):
    def table() -> pd.DataFrame:
        return probe_ratios(summarize_sweep(read_sweep(tmp_path / "sweep")))

    return table


def test_baseline_differs_in_normalizer_alone(make_run, ratios):
    for lr in ("0.1", "0.01"):
        for seed in range(8):
            make_run(f"model=nobn optimizer.lr={lr} seed={seed}", probes={BETA: 2.0 + seed})
            make_run(f"model=bn optimizer.lr={lr} seed={seed}", probes={BETA: (2.0 + seed) * float(lr)})
    table = ratios()
    assert table["arm"].tolist() == ["model=bn, optimizer.lr=0.01", "model=bn, optimizer.lr=0.1"]
    assert table["baseline"].tolist() == ["model=nobn, optimizer.lr=0.01", "model=nobn, optimizer.lr=0.1"]
    assert table["ratio"].tolist() == pytest.approx([0.01, 0.1])
    assert table["seeds"].tolist() == [8, 8]
    lines = ratio_lines(table)
    assert lines[0].split() == [
        "configuration",
        "quantity",
        "ratio",
        "to",
        "nobn",
        "(95",
        "%",
        "interval)",
        "seeds",
        "below",
        "nobn",
    ]
    assert lines[1].split()[2:] == ["along_gradient/batch/beta", "0.01", "(0.01", "to", "0.01)", "8/8"]


def test_ratio_uses_shared_seeds_with_finite_values(make_run, ratios):
    for seed in (3, 1, 2, 6):
        make_run(f"model=nobn seed={seed}", probes={BETA: float(seed)})
    for seed in (2, 5, 1):
        make_run(f"model=bn seed={seed}", probes={BETA: 2.0 * seed})
    make_run("model=bn seed=6", probes={BETA: float("inf")})
    (row,) = ratios().to_dict("records")
    assert row["seeds"] == 2
    assert row["ratio"] == pytest.approx(2.0)


def test_flags_have_no_ratio(make_run, ratios):
    for model in ("bn", "nobn"):
        make_run(
            f"model={model} seed=0", probes={"probe/gradient_lipschitz/batch/unreliable": float(model == "bn")}
        )
    assert ratios().empty


@pytest.mark.parametrize("models", [["bn"], ["bn", "ln"], ["nobn"]])
def test_no_ratios_without_pair_with_nobn(make_run, ratios, models):
    for model in models:
        make_run(f"model={model} seed=0", probes={BETA: 1.5})
    table = ratios()
    assert table.empty
    assert list(table)[:3] == ["arm", "baseline", "quantity"]
    assert ratio_lines(table) == []


def test_ratio_of_few_seeds_is_not_printed(make_run, ratios):
    for model in ("bn", "nobn"):
        make_run(f"model={model} seed=0", probes={BETA: 1.5})
    assert len(ratios()) == 1
    assert ratio_lines(ratios()) == []


def test_ratio_to_untrained_configuration_is_not_printed(make_run, ratios, tmp_path):
    for seed in range(8):
        make_run(f"model=nobn seed={seed}", losses=(4.0, 3.99), probes={BETA: 2.0 + seed}, chance=2.0)
        make_run(f"model=bn seed={seed}", losses=(4.0, 1.0), probes={BETA: 1.0 + seed}, chance=2.0)
    records = read_sweep(tmp_path / "sweep")
    sweep = build_report_data(records, ReportOptions()).summary
    assert sweep.configurations["untrained"].to_dict() == {"model=bn": 0, "model=nobn": 8}
    assert sweep.configurations["mostly_untrained"].to_dict() == {"model=bn": False, "model=nobn": True}
    assert any(line.startswith("untrained: finished with a training loss") for line in footnotes(sweep))
    assert "one is untrained" in ratio_lines(ratios())[1]
