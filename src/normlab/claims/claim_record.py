"""The records of claims, one ``claim.json`` per claim; the entry is :func:`read_records`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normlab.claims.judge import CLAIM_FILE, read_record
from normlab.claims.verdict import Answer, Part, Verdict
from normlab.errors import ConfigError
from normlab.stats.estimates import Estimate
from normlab.stats.regions import Region


@dataclass(frozen=True)
class ClaimRecord:
    """The record of a claim that was tested.

    Attributes:
        folder: the folder of ``claim.json``.
        values: the contents of the file.
        name: the name of the claim.
        verdict: the verdict on the claim.
        profile: the verdicts with other normalizers in the replaceable arm, by name; an error is a line of text.
    """

    folder: Path
    values: Mapping[str, Any]
    name: str
    verdict: Verdict
    profile: Mapping[str, Verdict | str]

    @property
    def key(self) -> str:
        """The name of the folder, which is unique."""
        return self.folder.name

    @property
    def claim(self) -> Mapping[str, Any]:
        """The claim as its YAML states it."""
        return self.values["claim"]

    @property
    def is_fresh(self) -> bool:
        """True if the claim was tested on the table that its design never touched."""
        return bool(self.values.get("fresh"))

    @property
    def is_registered(self) -> bool:
        """True if the registered protocol was followed: no overrides, and not the fresh table."""
        return not self.values.get("overrides") and not self.is_fresh

    @property
    def is_underpowered(self) -> bool:
        """True if the claim was listed as underpowered before its runs."""
        return str(self.claim.get("power") or "").lower().startswith("underpowered")


def read_records(folder: Path) -> list[ClaimRecord]:
    """Read the records in the folders below a folder, in the order of the claims.

    Raises:
        ConfigError: a file is damaged; the message has its path.
    """
    records = [claim_record(path.parent) for path in folder.glob(f"*/{CLAIM_FILE}")]
    return sorted(records, key=lambda record: (record.claim.get("order", 99), record.name, record.key))


def claim_record(folder: Path) -> ClaimRecord:
    """Read the record in a folder; raise ``ConfigError`` if it is damaged."""
    try:
        values = read_record(folder) or {}
        entries = values.get("profile") or {}
        profile = {name: entry.get("error") or read_verdict(entry) for name, entry in entries.items()}
        return ClaimRecord(folder, values, values["claim"]["name"], read_verdict(values["verdict"]), profile)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        expected, remedy = "must hold the record of a claim", "remove it to judge again"
        raise ConfigError(f"{folder / CLAIM_FILE} {expected}, got {error!r}; {remedy}") from error


def read_verdict(values: Mapping[str, Any]) -> Verdict:
    """Return the verdict in a record."""
    estimate = Estimate(values["effect"], *values["interval"])
    numbers = {name: values[name] for name in ("effect", "n", "sentence", "p", "p_against", "needed")}
    parts = tuple(read_part(part) for part in values["parts"])
    return Verdict(answer=Answer(values["answer"]), interval=estimate, parts=parts, **numbers)


def read_part(values: Mapping[str, Any]) -> Part:
    """Return the part of a claim in a record; an end of its region that is missing is infinite."""
    low, high = values["region"]
    region = Region(-math.inf if low is None else low, math.inf if high is None else high)
    fields = ("name", "unit", "effect", "level", "n", "p", "p_against", "needed")
    return Part(interval=tuple(values["interval"]), region=region, **{name: values[name] for name in fields})
