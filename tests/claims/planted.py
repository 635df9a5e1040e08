"""Sweeps with given values, and the criteria of the claims in conf/claim."""

import zlib
from pathlib import Path

import numpy as np
import pandas as pd

from normlab.claims.claim import read_claim
from normlab.stats.design import Metric

CLAIMS = Path(__file__).parents[2] / "conf" / "claim"


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
        text = ",".join(f"{key}={value}" for key, value in panel.items())
        return pd.Series(self.given[(metric, arm, text) if text else (metric, arm)], dtype=float)

    def near_best(self, metric, arm, panel):
        return [pd.Series(values, dtype=float) for values in self.rivals.get((metric, arm), [])]

    def rows(self, metric, panel):
        return self.split


class PlantedSweep(FakeSweep):
    """A sweep whose values scatter around given ones.

    Args:
        center: a function of metric, arm and panel that returns the value without scatter.
        n: the number of replicates.
        scatter: the standard deviation of the relative scatter, the same for all replicates and independent.
        near_best, rows, maximized: as for :class:`FakeSweep`.
    """

    def __init__(self, center, n=24, scatter=0.02, near_best=None, rows=None, maximized=()):
        super().__init__({}, near_best, rows, maximized)
        self.center, self.n, self.scatter = center, n, scatter

    def values(self, metric, arm, panel):
        name = f"{metric} {arm} {sorted(panel.items())}"
        noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(self.n)
        return pd.Series(self.center(metric, arm, panel) * (1 + self.scatter * noise), dtype=float)


def load_criterion(name):
    """Return the criterion of a claim in conf/claim."""
    claim, _ = read_claim(CLAIMS / f"{name}.yaml")
    return claim.criterion_for(claim.replace)
