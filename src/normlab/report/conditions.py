"""The conditions of a comparison in words, from the data to the code: :func:`conditions`."""

from collections.abc import Iterator, Sequence

from normlab.report.console import num
from normlab.report.provenance import distinct
from normlab.report.report_data import ReportData, table_rows
from normlab.report.weight_decay import weight_decay_texts
from normlab.results.result import Result
from normlab.results.sweep import Record, setting
from normlab.stats.design import LR, STATUSES, Scope, natural
from normlab.stats.sentences import last_part, with_noun

MAX_VALUES = 6
"""The largest number of values that are listed for a key."""
TRAINING = {"optimizer": "{}", LR: "learning rate {}", "data.batch_size": "batch size {}"}
"""The keys of the training that are described, and their words."""
NAMES = {LR: "learning rate"}
REPLICATES = {
    Scope.DRAW: "each with its own samples, generated from its seed",
    Scope.SPLIT: "each divides the same table at random into training, validation and test rows",
    Scope.SEED: "on the same samples, with other initial weights and batch order",
}
NOUNS = {Scope.DRAW: "draw of the data", Scope.SPLIT: "split of the table", Scope.SEED: "seed"}


def conditions(data: ReportData) -> list[tuple[str, str]]:
    """Return pairs of a label and a text; a label without content is left out."""
    records = [data.summary.records[number] for number in data.summary.runs.index]
    results = [record.result for record in records if record.result.config]
    pairs = [
        ("Data", data_text(results)),
        ("Net", "; ".join([*key_texts(results, {"net": "{}", "net.hidden": "hidden layers {}"})])),
        ("Training", training_text(data, results)),
        ("Replicates", replicates_text(data)),
        ("Tuning", tuning_text(data)),
        ("Runs", runs_text(data)),
        ("Code", code_text(data.summary.records)),
    ]
    return [(label, text) for label, text in pairs if text]


def key_texts(results: Sequence[Result], words: dict[str, str]) -> Iterator[str]:
    """Yield for each key its words with the values of the runs, if it has any."""
    for key, text in words.items():
        values = dict.fromkeys(value for result in results if (value := setting(result, key)))
        ordered = sorted(values, key=natural)
        if values:
            yield text.format(", ".join(ordered[:MAX_VALUES]) + ", …" * (len(ordered) > MAX_VALUES))


def data_text(results: Sequence[Result]) -> str:
    """Describe the datasets, and the sizes of their splits if they are the same in all runs."""
    sizes = {tuple(result.data.get(split) for split in ("train", "val", "test")) for result in results}
    text = "; ".join(key_texts(results, {"data": "{}"}))
    if text and len(sizes) == 1 and None not in next(iter(sizes)):
        text += " ({} training, {} validation and {} test samples)".format(*next(iter(sizes)))
    return text


def training_text(data: ReportData, results: Sequence[Result]) -> str:
    """Describe the optimizer with its weight decay, the batch size and the number of epochs."""
    decay = " or ".join(weight_decay_texts(results))
    tuned = data.analysis.design.tuned
    words = {key: text for key, text in TRAINING.items() if key not in tuned}
    epochs = key_texts(results, {"trainer.max_epochs": "{} epochs"})
    stopped = int(data.summary.runs["shortened"].sum())
    early = [f"{with_noun(stopped, 'run')} stopped early"] * bool(stopped)
    return ", ".join(filter(None, [*key_texts(results, words), decay, *epochs, *early]))


def replicates_text(data: ReportData) -> str:
    """Describe the replicates: their number in each arm, and what differs between them."""
    arms, uses = data.analysis.arms, data.analysis.grid.uses.values()
    counts = sorted({row["seeds"] for row in table_rows(arms) if row["seeds"]})
    scopes = list(dict.fromkeys(use.scope for use in uses))
    if not counts:
        return ""
    count = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
    noun, _, rest = NOUNS[scopes[0]].partition(" ") if len(scopes) == 1 else ("replicate", "", "")
    plural = " ".join(filter(None, [noun + "s" * (counts[-1] > 1), rest]))
    arm = " per arm, paired by seed" * (len(data.analysis.design.arms) > 1)
    several = counts[-1] > 1
    return f"{count} {plural}{arm}" + "".join(f"; {REPLICATES[scope]}" for scope in scopes if several)


def tuning_text(data: ReportData) -> str:
    """Describe the tuned hyperparameters: their grids, and the runs that choose among them."""
    design, grid = data.analysis.design, data.analysis.grid
    if not design.tuned:
        return "none; other learning rates may reverse the verdict" if len(design.arms) > 1 else ""
    parts = []
    for position, key in enumerate(design.tuned):
        values = sorted({configuration.tuned[position] for configuration in grid.configurations}, key=natural)
        shown = ", ".join(values[:MAX_VALUES]) + ", …" * (len(values) > MAX_VALUES)
        parts.append(f"{NAMES.get(key, last_part(key))} over {shown}")
    uses = list(grid.uses.values())
    counts = {len(use.tuning) for use in uses}
    if any(use.within for use in uses):
        how = "in each replicate on its own validation rows"
    elif len(counts) == 1 and all(use.is_disjoint for use in uses):
        how = f"on {with_noun(counts.pop(), 'other seed')}"
    else:
        how = "on the reported seeds" if not all(use.is_disjoint for use in uses) else "on other seeds"
    return f"{', '.join(parts)}; for each arm by {design.choice.name}, {how}"


def runs_text(data: ReportData) -> str:
    """Return the number of runs, with those that diverged, stopped, failed or stayed untrained."""
    runs = data.summary.runs
    counts = {status: int((runs["status"] == status).sum()) for status in STATUSES}
    counts["untrained"] = int(runs["untrained"].sum())
    lost = [f"{num(count)} {name}" for name, count in counts.items() if count and name != "finished"]
    if counts["untrained"]:
        lost[-1] += " (training loss above 90 % of that of the best constant predictor)"
    repeated = [f"{data.summary.repeated} repeated"] if data.summary.repeated else []
    return ", ".join([str(len(data.summary.listed)), *(lost or ["all finished"]), *repeated])


def code_text(records: Sequence[Record]) -> str:
    """Return the commits and the main versions of the runs."""
    environments = [record.result.environment for record in records if record.result.environment]
    commits = distinct(
        str(environment["commit"])[:10] + " with uncommitted changes" * bool(environment.get("dirty"))
        for environment in environments
        if environment.get("commit")
    )
    versions = distinct(
        f"{name} {text}"
        for environment in environments
        for name, text in environment.get("versions", {}).items()
        if name in ("normlab", "torch")
    )
    return ", ".join([*(f"commit {commit}" for commit in commits), *versions])
