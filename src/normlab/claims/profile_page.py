"""The profile page of a normalizer: its verdicts beside those of the common ones; see :func:`write_profile`."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from normlab.claims.claim import COMMON
from normlab.claims.claim_figures import Forest, forests
from normlab.claims.claim_record import ClaimRecord
from normlab.claims.page_template import render
from normlab.claims.verdict import Answer, Part, Verdict, decisive_part
from normlab.claims.wording import found_text
from normlab.results.result import write_atomically


@dataclass(frozen=True)
class Cell:
    """The result of one normalizer for one claim: the decisive part and the answer, or an error."""

    arm: str
    answer: Answer | None = None
    part: Part | None = None
    error: str = ""


@dataclass(frozen=True)
class ProfileRow:
    """A claim in the profile of a normalizer.

    Attributes:
        record: the record of the claim.
        cells: the results: the normalizer's own, then those of the common ones.
    """

    record: ClaimRecord
    cells: list[Cell]

    @property
    def own(self) -> Cell:
        """The result of the normalizer."""
        return self.cells[0]

    def cell(self, arm: str) -> Cell | None:
        """Return the result of a normalizer; None without one."""
        return next((cell for cell in self.cells if cell.arm == arm), None)

    @property
    def is_win(self) -> bool:
        """True if a claim in favour of the normalizer holds, or one against it does not."""
        return (self.own.answer == Answer.HOLDS) != bool(self.record.claim.get("weakness"))

    @property
    def finding(self) -> str:
        """The normalizer's number in words."""
        return found_text(self.own.part) if self.own.part else self.own.error

    @property
    def forests(self) -> list[Forest]:
        """The same part for all normalizers, on one axis if the unit is the same."""
        known = [cell for cell in self.cells if cell.part]
        parts = [cell.part for cell in known if cell.part]
        strong = 0 if known and known[0].arm == self.own.arm else None
        return forests(parts, [cell.arm for cell in known], strong) if parts else []

    @property
    def part_count(self) -> int:
        """The number of parts of the claim."""
        return len(self.record.verdict.parts)


def candidates(records: Sequence[ClaimRecord]) -> list[str]:
    """Return the normalizers that have a profile.

    These are neither common ones nor the claim's own arm. If there are no others, the first arm beside the claim's
    own one has the profile.
    """
    arms = [[arm for arm in record.profile if arm != record.claim.get("replace")] for record in records]
    names = dict.fromkeys(arm for each in arms for arm in each if arm not in COMMON)
    return list(names or dict.fromkeys(each[0] for each in arms if each))


def profile_file(name: str) -> str:
    """Return the file name of a profile page.

    >>> profile_file("mine"), profile_file("dyt, alpha=1.0")
    ('profile-mine.html', 'profile-dyt-alpha-1.0.html')
    """
    slug = re.sub(r"[^\w.]+", "-", name)
    return f"profile-{slug}.html"


def write_profile(
    folder: Path, name: str, records: Sequence[ClaimRecord], absent: Sequence[tuple[str, str]] = ()
) -> Path:
    """Write the profile page of a normalizer and return its path; ``absent`` as in ``write_claims_page``."""
    rows = list(profile_rows(name, records))
    by_answer = {answer: [row for row in rows if row.own.answer == answer] for answer in Answer}
    decided = [row for row in rows if row.own.answer in (Answer.HOLDS, Answer.FAILS)]
    path = folder / profile_file(name)
    html = render(
        "claims_profile.html",
        name=name,
        common=[arm for arm in COMMON if arm != name],
        rows=rows,
        wins=[row for row in decided if row.is_win],
        losses=[row for row in decided if not row.is_win],
        undecided=by_answer[Answer.UNDECIDED],
        tallies=[("Each claim at its own 5 % level", [(answer, len(by_answer[answer])) for answer in Answer])],
        failed=[row for row in rows if row.own.answer is None],
        absent=absent,
    )
    write_atomically(path, html)
    return path


def profile_rows(name: str, records: Sequence[ClaimRecord]) -> Iterator[ProfileRow]:
    """Yield a row per claim that was run with a normalizer, in the order of the claims."""
    for record in records:
        if name in record.profile and not record.is_fresh:
            yield ProfileRow(record, profile_cells(name, record))


def profile_cells(name: str, record: ClaimRecord) -> list[Cell]:
    """Return the results for a claim, all of the part that decides for the normalizer itself."""
    others = dict.fromkeys([*(arm for arm in COMMON if arm in record.profile), *record.profile])
    arms = [name, *(arm for arm in others if arm != name)]
    first = next((found for arm in arms if isinstance(found := record.profile[arm], Verdict)), None)
    place = decisive_part(first.parts, first.answer) if first else 0
    return [cell_of(arm, record.profile[arm], place) for arm in arms]


def cell_of(arm: str, found: Verdict | str, place: int) -> Cell:
    """Return the result of a normalizer, given the index of the part that is shown."""
    if isinstance(found, str):
        return Cell(arm, error=found)
    return Cell(arm, found.answer, found.parts[min(place, len(found.parts) - 1)])
