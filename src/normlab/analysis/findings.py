"""All that a sweep's runs say, from the choice of each arm's settings to what is declared."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from normlab.analysis import tables
from normlab.analysis.cautions import cautions
from normlab.analysis.cells import cells_of
from normlab.analysis.design import Design
from normlab.analysis.ends import disagreeing
from normlab.analysis.reaching import reached
from normlab.analysis.resampling import RESAMPLES, Draws
from normlab.analysis.tuning import tuned


@dataclass(frozen=True)
class Findings:
    """What was found; tables name the panel and its settings, if there are panels, and the arm.

    Attributes:
        design: what is compared, and which seeds are for what.
        settings: a row per setting of an arm: what the tuning seeds and the report seeds gave.
        arms: a row per arm at its best setting, over the report seeds.
        comparisons: a row per arm but the baseline.
        targets: a row per panel: the value that the times are counted to.
        times: a row per run: its ``target``, and the ``steps`` and ``seconds`` to it.
        ranges: a row per arm and tuned key: the settings that are nearly as good as the best.
        batch_sizes: a row per arm where the batch size varies: how much it matters.
        ends: lines on verdicts that the end of the training does not share.
        warnings: what a reader has to know, a line each, ``ends`` among them.
    """

    design: Design
    settings: pd.DataFrame
    arms: pd.DataFrame
    comparisons: pd.DataFrame
    targets: pd.DataFrame
    times: pd.DataFrame
    ranges: pd.DataFrame
    batch_sizes: pd.DataFrame
    ends: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def find(
    runs: pd.DataFrame,
    curves: pd.DataFrame,
    design: Design,
    generator: np.random.Generator,
    target: float | str | None = None,
    resamples: int = RESAMPLES,
) -> Findings:
    """Return what the runs of a sweep say.

    Settings are chosen on the tuning seeds and everything else is computed on the report seeds. Differences are
    declared by the test of ``significance``, corrected for all arms and panels; no interval has a part in it.

    Args:
        runs: as ``design`` describes them; with a column ``train_value``, the gap between it and ``value`` is
            given, and with those of ``ends`` the verdicts that the end of the training does not share.
        curves: of the same metric, as ``times`` describes them, ``run`` being the index of the runs; may be empty.
        design: from ``design_of``.
        generator: what is drawn is drawn from it.
        target: the value to reach, or ``baseline`` for what the baseline reaches; by default the best arm's.
        resamples: of the intervals; 0 leaves them out, and changes nothing that is declared.

    Raises:
        ValueError: if the target is another text than ``baseline``.
    """
    cells, draws = cells_of(runs, design), Draws(generator, resamples)
    tuning = tuned(cells)
    times = reached(runs, curves, cells, tuning, target)
    settings = tables.settings(cells, tuning, draws)
    arms = tables.arms(runs, cells, tuning, times, draws)
    rows = tables.comparisons(cells, tuning, times, draws)
    ends = list(disagreeing(runs, cells, tuning, rows))
    columns = [*design.panels, "panel", "arm", "baseline", *tables.NOTHING, "verdict"]
    return Findings(
        design,
        settings,
        arms,
        tables.frame(rows, columns),
        times.targets,
        times.runs,
        tables.ranges(cells, tuning),
        tables.batch_sizes(arms, design),
        ends,
        [*ends, *cautions(runs, cells, tuning, times, rows)],
    )
