import math

import numpy as np
import pandas as pd
import pytest

INF = math.inf


@pytest.fixture
def found(sweep, arm, frame):
    """Return the comparison of the training losses of bn and nobn at steps 10, 20, … 100."""

    def table(losses, lost=(), **columns):
        runs = frame([*arm("bn", [1.0] * 6), *arm("nobn", [1.0] * 6)])
        runs.loc[list(lost), ["status", "validation", "test/loss"]] = ["diverged", INF, INF]
        curves = pd.DataFrame(
            [(run, 10 * place, own) for run, values in enumerate(losses) for place, own in enumerate(values, 1)],
            columns=["run", "step", "value"],
        )
        return sweep(runs, train_curves=curves).fixed_steps

    return table


def test_ratio_at_shares_of_steps(found):
    falling = np.linspace(1.0, 0.1, 10)
    rows = found([falling] * 6 + [2 * falling] * 6)
    assert rows["step"].tolist() == [10, 20, 50, 100]
    assert rows["arm_loss"].tolist() == pytest.approx([1.0, 0.9, 0.6, 0.1])
    assert rows["baseline_loss"].tolist() == pytest.approx([2.0, 1.8, 1.2, 0.2])
    for name in ("estimate", "estimate_low", "estimate_high"):
        assert rows[name].tolist() == pytest.approx([0.5] * 4)
    assert rows["replicates"].tolist() == [6] * 4


def test_last_measurement_up_to_step_counts(found):
    rows = found([[1.0, 0.5]] * 6 + [[1.0] * 10] * 6)
    assert rows["arm_loss"].tolist() == [1.0, 0.5, 0.5, 0.5]


def test_diverged_run_is_infinite_after_last_measurement(found):
    rows = found([[1.0, 0.5]] + [[1.0] * 10] * 11, lost=[0])
    # At step 10 it was measured again later; at step 20 it is lost: one of six, 17 %, leaves an estimate.
    assert rows["estimate_high"].tolist() == [1.0, INF, INF, INF]
    assert rows["replicates"].tolist() == [6] * 4


def test_no_curves_give_empty_table(sweep, arm):
    assert sweep(arm("bn", [1.0] * 6), arm("nobn", [1.0] * 6)).fixed_steps.empty
