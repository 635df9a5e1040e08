"""The sections of the page, each from what was found."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from normlab.report import charts
from normlab.report.page import Picture, Section, Table
from normlab.report.study import Study
from normlab.report.study_views import at_best, file, left_out, looks_of, panels, report_values, titled, tuned_at
from normlab.report.time_section import times
from normlab.report.tuning_sections import rates, sizes
from normlab.report.wording import num, percent, shown, with_interval


def sections(study: Study) -> Iterator[Section]:
    """Yield what there is to show, most important first."""
    for make in (compared, best, curves, rates, sizes, times):
        section = make(study)
        if section.pictures or section.tables:
            yield section


def compared(study: Study) -> Section:
    """Return who is better than the baseline, and how sure that is."""
    found, design = study.found, study.found.design
    frame = found.comparisons
    if frame.empty:
        return Section("comparison", "The comparison")
    several = frame["panel"].astype(bool).any()
    columns: dict[str, Any] = {"panel": "panel"} if several else {}
    table = shown(
        frame,
        {
            **columns,
            design.compare: "arm",
            "against": "baseline",
            "seeds": "seeds",
            "verdict": "verdict",
            "p (Holm)": lambda row: num(row["p_holm"], 2),
            "ratio": lambda row: with_interval(row, "ratio"),
            "difference": lambda row: with_interval(row, "difference"),
            "probability of being better": lambda row: with_interval(row, "improvement", 2),
            "found with 80 % power": lambda row: num(row["detectable"], 2),
        },
    )
    words = [
        f"{design.metric}: {'lower' if design.direction == 'min' else 'higher'} is better. One test alone "
        "declares a difference, the two-sided sign-flip test of the paired differences, corrected by Holm for all "
        "rows of this table; the intervals, 95 % and pointwise, say how large it is. Ratio and difference are "
        "interquartile means over the seeds.",
        *smallest_p(frame),
        *left_out(frame),
    ]
    pictures = [
        picture
        for number, (panel, own) in enumerate(panels(frame))
        for picture in paired(study, panel, own, number)
    ]
    return Section(
        "comparison",
        "The comparison",
        words,
        pictures,
        [Table("comparisons", "arms against the baseline", frame, table)],
    )


def smallest_p(frame: pd.DataFrame) -> list[str]:
    """Return how small p can get: of n paired seeds ``2/2ⁿ``, times the number of comparisons by Holm."""
    tested = frame[frame["p_holm"].notna()]
    if tested.empty or not tested["paired"].all() or tested["seeds"].nunique() > 1:
        return []
    seeds, rows = int(tested["seeds"].iloc[0]), len(tested)
    least = num(min(1.0, rows * 2.0 ** (1 - seeds)), 2)
    return [f"With {seeds} paired seeds and {rows} comparison{'s' * (rows > 1)}, p is {least} or more."]


def paired(study: Study, panel: str, rows: pd.DataFrame, number: int) -> Iterator[Picture]:
    """Yield the picture of the seeds of one panel, if any were run with several arms."""
    design, wide = study.found.design, report_values(study, panel)
    arms = [arm for arm in (design.baseline, *rows["arm"]) if arm in wide]
    if len(arms) < 2:
        return
    name, figure = (
        file("seeds", number),
        charts.seeds(wide[arms], looks_of(study), title=titled("each seed", panel), y=design.metric),
    )
    alt = f"{design.metric} of each seed with {', '.join(arms)}{' in ' + panel if panel else ''}"
    caption = "A line is a seed, with all arms at their best; × is where runs diverged."
    yield Picture(name, figure, alt, caption, Table(name, "what is drawn", wide[arms].reset_index()))


def best(study: Study) -> Section:
    """Return what each arm reached at its best setting."""
    frame, design = study.found.arms, study.found.design
    columns: dict[str, Any] = {"panel": "panel"} if frame["panel"].astype(bool).any() else {}
    columns |= {design.compare: "arm"} if design.compare else {}
    columns |= {"at": lambda row: tuned_at(study, row)} if design.tuned else {}
    columns |= {"tuned on": "tuning_seeds"} if design.tuning_seeds else {}
    table = shown(
        frame,
        {
            **columns,
            "seeds": "seeds",
            design.metric: lambda row: with_interval(row, "iqm"),
            "diverged": lambda row: percent(row["diverged_share"]),
            "validation − training": lambda row: with_interval(row, "gap"),
            "runs": "runs",
            "failed": "failed",
            "stopped": "stopped",
        },
    )
    words = [
        "Interquartile mean over the reported seeds with its 95 % percentile-bootstrap interval; none is given "
        "where more than a quarter of the runs diverged. A run counts with its best epoch; runs, failed and "
        "stopped are of all settings and seeds."
    ]
    return Section(
        "arms", "Each arm at its best", words, (), [Table("arms", "arms at their best settings", frame, table)]
    )


def curves(study: Study) -> Section:
    """Return the learning curves of the arms at their best, by epoch and by seconds."""
    pictures = []
    for number, (panel, _) in enumerate(panels(study.found.arms)):
        runs = at_best(study, panel)
        for kind, x in (("epoch", "epoch"), ("seconds", "seconds of training")):
            values = wide_curves(study, runs, kind)
            if values:
                pictures.append(curve_picture(study, panel, number, kind, x, values))
    words = [
        "Arms at their best settings: the line is the median over the reported seeds, the band the middle half; "
        "from where a run diverged it counts as the worst value. Seconds are those of the optimizer's steps alone."
    ]
    return Section("curves", "Learning curves", [*words, *left_out(study.found.arms)], pictures)


def wide_curves(study: Study, runs: pd.DataFrame, kind: str) -> dict[str, pd.DataFrame]:
    """Return the curves of each arm, ``(moments x seeds)``, by epoch or by median seconds."""
    design, found = study.found.design, {}
    worst = design.sign * np.inf
    for arm, own in runs.groupby("arm", sort=False):
        rows = study.curves[study.curves["run"].isin(own.index)]
        wide = rows.pivot_table(index="epoch", columns="run", values="value", aggfunc="last")
        lost = own.index[own["status"] == "diverged"]
        wide = wide.reindex(columns=wide.columns.union(lost))
        wide[lost] = wide[lost].fillna(worst)
        if kind == "seconds":
            wide.index = rows.groupby("epoch")["seconds"].median().reindex(wide.index)
        if len(wide) > 1:
            found[str(arm)] = wide
    return found


def curve_picture(
    study: Study, panel: str, number: int, kind: str, x: str, values: dict[str, pd.DataFrame]
) -> Picture:
    """Return the picture of a panel's curves."""
    design = study.found.design
    targets = study.found.targets
    target = (
        float(targets.loc[targets["panel"] == panel, "target"].astype(float).iloc[0]) if len(targets) else np.nan
    )
    figure = charts.curves(
        values, looks_of(study), title=titled(f"by {kind}", panel), x=x, y=design.metric, target=target
    )
    rows = [
        wide.quantile([0.25, 0.5, 0.75], axis=1)
        .T.set_axis(["lower quartile", "median", "upper quartile"], axis=1)
        .rename_axis(kind)
        .reset_index()
        .assign(arm=arm)
        for arm, wide in values.items()
    ]
    name = file(f"curves_by_{kind}", number)
    alt = f"{design.metric} of {', '.join(values)} by {kind}{' in ' + panel if panel else ''}"
    return Picture(
        name,
        figure,
        alt,
        titled(f"{design.metric} by {kind}", panel),
        Table(name, "what is drawn", pd.concat(rows)),
    )
