"""The page over all claims, ``index.html``; the entry is :func:`write_claims_page`."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normlab.claims.claim_figures import Forest, forests
from normlab.claims.claim_record import ClaimRecord, read_records
from normlab.claims.holm import corrected_answer, decisive_p, page_levels
from normlab.claims.page_template import render
from normlab.claims.profile_page import candidates, profile_file, write_profile
from normlab.claims.verdict import Answer, Part, decisive_part
from normlab.claims.wording import arms_in
from normlab.report.page import PAGE
from normlab.report.provenance import distinct
from normlab.results.result import write_atomically
from normlab.stats.comparison import ALPHA

TOPICS = {
    "optimization": "training loss, with statistics as in evaluation",
    "generalization": "test data",
    "landscape": "the loss landscape",
    "initialization": "nets at initialization",
    "dynamics": "the course of training",
}
"""The data that each kind of claim is judged on."""


@dataclass(frozen=True)
class ClaimView:
    """A claim as the page shows it.

    Attributes:
        record: its record.
        corrected: its Holm-corrected p; None if the registered protocol was not followed.
        fresh: the record of the same claim on the fresh table; None without one.
    """

    record: ClaimRecord
    corrected: float | None
    fresh: "ClaimView | None" = None

    @property
    def answer(self) -> Answer:
        """The answer at the claim's own 5 % level."""
        return self.record.verdict.answer

    @property
    def corrected_answer(self) -> Answer | None:
        """The answer after Holm's correction; None if the registered protocol was not followed."""
        return None if self.corrected is None else corrected_answer(self.record.verdict, self.corrected)

    @property
    def part(self) -> Part:
        """The decisive part."""
        parts = self.record.verdict.parts
        return parts[decisive_part(parts, self.answer)]

    @property
    def own_p(self) -> float:
        """The p of the answer that counts in Holm's correction."""
        return decisive_p(self.record.verdict)

    @property
    def forests(self) -> list[Forest]:
        """The figure of the claim."""
        return forests(self.record.verdict.parts)

    @property
    def flags(self) -> list[str]:
        """The reasons to read the verdict with care, in a few words each."""
        registration = self.record.values.get("registration") or {}
        flags = ["not the registered protocol"] * bool(self.record.values.get("overrides"))
        flags += ["fresh table alone"] * self.record.is_fresh
        flags += ["underpowered"] * self.record.is_underpowered
        if not registration.get("commit"):
            return [*flags, "not committed"]
        return flags + ["changed since its registration"] * bool(registration.get("modified"))

    @property
    def runs_text(self) -> str:
        """The numbers of runs by their end, such as ``191 finished, 1 diverged``."""
        return ", ".join(f"{count} {state}" for state, count in self.record.values["runs"].items() if count)

    @property
    def report(self) -> str:
        """The address of the claim's report, relative to the page."""
        return f"{self.record.key}/{self.record.values['report']}"

    @property
    def minutes(self) -> float:
        """The time that the claim took."""
        return float(self.record.values["seconds"]) / 60


def write_claims_page(folder: Path, profiled: str | None = None, absent: Sequence[tuple[str, str]] = ()) -> Path:
    """Write the page over all records below a folder, and a profile page per normalizer; return the page's path.

    Args:
        folder: the folder of the claims' sweeps.
        profiled: the normalizer with a profile page; None: each of the records that no claim is about.
        absent: the claims on which it was not tested, each with the reason.

    Raises:
        ConfigError: a record is damaged.
    """
    records = read_records(folder)
    names = [profiled] if profiled else candidates(records)
    views = list(views_of(records))
    for name in names:
        write_profile(folder, name, records, absent)
    html = render(
        "claims.html",
        views=views,
        arms=arms_in(view.record.verdict for view in views),
        tallies=tallies(views),
        levels=levels_sentence([view for view in views if view.corrected is not None]),
        profiles=[(name, profile_file(name)) for name in names],
        provenance=provenance(records),
        topics=TOPICS,
    )
    write_atomically(folder / PAGE, html)
    return folder / PAGE


def views_of(records: Sequence[ClaimRecord]) -> Iterator[ClaimView]:
    """Yield the claims in their order; other protocols than the registered ones come last."""
    corrected = page_levels(records)
    shown = {record.name for record in records if record.is_registered}
    fresh = {record.name: record for record in records if is_line(record, shown)}
    rows = [record for record in records if not is_line(record, shown)]
    for record in sorted(rows, key=lambda one: not one.is_registered):
        line = fresh.get(record.name) if record.is_registered else None
        yield ClaimView(record, corrected.get(record.key), ClaimView(line, None) if line else None)


def is_line(record: ClaimRecord, names: set[str]) -> bool:
    """Return True if a record is shown in the row of its claim: one of the fresh table, without overrides."""
    return record.is_fresh and not record.values.get("overrides") and record.name in names


def tallies(views: Sequence[ClaimView]) -> list[tuple[str, list[tuple[Answer, int]]]]:
    """Return the numbers of answers at each claim's own level, and after Holm's correction."""
    registered = [view for view in views if view.corrected is not None]
    own = Counter(view.answer for view in registered)
    after = Counter(view.corrected_answer for view in registered)
    rows = (("Each claim at its own 5 % level", own), ("After Holm's correction over this page", after))
    return [(label, [(answer, counts[answer]) for answer in Answer]) for label, counts in rows]


def levels_sentence(views: Sequence[ClaimView]) -> str:
    """Return the sentence on both levels."""
    count = len(views)
    if not count:
        return "No claim has been tested by its registered protocol yet."
    wrong = math.floor(100 * (1 - (1 - ALPHA) ** count) + 0.5)
    many = f", so that among {count} independent claims some answer is wrong in up to {wrong} %" * (count > 1)
    after = "after Holm's correction any answer on this page is wrong in at most 5 %"
    return f"Each answer is wrong in at most 5 % of repetitions{many}; {after}."


def provenance(records: Sequence[ClaimRecord]) -> list[tuple[str, str]]:
    """Return pairs of a label and a value: budget, total time, last run, commit and versions."""
    values = [record.values for record in records]
    codes = [record["code"] for record in values]
    minutes = sum(record["seconds"] for record in values) / 60
    facts = [
        ("budget", ", ".join(distinct(record["budget"] for record in values))),
        ("minutes, all claims", f"{minutes:.0f}"),
        ("last run ended", max((record["ended"] for record in values), default="")),
        ("commit of the code", "\n".join(distinct(code_commit(code) for code in codes))),
    ]
    names = [
        name for name in dict.fromkeys(name for code in codes for name in code) if name not in ("commit", "dirty")
    ]
    facts += [(name, ", ".join(distinct(str(code.get(name, "")) for code in codes))) for name in names]
    return [(label, value) for label, value in facts if value]


def code_commit(code: dict[str, Any]) -> str:
    """Return the commit of the code, with a remark if tracked files differed from it."""
    return f"{code.get('commit') or 'none'}{' (with uncommitted changes)' * bool(code.get('dirty'))}"
