"""The earlier verdicts of a sweep's folder: what they fixed, and how often each comparison was looked at."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from normlab.stats.comparison import ALIKE, ALPHA, BETTER, WORSE, Row
from normlab.stats.grid import Grid, Panel
from normlab.stats.looks import look_level, obrien_fleming
from normlab.stats.tuning import Tuning

Key = tuple[str, ...]
Seeds = tuple[int, ...]


def comparison_key(compare: str, arm: str, baseline: str, place: str) -> Key:
    """Return the key of a comparison, the same whichever of the arms is the baseline."""
    return (compare, *sorted((arm, baseline)), place)


@dataclass
class History:
    """The verdicts that a folder's runs have had so far.

    A first verdict fixes which seeds choose settings, and which settings each arm takes: replicates that are
    added only report. Each later verdict on other replicates is another look at the same comparison.

    Attributes:
        max_replicates: the declared maximum; None without one.
        tuning_seeds: the seeds that choose settings; None before the first verdict.
        settings: the settings that each arm of a panel may take.
        looks: of each comparison, the replicates at each look.
    """

    max_replicates: int | None = None
    tuning_seeds: Seeds | None = None
    settings: dict[tuple[Panel, str], list[Key]] = field(default_factory=dict)
    looks: dict[Key, list[Seeds]] = field(default_factory=dict)

    def look(self, key: Key, seeds: Seeds) -> int:
        """Return the number of a look at a comparison: that of the same replicates before, or the next."""
        earlier = self.looks.get(key, [])
        return earlier.index(seeds) + 1 if seeds in earlier else len(earlier) + 1

    def factor(self, key: Key, seeds: Seeds) -> float:
        """Return the number that p is multiplied with, so that it is compared with 0.05 at any look.

        0.05 over the level of the look: ``k(k + 1)`` at look k, or that of the O'Brien–Fleming boundary where a
        maximum of replicates is declared. Infinite beyond that maximum.
        """
        look = self.look(key, seeds)
        if self.max_replicates is None:
            return ALPHA / look_level(look)
        sizes = [len(own) for own in (*self.looks.get(key, [])[: look - 1], seeds)]
        if sizes[-1] > self.max_replicates or sizes[-1] < 1:
            return float("inf")
        growing = sorted({size for size in sizes if size <= sizes[-1]})
        level = float(obrien_fleming(growing, self.max_replicates)[-1])
        return ALPHA / level if level > 0 else float("inf")

    def add(self, grid: Grid, tuning: Tuning, rows: Iterable[Row]) -> None:
        """Add the verdicts of a sweep; rows without one leave nothing."""
        for row in rows:
            if row["verdict"] not in (BETTER, WORSE, ALIKE):
                continue
            own = self.looks.setdefault(row["key"], [])
            if row["seeds"] not in own:
                own.append(row["seeds"])
            for panel in row["of_panels"]:
                use = grid.uses[panel]
                if not use.within and len(use.tuning) and self.tuning_seeds is None:
                    self.tuning_seeds = tuple(grid.seeds[column] for column in use.tuning)
                for arm in (row["arm"], row["baseline"]):
                    tuned = tuning[panel, arm]
                    rows_taken = tuned.rows if use.within else sorted({int(k) for k in tuned.chosen if k >= 0})
                    self.settings.setdefault((panel, arm), [grid.settings[k].tuned for k in rows_taken])

    def to_json(self) -> dict[str, Any]:
        """Return the history as lists and mappings of text and numbers."""
        return {
            "max_replicates": self.max_replicates,
            "tuning_seeds": self.tuning_seeds,
            "settings": [
                {"panel": panel, "arm": arm, "settings": own} for (panel, arm), own in self.settings.items()
            ],
            "looks": [{"comparison": key, "replicates": seeds} for key, seeds in self.looks.items()],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "History":
        """Return the history that :meth:`to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: the content is damaged.
        """
        seeds = content["tuning_seeds"]
        return cls(
            content["max_replicates"],
            None if seeds is None else as_seeds(seeds),
            {(tuple(e["panel"]), e["arm"]): [tuple(s) for s in e["settings"]] for e in content["settings"]},
            {
                tuple(entry["comparison"]): [as_seeds(own) for own in entry["replicates"]]
                for entry in content["looks"]
            },
        )


def as_seeds(numbers: Sequence[Any]) -> Seeds:
    """Return numbers of a JSON file as seeds."""
    return tuple(int(number) for number in numbers)
