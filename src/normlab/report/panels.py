"""A sweep in panels: what is neither the normalizer nor a number of the optimizer is the same in each."""

from dataclasses import replace

from normlab.report.console import short_names
from normlab.report.sweep_summary import SweepSummary
from normlab.stats.arms import label, natural

MODEL, TUNED = "model", ("optimizer.", "scheduler.")


def panels(sweep: SweepSummary) -> dict[str, SweepSummary]:
    """Return the parts of a sweep by what they have in common, such as ``init=kaiming``.

    In each, arms are told apart by their normalizer, the first of the keys, and by numbers of the optimizer. A
    sweep that does not vary the normalizer, or nothing else than these, is one part without a name.
    """
    own = [key for key in sweep.keys if key == MODEL or (key.startswith(TUNED) and key not in sweep.untyped)]
    others = [key for key in sweep.keys if key not in own]
    if MODEL not in own or not others:
        return {"": sweep}
    own.sort(key=lambda key: key != MODEL)
    groups = sorted(
        set(sweep.arms[others].itertuples(index=False, name=None)), key=lambda row: [*map(natural, row)]
    )
    names = short_names(others)
    return {label(names, group): part(sweep, own, dict(zip(others, group, strict=True))) for group in groups}


def part(sweep: SweepSummary, own: list[str], common: dict[str, str]) -> SweepSummary:
    """Return the arms of a sweep with these settings in common, named by their ``own``."""
    arms = sweep.arms[(sweep.arms[list(common)] == list(common.values())).all(axis=1)]
    names = {arm: label(own, row) for arm, row in zip(arms.index, arms[own].to_numpy().tolist(), strict=True)}
    runs = sweep.runs[sweep.runs["arm"].isin(names)]
    return replace(sweep, keys=own, arms=arms.rename(index=names), runs=runs.assign(arm=runs["arm"].map(names)))
