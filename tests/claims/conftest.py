"""A sweep with given values, instead of trained runs."""

import pandas as pd
import pytest

from normlab.stats.design import Metric


class FakeSweep:
    """A sweep whose values are given by metric, arm and the settings of the panel as text.

    Args:
        values: lists of values, indexed by replicate from 0, by ``(metric, arm)`` or ``(metric, arm, panel)``,
            with the panel as in ``"x=1"``.
        near_best: lists of such lists, by ``(metric, arm)``.
        rows: training and test rows of metrics on overlapping splits.
        maximized: the metrics of which large values are good.
    """

    def __init__(self, values, near_best=None, rows=None, maximized=()):
        self.given, self.rivals, self.split, self.maximized = values, near_best or {}, rows, maximized

    def metric(self, name):
        return Metric(name, "max" if name in self.maximized or name.endswith("acc") else "min")

    def values(self, metric, arm, panel):
        text = ",".join(f"{key}={value:g}" for key, value in panel.items())
        return pd.Series(self.given[(metric, arm, text) if text else (metric, arm)], dtype=float)

    def near_best(self, metric, arm, panel):
        return [pd.Series(values, dtype=float) for values in self.rivals.get((metric, arm), [])]

    def rows(self, metric, panel):
        return self.split


@pytest.fixture
def fake():
    """Return the class of sweeps with given values."""
    return FakeSweep
