"""The sections of the page, each from what was found."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from normlab.analysis.design import is_number
from normlab.analysis.ranges import BATCH_SIZE
from normlab.report import charts
from normlab.report.page import Picture, Section, Table
from normlab.report.palette import Style, styles
from normlab.report.study import Study
from normlab.report.tables import short_names
from normlab.report.wording import num, percent, shown, with_interval

LR = "optimizer.lr"
MOST = 12
"""Panels that are drawn of each kind; the tables have all."""
Row = dict[str, Any]


def sections(study: Study) -> Iterator[Section]:
    """Yield what there is to show, most important first."""
    for make in (compared, best, curves, rates, sizes, times):
        section = make(study)
        if section.pictures or section.tables:
            yield section


def looks_of(study: Study) -> dict[str, Style]:
    """Return the colour and line of each arm, the same everywhere."""
    arms = study.found.design.arms
    return dict(zip(arms, styles([(arm,) for arm in arms]), strict=True))


def rows_of(frame: pd.DataFrame) -> list[Row]:
    """Return the rows of a table."""
    return frame.to_dict("records")  # type: ignore[return-value]


def panels(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Return the first panels of a table, by name."""
    return [(str(name), own) for name, own in frame.groupby("panel", sort=False)][:MOST]


def left_out(frame: pd.DataFrame) -> list[str]:
    """Return what to say of panels that are not drawn."""
    count = frame["panel"].nunique() if len(frame) else 0
    return [f"{count - MOST} more panels are in the tables alone."] if count > MOST else []


def file(kind: str, number: int) -> str:
    """Return the name of a picture's files.

    >>> file("curves", 0), file("curves", 1)
    ('curves', 'curves_2')
    """
    return f"{kind}_{number + 1}" if number else kind


def titled(what: str, panel: str) -> str:
    """Return the title of a picture of one panel."""
    return f"{what}, {panel}" if panel else what


def tuned_at(study: Study, row: Row) -> str:
    """Return an arm's setting of what was tuned."""
    tuned = study.found.design.tuned
    names = zip(short_names(tuned), tuned, strict=True)
    return ", ".join(f"{name} {row[key]}" for name, key in names if row[key] is not None) or "–"


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


def at_best(study: Study, panel: str) -> pd.DataFrame:
    """Return the runs of a panel's arms at their best settings, on report seeds, with their arm."""
    design, arms = study.found.design, study.found.arms
    runs = study.runs[study.runs["seed"].isin(design.report_seeds)]
    parts = []
    for row in arms[arms["panel"] == panel].to_dict("records"):
        keys = [*design.panels, *design.tuned]
        if any(row[key] is None for key in keys):
            continue
        same = np.logical_and.reduce([runs[key] == row[key] for key in keys] or [np.ones(len(runs), dtype=bool)])
        own = (runs[design.compare] == row["arm"]) if design.compare else np.ones(len(runs), dtype=bool)
        parts.append(runs[same & own].assign(arm=row["arm"]))
    return pd.concat(parts) if parts else runs.iloc[:0].assign(arm="")


def report_values(study: Study, panel: str) -> pd.DataFrame:
    """Return the values of a panel, a row per report seed and a column per arm at its best."""
    runs = at_best(study, panel)
    return runs.dropna(subset=["value"]).groupby(["seed", "arm"])["value"].mean().unstack("arm")


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


def rates(study: Study) -> Section:
    """Return what every setting gave that was tuned."""
    found, design = study.found, study.found.design
    frame = found.settings
    if not design.tuned:
        return Section("tuning", "What was tuned")
    columns: dict[str, Any] = {"panel": "panel"} if frame["panel"].astype(bool).any() else {}
    columns |= {design.compare: "arm"} if design.compare else {}
    table = shown(
        frame,
        {
            **columns,
            **dict(zip(short_names(design.tuned), design.tuned, strict=True)),
            "tuning seeds": "tuning_seeds",
            "on tuning seeds": lambda row: num(row["tuning_iqm"]),
            "reported seeds": "report_seeds",
            "on reported seeds": lambda row: with_interval(row, "iqm"),
            "diverged": lambda row: percent(row["diverged"]),
            "chosen": lambda row: "chosen" if row["chosen"] else "may as well be" if row["rival"] else "",
        },
    )
    pictures = against_key(study, LR, "learning rate", "rates") if LR in design.tuned else []
    tables = [Table("settings", "what every setting gave", frame, table)]
    if len(found.ranges):
        tables.append(Table("ranges", "settings within 10 % of the best", found.ranges, range_table(study)))
    words = [
        "Each arm is taken at its own best setting, chosen on tuning seeds that are not reported. Full dots are "
        "the chosen settings, bars 95 % intervals, × settings with which runs diverged; arms at one setting stand "
        "side by side.",
        *left_out(frame),
    ]
    return Section("tuning", "What was tuned", words, pictures, tables)


def range_table(study: Study) -> pd.DataFrame:
    """Return the ranges as they are read."""
    frame = study.found.ranges
    columns: dict[str, Any] = {"panel": "panel"} if frame["panel"].astype(bool).any() else {}
    return shown(
        frame,
        {
            **columns,
            study.found.design.compare or "arm": "arm",
            "of": "key",
            "from": lambda row: f"{row['smallest']:g}",
            "to": lambda row: f"{row['largest']:g}",
            "factors of ten": lambda row: num(row["decades"], 2),
            "at the edge of what was tried": lambda row: "yes" if row["open"] else "",
        },
    )


def against_key(study: Study, key: str, x: str, kind: str) -> list[Picture]:
    """Return a picture per panel of the metric against a tuned setting."""
    design, pictures = study.found.design, []
    for number, (panel, own) in enumerate(panels(study.found.settings)):
        numeric = own[own[key].map(lambda text: text is not None and is_number(str(text)))]
        if numeric[key].nunique() < 2:
            continue
        best = numeric.sort_values("chosen", kind="stable").drop_duplicates(["arm", key], keep="last")
        figure = charts.against(
            best.rename(columns={"iqm_low": "low", "iqm_high": "high"}),
            key,
            looks_of(study),
            title=titled(design.metric, panel),
            x=x,
            y=design.metric,
            better=design.direction,
        )
        alt = f"{design.metric} of each arm against the {x}{' in ' + panel if panel else ''}"
        columns = ["arm", key, "iqm", "iqm_low", "iqm_high", "diverged", "chosen"]
        name = file(kind, number)
        caption = titled(f"{design.metric} against the {x}", panel)
        pictures.append(Picture(name, figure, alt, caption, Table(name, "what is drawn", best[columns])))
    return pictures


def sizes(study: Study) -> Section:
    """Return how much the batch size matters."""
    found, design = study.found, study.found.design
    frame = found.arms
    if BATCH_SIZE not in design.panels:
        return Section("batch-size", "Batch size")
    others = [key for key in design.panels if key != BATCH_SIZE]
    pictures = []
    groups = frame.groupby(others, sort=False) if others else [((), frame)]
    for number, (setting, own) in enumerate(list(groups)[:MOST]):
        where = ", ".join(f"{name}={text}" for name, text in zip(short_names(others), setting, strict=True))
        rows = own.rename(columns={"iqm_low": "low", "iqm_high": "high", "diverged": "lost"})
        rows = rows.assign(diverged=own["diverged_share"].fillna(0), chosen=True)
        figure = charts.against(
            rows,
            BATCH_SIZE,
            looks_of(study),
            title=titled(design.metric, where),
            x="batch size",
            y=design.metric,
            better=design.direction,
        )
        name = file("batch_sizes", number)
        drawn = Table(name, "what is drawn", rows[["arm", BATCH_SIZE, "iqm", "low", "high", "diverged"]])
        alt = f"{design.metric} of each arm against the batch size"
        pictures.append(
            Picture(name, figure, alt, titled(f"{design.metric} against the batch size", where), drawn)
        )
    heading = {**{key: key for key in others}, design.compare or "arm": "arm", "batch sizes": "batch_sizes"}
    table = shown(found.batch_sizes, {**heading, "largest / smallest": lambda row: num(row["ratio"])})
    words = ["Each arm at its best setting for each batch size; largest / smallest is the ratio of these values."]
    return Section(
        "batch-size",
        "Batch size",
        words,
        pictures,
        [Table("batch_size_ratios", "how much it matters", found.batch_sizes, table)],
    )


def times(study: Study) -> Section:
    """Return how long arms take to the target."""
    found, design = study.found, study.found.design
    pictures, sign = [], "at most" if design.direction == "min" else "at least"
    for number, row in enumerate(found.targets.to_dict("records")[:MOST]):
        panel, target = str(row["panel"]), float(row["target"])
        steps = steps_to(study, at_best(study, panel))
        if not np.isfinite(target) or not any(np.isfinite(each).any() for each in steps.values()):
            continue
        figure = charts.reached(
            steps,
            looks_of(study),
            title=titled(f"{design.metric} {sign} {num(target)}", panel),
            x="optimizer steps",
            end=float(row["budget"]),
        )
        name = file("target", number)
        long = pd.concat([pd.DataFrame({"arm": arm, "steps": np.sort(each)}) for arm, each in steps.items()])
        alt = "share of the seeds of each arm that have reached the target, by optimizer steps"
        often = "step" if row["resolution"] == 1 else f"{num(row['resolution'])} steps"
        caption = f"Evaluated every {often}: a time is known no better than that."
        pictures.append(Picture(name, figure, alt, caption, Table(name, "what is drawn", long)))
    return Section(
        "target", "Time to the target", target_words(study), pictures, [time_table(study)] if pictures else []
    )


def steps_to(study: Study, runs: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return when the runs of each arm reach their target, in optimizer steps, ∞ for never."""
    steps = study.found.times["steps"].reindex(runs.index).dropna()
    arms = runs.loc[steps.index, "arm"]
    return {str(arm): own.to_numpy() for arm, own in steps.groupby(arms, sort=False)}


def target_words(study: Study) -> list[str]:
    """Return what the target is."""
    over = f"in the median over the {'tuning ' * bool(study.found.design.tuning_seeds)}seeds"
    rules = {
        "given": "The target was given.",
        "baseline": f"The target is what the baseline has reached by three quarters of its steps, {over}.",
        "best arm": f"The target is what the best arm has reached by three quarters of its steps, {over}.",
    }
    used = dict.fromkeys(study.found.targets["rule"]) if len(study.found.targets) else {}
    return [rules.get(str(rule), str(rule)) for rule in used] + [
        "A run that never reaches it, or diverged, takes infinitely long; where half of an arm does not, the "
        "shares that do take the place of the ratio."
    ]


def time_table(study: Study) -> Table:
    """Return the times to the target."""
    frame, design = study.found.arms, study.found.design
    ratios: dict[Any, Any] = {(row["panel"], row["arm"]): row for row in rows_of(study.found.comparisons)}

    def ratio(name: str) -> Callable[[Row], str]:
        return lambda row: with_interval(ratios[key(row)], name) if key(row) in ratios else "–"

    def key(row: Row) -> tuple[str, str]:
        return row["panel"], row["arm"]

    columns: dict[str, Any] = {"panel": "panel"} if frame["panel"].astype(bool).any() else {}
    columns |= {design.compare: "arm"} if design.compare else {}
    table = shown(
        frame,
        {
            **columns,
            "median steps": lambda row: num(row["steps"], 4),
            "median seconds": lambda row: num(row["seconds"]),
            "reached by": lambda row: share(row, "reached"),
            f"steps / {design.baseline or 'baseline'}": ratio("steps_ratio"),
            f"seconds / {design.baseline or 'baseline'}": ratio("seconds_ratio"),
        },
    )
    columns_of = [
        *design.panels,
        "panel",
        "arm",
        "seeds",
        "steps",
        "seconds",
        "reached",
        "reached_low",
        "reached_high",
    ]
    return Table("times", "times to the target", frame[columns_of], table)


def share(row: Row, name: str) -> str:
    """Return a share with its interval."""
    if np.isnan(row[name]):
        return "–"
    return f"{percent(row[name])} ({percent(row[f'{name}_low'])} to {percent(row[f'{name}_high'])})"
