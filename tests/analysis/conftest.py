"""Sweeps to find things in, made from a few values."""

import math
from itertools import chain

import numpy as np
import pandas as pd
import pytest

from normlab.analysis.design import design_of
from normlab.analysis.findings import find

KEYS = ["model", "optimizer.lr", "data.batch_size"]
NO_CURVES = pd.DataFrame({"run": [], "step": [], "seconds": [], "value": []})


@pytest.fixture
def arm():
    """Return what makes the runs of an arm: an infinite value is a diverged run, None one that failed."""

    def runs(model, values, lr="0.1", batch_size="32", seeds=None, status=None):
        seeds = range(len(values)) if seeds is None else seeds
        return [
            {
                **dict(zip(KEYS, (model, lr, batch_size), strict=True)),
                "seed": seed,
                "value": math.nan if value is None else value,
                "status": status
                or ("failed" if value is None else "diverged" if math.isinf(value) else "finished"),
            }
            for seed, value in zip(seeds, values, strict=True)
        ]

    return runs


@pytest.fixture
def frame():
    """Return what makes a frame of runs."""
    types = {"seed": "Int64", "value": float}
    return lambda rows: pd.DataFrame(rows, columns=[*KEYS, "seed", "value", "status"]).astype(types)


@pytest.fixture
def sweep(frame):
    """Return what finds everything in the runs of some arms."""

    def findings(*arms, direction="min", curves=NO_CURVES, target=None, resamples=200, seed=0, **asked):
        runs = arms[0] if len(arms) == 1 and isinstance(arms[0], pd.DataFrame) else frame(list(chain(*arms)))
        keys = [key for key in KEYS if runs[key].nunique() > 1]
        design = design_of(runs, keys, "val/loss", direction, **asked)
        return find(runs, curves, design, np.random.default_rng(seed), target, resamples)

    return findings
