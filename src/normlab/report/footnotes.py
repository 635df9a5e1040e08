"""What is to be said about a sweep's table so that nobody reads more into it than is there."""

from normlab.report.console import format_number
from normlab.report.factors import untyped_note
from normlab.report.sweep_summary import SweepSummary

END = "train_eval, val, test: means over the last tenth of the epochs"
TRAIN_EVAL = "train_eval: of the whole training split in evaluation mode, with statistics re-estimated on it"


def table_title(sweep: SweepSummary) -> str:
    """Return the title of the table: the metric, and whether low or high is good."""
    better = "lower" if sweep.direction == "min" else "higher"
    return f"{sweep.metric.partition('/')[2]} at the end of the training ({better} is better)"


def footnotes(sweep: SweepSummary) -> list[str]:
    """Return the lines below the table."""
    return [*seed_notes(sweep), *column_notes(sweep), *lost_runs(sweep), *difference_warnings(sweep)]


def difference_warnings(sweep: SweepSummary) -> list[str]:
    """Return the warnings about differences that nobody typed and about runs that repeat another."""
    lines, count = untyped_note(sweep.untyped), sweep.repeated
    if count == 1:
        lines.append("1 run repeats another configuration and seed; it counts once")
    elif count:
        lines.append(f"{count} runs repeat another configuration and seed; each counts once")
    return lines


def seed_notes(sweep: SweepSummary) -> list[str]:
    """Return the note on the number of seeds that means are over."""
    counts = sorted(set(sweep.arms["seeds"]) - {0})
    if not counts:
        trained = (sweep.runs["epochs"] > 0).any() or not sweep.arms["finished"].any()
        return ["no run came to its end: there is nothing to compare"] if trained else ["nothing was trained"]
    if counts == [1]:
        return ["one seed per arm: no spread can be given, and one seed supports no claim", END, TRAIN_EVAL]
    over = f"{counts[0]} seeds" if len(counts) == 1 else "the seeds of each arm"
    alone = ["an arm with one seed shows no spread, and one seed supports no claim"] if counts[0] == 1 else []
    return [f"{END} ± standard error over {over}", TRAIN_EVAL, *alone]


def column_notes(sweep: SweepSummary) -> list[str]:
    """Return the meaning of the column of epochs, if there is anything in it."""
    lines = []
    if sweep.arms["timed"].any():
        side, targets = "at most" if sweep.direction == "min" else "at least", sweep.arms["target"]
        one = targets.nunique(dropna=False) == 1
        value = f"is {side} {format_number(targets.iloc[0])}, the target" if one else "reaches its target"
        several = "; median over the seeds, and how many got there" if sweep.arms["seeds"].max() > 1 else ""
        lines.append(f"epochs: until {sweep.metric} {value}{several}")
    return lines


def lost_runs(sweep: SweepSummary) -> list[str]:
    """Return notes on runs that did not finish, did not train, or finished without the metric."""
    arms, runs, lines = sweep.arms, sweep.runs, []
    if arms["diverged"].any():
        infinity = "inf" if sweep.direction == "min" else "-inf"
        lines.append(f"a diverged run counts as {infinity}, the worst value there is: so does the mean of its arm")
    unended = [name for name in ("stopped", "failed") if arms[name].any()]
    if unended:
        lines.append(f"{' and '.join(unended)} runs are in no mean: summary.csv names them")
    if arms["untrained"].any():
        lines.append(
            "untrained: finished with a training loss that is not 10 % below that of the best constant predictor"
        )
    missing = int((runs["val"].isna() & (runs["status"] == "finished") & (runs["epochs"] > 0)).sum())
    if missing:
        lines.append(f"finished runs without {sweep.metric}, which are in no mean: {missing}")
    return lines
