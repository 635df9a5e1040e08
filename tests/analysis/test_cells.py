import math

import numpy as np
import pandas as pd

from normlab.analysis.cells import arranged, cells_of
from normlab.analysis.design import Design

KEYS = ["data.batch_size", "model", "optimizer.lr"]


def table(*rows, seeds=(0, 1), tuning=()):
    frame = pd.DataFrame(rows, columns=[*KEYS, "seed", "value"]).astype({"seed": "Int64", "value": float})
    arms = tuple(sorted(set(frame["model"])))
    design = Design(
        "model", arms, arms[0], ("optimizer.lr",), ("data.batch_size",), "val/loss", "max", tuning, seeds
    )
    return cells_of(frame.assign(status="finished"), design)


def test_a_row_per_setting_in_natural_order_and_a_column_per_seed():
    cells = table(
        ("100", "bn", "0.1", 1, 5.0),
        ("20", "ln", "0.1", 0, 4.0),
        ("20", "bn", "1e-2", 0, 3.0),
        ("20", "bn", "0.1", 1, 2.0),
    )
    assert [(*setting.panel, setting.arm, *setting.tuned) for setting in cells.settings] == [
        ("20", "bn", "1e-2"),
        ("20", "bn", "0.1"),
        ("20", "ln", "0.1"),
        ("100", "bn", "0.1"),
    ]
    np.testing.assert_array_equal(cells.values, [[3, np.nan], [np.nan, 2], [4, np.nan], [np.nan, 5]])
    np.testing.assert_array_equal(cells.losses, -cells.values)
    assert list(cells.groups()) == [(("20",), "bn", [0, 1]), (("20",), "ln", [2]), (("100",), "bn", [3])]
    assert cells.panel(("20",)) == "data.batch_size=20"


def test_runs_that_repeat_a_seed_count_once_with_their_mean():
    cells = table(("1", "bn", "0.1", 0, 2.0), ("1", "bn", "0.1", 0, 4.0), ("1", "bn", "0.1", 1, 5.0))
    assert cells.values.tolist() == [[3.0, 5.0]]


def test_one_diverged_run_among_repeated_ones_makes_them_diverged():
    assert table(("1", "bn", "0.1", 0, 2.0), ("1", "bn", "0.1", 0, -math.inf)).values[0, 0] == -math.inf


def test_a_run_without_a_seed_or_with_another_is_nowhere():
    cells = table(("1", "bn", "0.1", None, 2.0), ("1", "bn", "0.1", 7, 2.0), ("1", "bn", "0.1", 0, 1.0))
    np.testing.assert_array_equal(cells.values, [[1.0, np.nan]])
    assert cells.column.tolist() == [-1, -1, 0]


def test_the_columns_of_tuning_and_report():
    cells = table(*(("1", "bn", "0.1", seed, 0.0) for seed in range(3)), seeds=(1, 2), tuning=(0,))
    assert (cells.tuning.tolist(), cells.report.tolist()) == ([0], [1, 2])


def test_an_unknown_number_does_not_spoil_the_mean_of_known_ones():
    found = arranged(np.array([1.0, np.nan, 3.0]), np.array([0, 0, 0]), np.array([0, 0, 0]), (1, 2))
    np.testing.assert_array_equal(found, [[2.0, np.nan]])
