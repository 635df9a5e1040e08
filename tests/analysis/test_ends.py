"""A verdict on the best epoch comes with what the end of the training says, where that is another thing."""

import numpy as np
import pytest

from normlab.analysis.ends import ENDS

BN, NOBN = [1.0 + k / 100 for k in range(8)], [2.0 + k / 100 for k in range(8)]


@pytest.fixture
def ended(arm, frame, sweep):
    """Return what finds bn better than nobn at the best epoch, given what each was at the end."""

    def found(val, test, direction="min"):
        runs = frame([*arm("bn", BN), *arm("nobn", NOBN)])
        for column, (bn, nobn) in zip(ENDS, (val, test), strict=True):
            runs[column] = [*np.broadcast_to(bn, 8), *np.broadcast_to(nobn, 8)]
        return sweep(runs, direction=direction)

    return found


def test_an_end_that_agrees_is_not_told(ended):
    assert ended((1.5, 2.5), (1.6, 2.6)).ends == []


@pytest.mark.parametrize(
    ("val", "test", "values"),
    [
        ((3.0, 2.5), (1.6, 2.6), "val/loss 3 against 2.5, test/loss 1.6 against 2.6"),
        ((1.5, 2.5), (2.75, 2.6), "val/loss 1.5 against 2.5, test/loss 2.75 against 2.6"),
        ((3.0, 2.5), (np.nan, np.nan), "val/loss 3 against 2.5"),
        (([np.inf, 3, 3, 3, 3, 3, 3, 4], 2.5), (1.6, 2.6), "val/loss 3 against 2.5, test/loss 1.6 against 2.6"),
    ],
    ids=["validation", "test", "no test", "a diverged seed"],
)
def test_an_end_that_says_otherwise_is_told_with_both_splits(ended, val, test, values):
    found = ended(val, test)
    (line,) = found.ends
    assert line.startswith(f"bn against nobn: the end of the training contradicts the best epoch: {values} (")
    assert line in found.warnings


def test_where_large_is_good_the_signs_turn(ended):
    assert ended((1.5, 2.5), (1.5, 2.5), direction="max").ends == []
    assert len(ended((2.5, 1.5), (1.5, 2.5), direction="max").ends) == 1


def test_what_is_not_declared_or_not_known_is_not_told(arm, frame, sweep, ended):
    assert ended((np.nan, np.nan), (np.nan, np.nan)).ends == []
    runs = frame([*arm("bn", BN[:4]), *arm("nobn", NOBN[:4])]).assign(final_val=[3.0] * 4 + [2.0] * 4)
    assert sweep(runs).ends == []
    assert sweep(arm("bn", BN), arm("nobn", NOBN)).ends == []
