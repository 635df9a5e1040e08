"""Verdicts that hold at the best epoch and not at the end of the training.

The best epoch is chosen and judged on the same validation samples, which favours the arm whose curve jumps more.
The means over the last tenth of the epochs are not chosen, and those on the test split are of other samples.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from normlab.analysis.cells import Cells
from normlab.analysis.comparing import BETTER, WORSE
from normlab.analysis.tuning import Tuning

ENDS = ("final_val", "final_test")
"""Columns of runs: means over the last tenth of the epochs, on the validation and on the test split."""
Row = Mapping[str, Any]


def disagreeing(runs: pd.DataFrame, cells: Cells, tuning: Tuning, comparisons: Sequence[Row]) -> Iterator[str]:
    """Yield a line for each declared difference whose sign is another at the end of the training.

    Medians over the report seeds that both arms have are compared, at the settings that were chosen.

    Args:
        runs: as ``design`` describes them; lines need its columns of ``ENDS``.
        cells: the runs, arranged.
        tuning: the settings of each arm.
        comparisons: rows of the comparisons.
    """
    design, name = cells.design, cells.design.metric.partition("/")[2]
    tables = {end: cells.arrange(runs[end].to_numpy(dtype=float)) for end in ENDS if end in runs}
    for row in comparisons:
        if row["verdict"] not in (BETTER, WORSE):
            continue
        panel = tuple(row[key] for key in design.panels)
        ours, theirs = (tuning[panel, arm].chosen for arm in (row["arm"], row["baseline"]))
        found = {}
        for end, table in tables.items():
            arm, baseline = table[ours, cells.report], table[theirs, cells.report]
            both = np.isfinite(arm) & np.isfinite(baseline)
            if both.any():
                found[end.replace("final_", "")] = float(np.median(arm[both])), float(np.median(baseline[both]))
        declared = -1.0 if row["verdict"] == BETTER else 1.0
        if any(np.sign(design.sign * (a - b)) == -declared for a, b in found.values()):
            where = f" at {row['panel']}" if row["panel"] else ""
            values = ", ".join(f"{split}/{name} {a:.4g} against {b:.4g}" for split, (a, b) in found.items())
            yield (
                f"{row['arm']} against {row['baseline']}{where}: the end of the training contradicts the best "
                f"epoch: {values} (means over the last tenth of the epochs; medians over the seeds)"
            )
