import pandas as pd
import pytest

from normlab.records.sweep import read_sweep
from normlab.report.compared import comparisons, interval, printed, verdict
from normlab.report.notes import notes
from normlab.report.overview import overview


@pytest.fixture
def compared(tmp_path):
    def table() -> pd.DataFrame:
        records = read_sweep(tmp_path / "sweep")
        return comparisons(overview(records), records)

    return table


def test_each_arm_is_held_against_the_one_that_differs_in_its_normalizer_alone(make_run, compared):
    for lr in ("0.1", "0.01"):
        for seed in range(8):
            make_run(f"model=nobn optimizer.lr={lr} seed={seed}", losses=(4.0, 2.0 + seed))
            make_run(f"model=bn optimizer.lr={lr} seed={seed}", losses=(4.0, (2.0 + seed) * float(lr)))
    table = compared()
    assert table["arm"].tolist() == ["model=bn, optimizer.lr=0.01", "model=bn, optimizer.lr=0.1"]
    assert table["baseline"].tolist() == ["model=nobn, optimizer.lr=0.01", "model=nobn, optimizer.lr=0.1"]
    assert table["ratio"].tolist() == pytest.approx([0.01, 0.1])
    assert table["seeds"].tolist() == [8, 8]
    lines = printed(table)
    assert lines[0].split() == ["against", "nobn", "of", "ratio", "95", "%", "interval", "smaller", "verdict"]
    assert lines[1].split()[4:] == ["0.01", "0.01", "to", "0.01", "8/8", "smaller,", "p", "=", "0.0078"]


def test_only_seeds_that_both_have_are_compared_whatever_their_order(make_run, compared):
    for seed in (3, 1, 2):
        make_run(f"model=nobn seed={seed}", losses=(float(seed),))
    for seed in (2, 5, 1):
        make_run(f"model=bn seed={seed}", losses=(2.0 * seed,))
    (row,) = compared().to_dict("records")
    assert row["seeds"] == 2
    assert row["ratio"] == pytest.approx(2.0)


@pytest.mark.parametrize("models", [["bn"], ["bn", "ln"], ["nobn"]])
def test_without_a_net_that_has_none_there_is_nothing_to_compare_with(make_run, compared, models):
    for model in models:
        make_run(f"model={model} seed=0")
    table = compared()
    assert table.empty
    assert list(table)[:3] == ["arm", "baseline", "quantity"]
    assert printed(table) == []


def test_few_seeds_are_in_the_file_and_not_printed(make_run, compared):
    for model in ("bn", "nobn"):
        make_run(f"model={model} seed=0")
    assert len(compared()) == 1
    assert printed(compared()) == []


def test_words_of_a_row():
    row = {
        "quantity": "last val/loss",
        "untrained": False,
        "seeds": 24,
        "p": 0.2,
        "smaller": 15,
        "low": 0.9123,
        "high": 1.2,
    }
    assert verdict(row) == "no difference shown, p = 0.2"
    assert verdict({**row, "p": 0.01}) == "smaller, p = 0.01"
    assert interval(row) == "0.912 to 1.2"
    assert interval({**row, "low": float("nan")}) == "-"


def test_an_arm_at_chance_is_untrained_and_its_landscape_gets_no_verdict(make_run, compared, tmp_path):
    found = "probe/along_gradient/batch/beta"
    for seed in range(8):
        make_run(f"model=nobn seed={seed}", losses=(4.0, 3.99), probes={found: 2.0 + seed}, chance=2.0)
        make_run(f"model=bn seed={seed}", losses=(4.0, 1.0), probes={found: 1.0 + seed}, chance=2.0)
    records = read_sweep(tmp_path / "sweep")
    sweep = overview(records)
    assert sweep.arms["untrained"].to_dict() == {"model=bn": False, "model=nobn": True}
    assert "        model=nobn" in notes(sweep)
    assert [verdict(row) for row in compared().to_dict("records")] == ["smaller, p = 0.0078", "one is untrained"]
