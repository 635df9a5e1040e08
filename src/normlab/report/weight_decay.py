"""Describes in words which parameters had weight decay in the runs of a report: :func:`weight_decay_texts`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from normlab.results.result import Result

SELECTED = {
    "norm": "those of normalizers",
    "bias": "biases",
    "hidden": "hidden weight matrices",
    "scale_dependent": "those that are not scale-invariant",
}
"""Words for the entries of ``optimizer.no_decay`` and of ``match`` that are no regular expressions."""


def weight_decay_texts(results: Sequence[Result]) -> list[str]:
    """Return the distinct descriptions of the weight decay of runs; empty if none of them has any.

    A run without a number for the weight decay has the default of its optimizer, which records do not contain.
    """
    nodes = [result.config.get("optimizer") or {} for result in results]
    texts = list(dict.fromkeys("; ".join(decay_clauses(node)) for node in nodes))
    return [text or "no weight decay" for text in texts] if any(texts) else []


def decay_clauses(node: Mapping[str, Any]) -> Iterator[str]:
    """Yield for each optimizer of a node the weight decay and the parameters that have it.

    >>> list(decay_clauses({"weight_decay": 0.1, "no_decay": ["norm", "^out"]}))
    ['weight decay 0.1 of all parameters except those of normalizers and those with a name that matches ^out']
    """
    excluded, groups = node.get("no_decay") or [], node.get("groups") or {}
    selected = list(dict.fromkeys(entry for group in groups.values() for entry in group["match"]))
    if value := decay_value(node, excluded):
        yield f"weight decay {value} of all parameters{exception([*excluded, *selected])}"
    for group in groups.values():
        own = group if "_target_" in group else {**node, **group}
        if value := decay_value(own, excluded):
            yield f"weight decay {value} of {selection(group['match'])}{exception(excluded)}"


def decay_value(node: Mapping[str, Any], excluded: Sequence[str]) -> str:
    """Return the weight decay of an optimizer; empty if it is 0, or unknown and nothing depends on it."""
    value = node.get("weight_decay")
    if value is None:
        return "by default" if excluded else ""
    return f"{value:g}" if value > 0 else ""


def exception(entries: Sequence[str]) -> str:
    """Return words for the parameters that are excluded; empty if none is."""
    return f" except {selection(list(dict.fromkeys(entries)))}" if entries else ""


def selection(entries: Sequence[str]) -> str:
    """Return words for the parameters that entries select.

    >>> selection(["norm", "bias"])
    'those of normalizers and biases'
    """
    return " and ".join(SELECTED.get(entry, f"those with a name that matches {entry}") for entry in entries)
