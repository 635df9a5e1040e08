"""The columns of TensorBoard's HParams tab, in which runs that differ in their seed alone are averaged."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from normlab.report.arm_curves import worst_of
from normlab.report.console import is_metric
from normlab.report.probe_tables import run_columns
from normlab.report.sweep_summary import SweepSummary
from normlab.results.hparams import GROUPS, flat
from normlab.results.result import Status
from normlab.results.sweep import Record

COLUMNS = (*GROUPS, "data.seed", "optimizer.lr", "data.batch_size", "trainer.max_epochs")


def hyperparameters(sweep: SweepSummary, records: Sequence[Record]) -> list[str]:
    """Return the keys that vary in a sweep, and other keys that are the same for all runs of an arm.

    The tab shows the hyperparameters of one run of an arm: its seed would be wrong of the others.
    """
    keys = [*sweep.keys, *sweep.named]
    results = [records[number].result for number in sweep.runs.index]
    flats = [flat(result.config, result.choices) for result in results]
    runs = list(zip(sweep.runs["arm"], flats, strict=True))
    found = {key: {(arm, of[key]) for arm, of in runs if key in of} for key in [*keys, *COLUMNS]}
    return [
        key
        for key, pairs in found.items()
        if pairs and (key in keys or len(pairs) == len({arm for arm, _ in pairs}))
    ]


def run_numbers(sweep: SweepSummary, records: Sequence[Record]) -> pd.DataFrame:
    """Return a row per run and a column per number of the tables, NaN where a mean has to leave it out.

    A run that diverged has the worst value there is; one that did not come to its end has none.
    """
    runs, results = sweep.runs, [records[number].result for number in sweep.runs.index]
    finished, diverged = (runs["status"] == status for status in (Status.FINISHED, Status.DIVERGED))
    times = runs["epochs_to_target"]
    # TensorBoard shows the first five at once, and draws no line of an arm beyond a value that is infinite.
    main = {
        f"best/{sweep.metric}": runs["best"],
        f"last/{sweep.metric}": runs["last"],
        "reached": pd.Series(np.isfinite(times), dtype=float).where(times.notna()),
        "seconds": runs["seconds"].where(finished),
        "diverged": diverged.astype(float).where(finished | diverged),
        "epochs_to_target": times,
    }
    lasts = [result.last.metrics if result.last else {} for result in results]
    rows = [
        result.test | {f"last/{name}": value for name, value in last.items() if is_metric(name)}
        for result, last in zip(results, lasts, strict=True)
    ]
    others = pd.DataFrame(rows, index=runs.index, dtype=float)
    others = others[[name for name in others if name not in main]].where(finished, np.nan, axis=0)
    for name in others:
        others[name] = others[name].mask(diverged, worst_of(str(name).removeprefix("last/"), sweep))
    probes = run_columns(records).loc[runs.index].where(finished, np.nan, axis=0)
    return pd.concat([pd.DataFrame(main), others, probes], axis=1).astype(float)
