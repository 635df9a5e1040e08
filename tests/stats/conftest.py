"""Fixtures that build small sweeps from a few values and analyse them."""

import math
from itertools import chain

import numpy as np
import pandas as pd
import pytest

from normlab.stats.analysis import analyze
from normlab.stats.design import GENERALIZATION, Metric, design_of
from normlab.stats.sentences import sentence

KEYS = ["model", "optimizer.lr", "data.batch_size", "data.seed"]
NO_CURVES = pd.DataFrame({"run": [], "step": [], "seconds": [], "value": []})
TEXTS = {*KEYS, "status", "scope", "lr", "seed"}


@pytest.fixture
def arm():
    """Return a function that makes the runs of an arm.

    Its values are the validation loss and the test loss, unless these are given as columns: one value for all runs
    or one for each. An infinite value is a diverged run, None one that failed.
    """

    def runs(model, values, lr="0.1", batch_size="32", data_seed="0", seeds=None, status=None, **columns):
        seeds = range(len(values)) if seeds is None else seeds
        made = []
        for place, (seed, value) in enumerate(zip(seeds, values, strict=True)):
            number = math.nan if value is None else float(value)
            ended = "failed" if value is None else "diverged" if math.isinf(number) else "finished"
            row = dict(zip(KEYS, (model, lr, batch_size, data_seed), strict=True))
            row |= {"seed": seed, "status": status or ended, "scope": "seed", "lr": lr}
            row |= {"validation": number, "test/loss": number}
            made.append(row | {name: own if np.isscalar(own) else own[place] for name, own in columns.items()})
        return made

    return runs


@pytest.fixture
def frame():
    """Return a function that makes a frame of runs."""

    def made(rows):
        runs = pd.DataFrame(rows, columns=None if rows else [*KEYS, "seed", "status", "validation", "test/loss"])
        numbers = {name: float for name in runs if name not in TEXTS}
        return runs.astype({"seed": "Int64", **numbers})

    return made


@pytest.fixture
def sweep(frame):
    """Return a function that analyses the runs of some arms, by default on the test loss."""

    def findings(
        *arms, metrics=None, direction="min", curves=NO_CURVES, target=None, resamples=0, seed=0, **asked
    ):
        runs = arms[0] if len(arms) == 1 and isinstance(arms[0], pd.DataFrame) else frame(list(chain(*arms)))
        keys = [key for key in KEYS if runs[key].nunique() > 1]
        found = {name: asked.pop(name) for name in ("history", "timed", "train_curves") if name in asked}
        metrics = metrics or [Metric("test/loss", direction, GENERALIZATION)]
        design = design_of(runs, keys, metrics, Metric("val/loss", direction), **asked)
        return analyze(runs, curves, design, np.random.default_rng(seed), target, resamples, **found)

    return findings


@pytest.fixture
def verdict_text(sweep):
    """Return a function that analyses some arms and returns the sentence of the first comparison."""

    def text(*arms, place=0, **asked):
        found = sweep(*arms, **asked)
        return sentence(found.comparisons.to_dict("records")[place], found.grid, found.tuning)

    return text
