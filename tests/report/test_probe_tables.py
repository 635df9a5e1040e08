"""Medians of probes per configuration, in data frames and as printed."""

import math

import pandas as pd
import pytest

from normlab.report.console import TABLE_LETTERS, printed_probes
from normlab.report.probe_data import probe_table
from normlab.report.sweep_summary import summarize_sweep
from normlab.results.result import Status
from normlab.results.series import ProbeRecord
from normlab.results.sweep import read_sweep


def measurement(probe, step, mode="batch", headline=(), **numbers):
    return ProbeRecord(
        step // 10, step, 0.0, probe, mode, {k: float(x) for k, x in numbers.items()}, headline=headline
    )


def summary_of(tmp_path):
    return summarize_sweep(read_sweep(tmp_path / "sweep"))


@pytest.fixture
def tabled(probed, tmp_path):
    head = ("beta", "beta_lr")
    values = {
        "bn": ((1.0, 0.5), (3.0, 1.5), (8.0, 2.5)),
        "nobn": ((10.0, 1.0), (30.0, math.nan), (math.nan, math.nan)),
    }
    for arm, pairs in values.items():
        for seed, (beta, beta_lr) in enumerate(pairs):
            measurements = [measurement("along_gradient", 0, headline=head, beta=99, beta_lr=99)]
            measurements += [
                measurement("along_gradient", 10, headline=head, beta=beta, beta_lr=beta_lr, loss=1.0)
            ]
            measurements += [measurement("mine", 10, "frozen", headline=("x",), x=seed)]
            probed(f"model={arm} seed={seed}", measurements)
    probed(
        "model=nobn seed=3", [measurement("mine", 10, "frozen", headline=("x",), x=1e9)], status=Status.DIVERGED
    )
    return tmp_path


def test_table_has_medians_of_last_measurements(tabled):
    table = probe_table(summary_of(tabled))
    columns = ["probe/along_gradient/batch/beta", "probe/along_gradient/batch/beta_lr", "probe/mine/frozen/x"]
    assert table.columns.tolist() == columns
    assert table.index.tolist() == ["model=bn", "model=nobn"]
    assert table.to_numpy().tolist() == [[3.0, 1.5, 1.0], [20.0, 1.0, 1.0]]


def test_printed_tables_name_probe_and_mode(tabled):
    assert printed_probes(summary_of(tabled)) == [
        "along_gradient: last measurement, median over finished runs",
        "model  beta (batch)  beta_lr (batch)",
        "bn                3              1.5",
        "nobn             20                1",
        "",
        "mine: last measurement, median over finished runs",
        "model  x (frozen)",
        "bn              1",
        "nobn            1",
    ]


def test_missing_number_is_dash_and_one_seed_no_median(probed, make_run, tmp_path):
    make_run("model=nobn")
    probed("model=bn", [measurement("mine", 10, headline=("x",), x=2.0)])
    assert printed_probes(summary_of(tmp_path)) == [
        "mine: last measurement",
        "model  x (batch)",
        "bn             2",
        "nobn           -",
    ]


def test_wide_table_is_split_with_configuration_column(probed, tmp_path):
    numbers = {f"a_rather_long_name_{k}": float(k) for k in range(9)}
    probed("model=bn", [ProbeRecord(1, 1, 0.0, "mine", "batch", numbers, headline=tuple(numbers))])
    lines = printed_probes(summary_of(tmp_path))
    assert max(map(len, lines)) <= TABLE_LETTERS
    heads = [line for line in lines if line.startswith("configuration")]
    assert len(heads) > 1
    assert [name for line in heads for name in line.split()[1::2]] == list(numbers)


def test_probe_columns_keep_order_of_records(tabled):
    columns = summary_of(tabled).probe_numbers
    assert columns.index.tolist() == list(range(7))
    beta = columns["probe/along_gradient/batch/beta"]
    assert beta.tolist() == pytest.approx([1, 3, 8, 10, 30, math.nan, math.nan], nan_ok=True)
    assert isinstance(columns, pd.DataFrame)
