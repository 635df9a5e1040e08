"""The answer at the head of the report page, which arm is best; the entry is :func:`answers`."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from normlab.report.findings import lone_arms
from normlab.report.page import Answer
from normlab.report.report_data import ReportData, TableRow, table_rows
from normlab.stats.comparison import ALPHA, BETTER, BEYOND_MAXIMUM, NO_DIFFERENCE, NOT_COMPARABLE, TOO_FEW, WORSE
from normlab.stats.multiple_comparisons import PART_OF_POOLED
from normlab.stats.sentences import failure_clause, margin_text, scope_clause, too_few_reason

BEST, DIFFERENT, EQUIVALENT, UNDECIDED = "best", "different", "equivalent", "undecided"
"""States of an answer: an arm is better than all others; some arms differ; all pairs are equivalent; else.

Two more states are ``not comparable`` and ``NOTHING``.
"""
NOTHING = "nothing to compare"
MAX_CANDIDATES = 3
"""The largest number of arms that may be best, for a headline that names them."""
LOWERED = ("Undecided", "No ", "Too ")
"""Beginnings of sentences that are lowered after a comma; a name of an arm is not."""


@dataclass(frozen=True)
class Finding:
    """The finding by one metric in one panel; the attributes are those of :class:`Answer`."""

    state: str
    best: str
    headline: str
    details: tuple[str, ...]


def answers(data: ReportData) -> list[Answer]:
    """Return an answer per panel, from the verdicts of the comparisons alone."""
    design = data.analysis.design
    if data.runs["validation"].isna().all():
        return [Answer("", NOTHING, "", f"Nothing to compare: no run has a final {design.choice.name}")]
    by_panel: dict[str, list[TableRow]] = {}
    for row in tested_rows(data):
        by_panel.setdefault(row["panel"], []).append(row)
    if not by_panel:
        number = "run" if len(data.runs) == 1 else "arm"
        return [Answer("", NOTHING, "", f"Nothing to compare: there is only one {number}")]
    lone = [
        Answer(panel, NOTHING, "", f"Nothing to compare: there is only {arm}") for panel, arm in lone_arms(data)
    ]
    return [*(answer_of(panel, rows) for panel, rows in by_panel.items()), *lone]


def overview(data: ReportData, found: Sequence[Answer]) -> str:
    """Return the number of panels with each answer in one sentence; empty for a single panel."""
    if len(found) < 2:
        return ""
    words = {
        DIFFERENT: "no single arm is shown to be best",
        EQUIVALENT: "the arms are equivalent",
        UNDECIDED: "it is undecided",
        NOT_COMPARABLE: "the arms are not comparable",
        NOTHING: "there is nothing to compare",
    }
    counts = Counter(f"{each.best} is best" if each.best else words[each.state] for each in found)
    parts = [f"{text} in {count}" for text, count in counts.most_common()]
    return f"On {data.analysis.design.primary.name}, {listed(parts)} of {len(found)} panels"


def tested_rows(data: ReportData) -> list[TableRow]:
    """Return the rows of the comparisons without those that a pooled comparison covers."""
    return [row for row in table_rows(data.analysis.comparisons) if row["verdict"] != PART_OF_POOLED]


def answer_of(panel: str, rows: Sequence[TableRow]) -> Answer:
    """Return the answer in a panel from its comparisons, those by the primary metric first."""
    by_metric: dict[str, list[TableRow]] = {}
    for row in rows:
        by_metric.setdefault(row["metric"], []).append(row)
    (primary, first), *others = by_metric.items()
    finding = finding_of(first)
    findings = {metric: finding_of(of_metric) for metric, of_metric in others}
    alike = [metric for metric, other in findings.items() if other.headline == finding.headline]
    scopes = {scope_clause(row) for row in first if row["replicates"]}
    scope = next(iter(scopes)) if len(scopes) == 1 else ""
    is_comparable = finding.state != NOT_COMPARABLE
    headline = finding.headline + f" on {listed([primary, *alike])}{scope}" * is_comparable
    failures = [text for row in first if row["failure_p_adjusted"] <= ALPHA for text in failure_clause(row)]
    details = [*finding.details, *failures]
    details += [f"On {name}, {lowered(other.headline)}" for name, other in findings.items() if name not in alike]
    return Answer(panel, finding.state, finding.best, headline, tuple(details))


def finding_of(rows: Sequence[TableRow]) -> Finding:
    """Return the finding of the comparisons by one metric in one panel.

    An arm is best only if it is declared better than every other arm; arms that are not compared with each other
    are said to be so.
    """
    arms = list(dict.fromkeys(name for row in rows for name in (row["baseline"], row["arm"])))
    beaten: dict[str, list[str]] = {}
    for row in rows:
        if row["verdict"] in (BETTER, WORSE):
            pair = (row["arm"], row["baseline"])
            winner, loser = pair if row["verdict"] == BETTER else pair[::-1]
            beaten.setdefault(winner, []).append(loser)
    best = next((arm for arm, losers in beaten.items() if len(losers) == len(arms) - 1), "")
    details = tuple(capitalized(text) for text in other_pairs(rows))
    if best:
        rest = (f"{names_text(winners)} better than {listed(losers)}" for winners, losers in grouped(beaten, best))
        others = listed(beaten[best])
        headline = f"{best} is best: better than {others}" if len(arms) > 2 else f"{best} is better than {others}"
        return Finding(BEST, best, headline, (*rest, *details))
    if beaten:
        pairs = ", and ".join(
            f"{names_text(winners)} better than {listed(losers)}" for winners, losers in grouped(beaten)
        )
        headline = "".join([*candidates_text(rows, arms, beaten), pairs])
        return Finding(DIFFERENT, "", headline, (*details, *open_pairs(rows, arms, beaten)))
    if all(str(row["verdict"]).startswith(NOT_COMPARABLE) for row in rows):
        return Finding(NOT_COMPARABLE, "", ", ".join(other_pairs(rows)), ())
    if all(is_equivalent(row) for row in rows):
        headline = ", and ".join(equivalence_texts(rows))
        return Finding(EQUIVALENT, "", headline, open_pairs(rows, arms, beaten))
    return Finding(UNDECIDED, "", f"Undecided: {', '.join(other_pairs(rows))}", ())


def candidates_text(rows: Sequence[TableRow], arms: Sequence[str], beaten: dict[str, list[str]]) -> list[str]:
    """Return ``bn or ln is best: `` if these arms are not declared worse than any; nothing if it says little.

    The best arm is missing from them only if it was falsely declared worse, with a probability of at most 5 %.
    """
    unbeaten = unbeaten_arms(arms, beaten)
    is_known = not any(str(row["verdict"]).startswith(NOT_COMPARABLE) for row in rows)
    return [f"{listed(unbeaten, 'or')} is best: "] * (is_known and 1 < len(unbeaten) <= MAX_CANDIDATES)


def unbeaten_arms(arms: Sequence[str], beaten: dict[str, list[str]]) -> list[str]:
    """Return the arms that are not declared worse than any other."""
    losers = {loser for each in beaten.values() for loser in each}
    return [arm for arm in arms if arm not in losers]


def grouped(beaten: dict[str, list[str]], without: str = "") -> list[tuple[list[str], list[str]]]:
    """Return the winners with the arms that they are better than; winners over the same arms together."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for winner, losers in beaten.items():
        if winner != without:
            groups.setdefault(tuple(losers), []).append(winner)
    return [(winners, list(losers)) for losers, winners in groups.items()]


def other_pairs(rows: Sequence[TableRow]) -> list[str]:
    """Return clauses about the pairs without a declared difference, and about equivalence."""
    groups: dict[tuple[str, str], list[str]] = {}
    reasons = {
        TOO_FEW: "too few replicates to compare {} with {}",
        BEYOND_MAXIMUM: f"{BEYOND_MAXIMUM} for {{}} against {{}}",
        NO_DIFFERENCE: "no difference shown between {} and {}",
    }
    for row in rows:
        verdict = row["verdict"]
        if verdict in (BETTER, WORSE) or is_equivalent(row):
            continue
        text = reasons.get(verdict, f"{{}} and {{}} are {verdict}")
        text += f" ({too_few_reason(row)})" if verdict == TOO_FEW else ""
        groups.setdefault((text, row["baseline"]), []).append(row["arm"])
    texts = [text.format(listed(arms, "or"), baseline) for (text, baseline), arms in groups.items()]
    return [*texts, *equivalence_texts(rows)]


def equivalence_texts(rows: Sequence[TableRow]) -> list[str]:
    """Return a clause for each margin and baseline with the arms that are equivalent to it."""
    groups: dict[tuple[str, str, bool], list[str]] = {}
    for row in filter(is_equivalent, rows):
        declared = row["verdict"] in (BETTER, WORSE)
        groups.setdefault((row["baseline"], margin_text(row), declared), []).append(row["arm"])
    return [
        f"{listed(arms)} differ{'s' * (len(arms) == 1)} from {baseline} by less than {margin}"
        if declared
        else f"{names_text(arms)} equivalent to {baseline} within {margin}"
        for (baseline, margin, declared), arms in groups.items()
    ]


def is_equivalent(row: TableRow) -> bool:
    """Return True if the test of equivalence within the margin is significant."""
    return bool(row["equivalence_p_adjusted"] <= ALPHA)


def open_pairs(rows: Sequence[TableRow], arms: Sequence[str], beaten: dict[str, list[str]]) -> tuple[str, ...]:
    """Return a sentence about the unbeaten arms that were not compared with each other, if there are any."""
    compared = {frozenset((row["arm"], row["baseline"])) for row in rows}
    unbeaten = unbeaten_arms(arms, beaten)
    missing = [pair for pair in combinations(unbeaten, 2) if frozenset(pair) not in compared]
    names = [arm for arm in unbeaten if any(arm in pair for pair in missing)]
    return (
        (f"{listed(names)} were not compared with each other (normlab report --pairs does so)",) if names else ()
    )


def listed(names: Sequence[str], word: str = "and") -> str:
    """Join names.

    >>> listed(["a"]), listed(["a", "b", "c"], "or")
    ('a', 'a, b or c')
    """
    return f" {word} ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def names_text(names: Sequence[str]) -> str:
    """Join names, with the verb: ``bn is`` or ``bn and ln are``."""
    return f"{listed(names)} {'is' if len(names) == 1 else 'are'}"


def lowered(text: str) -> str:
    """Return a sentence to follow a comma; names of arms keep their first letter."""
    return text[0].lower() + text[1:] if text.startswith(LOWERED) else text


def capitalized(text: str) -> str:
    """Return a clause as a sentence; names of arms keep their first letter."""
    return text[0].upper() + text[1:] if text.startswith(("no ", "too ")) else text
