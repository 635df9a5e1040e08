"""Measurements of probes as data frames, tables of the last ones, and ratios of arms.

As in the tables, only finished runs count, one for each seed of an arm. Infinite values are gaps, as NaN is.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from normlab.report.console import aligned, format_number
from normlab.report.factors import short_names
from normlab.report.figures import Style, legend_labels, styles
from normlab.report.selectors import with_interval
from normlab.report.sweep_summary import SweepSummary
from normlab.results.probes import read_arrays, read_probes
from normlab.results.sweep import Record
from normlab.stats.comparison import RATIO, estimate_columns, shown_estimate
from normlab.stats.configurations import configuration_label
from normlab.stats.design import MODEL, PLAIN
from normlab.stats.estimates import UNKNOWN_ESTIMATE, Estimate
from normlab.stats.outcomes import log_ratios
from normlab.stats.signed_rank import pseudomedian

MODES = ("batch", "frozen")
"""In this order; what others a probe has come after them."""

NO_NUMBERS = pd.DataFrame({"run": [], "step": [], "value": []})
MOST_SEEDS, ENOUGH = 24, 8
"""The lines that are printed, and the seeds that a line needs; the report has all."""
RATIO_COLUMNS = [
    "arm",
    "baseline",
    "quantity",
    "untrained",
    "seeds",
    "ratio",
    "ratio_low",
    "ratio_high",
    "smaller",
]
TABLE_LETTERS = 100
"""How many letters a line that is printed has, at most, where one column is not wider."""


@dataclass(frozen=True)
class Measured:
    """What one probe found in the runs of a sweep.

    Attributes:
        name: the probe's.
        sweep: of which the runs are.
        rows: the numbers by mode and quantity: frames with a row per ``run``, ``step`` and ``value``.
        folders: of the runs, by number.
        headline: the quantities that a table has room for.
    """

    name: str
    sweep: SweepSummary
    rows: Mapping[tuple[str, str], pd.DataFrame]
    folders: Mapping[int, Path]
    headline: Sequence[str] = ()

    def within(self, sweep: SweepSummary) -> "Measured":
        """Return the measurements of the runs of a part of the sweep."""
        rows = {key: part[part["run"].isin(sweep.runs.index)] for key, part in self.rows.items()}
        return replace(self, sweep=sweep, rows={key: part for key, part in rows.items() if len(part)})

    @cached_property
    def modes(self) -> list[str]:
        """What normalizers went by."""
        found = dict.fromkeys(mode for mode, _ in self.rows)
        return [*(mode for mode in MODES if mode in found), *(mode for mode in found if mode not in MODES)]

    @cached_property
    def arms(self) -> list[str]:
        """The arms that the probe looked at, as they are sorted in the sweep."""
        probed = set().union(*(rows["run"].unique() for rows in self.rows.values()))
        seen = set(self.sweep.runs.loc[[run for run in self.sweep.runs.index if run in probed], "configuration"])
        return [arm for arm in self.sweep.configurations.index if arm in seen]

    @cached_property
    def looks(self) -> dict[str, Style]:
        """The colour and line of each arm, as in the curves."""
        varied = [tuple(arm) for arm in self.sweep.configurations[self.sweep.keys].to_numpy()]
        return dict(zip(self.sweep.configurations.index, styles(varied), strict=True))

    @cached_property
    def labels(self) -> dict[str, str]:
        """What each arm is called, with the number of its runs that did not finish."""
        return dict(zip(self.sweep.configurations.index, legend_labels(self.sweep), strict=True))

    @cached_property
    def brief(self) -> dict[str, str]:
        """What each arm is called where there is little room, the number of its lost runs in a second line."""
        names = {str(arm): str(arm) for arm in self.sweep.configurations.index}
        short = short_names(self.sweep.keys)
        if self.sweep.keys:
            rows = self.sweep.configurations[self.sweep.keys].to_numpy().tolist()
            names = {arm: configuration_label(short, row) for arm, row in zip(names, rows, strict=True)}
        lost = {arm: self.labels[arm].removeprefix(arm).strip() for arm in names}
        return {arm: f"{name}\n{lost[arm]}".strip() for arm, name in names.items()}

    @cached_property
    def ended(self) -> dict[str, list[int]]:
        """The runs of each arm that count."""
        runs = self.sweep.runs[self.sweep.runs["status"] == "finished"].drop_duplicates(["configuration", "seed"])
        return {arm: runs.index[runs["configuration"] == arm].tolist() for arm in self.arms}

    @cached_property
    def unended(self) -> pd.DataFrame:
        """The runs that did not finish."""
        return self.sweep.runs[self.sweep.runs["status"] != "finished"]

    def has(self, quantity: str, mode: str | None = None) -> bool:
        """Return whether any value of a quantity is a number."""
        modes = self.modes if mode is None else [mode]
        return any(np.isfinite(self.of(mode, quantity)["value"]).any() for mode in modes)

    def of(self, mode: str, quantity: str) -> pd.DataFrame:
        """Return the rows of one quantity, none if it was not measured."""
        return self.rows.get((mode, quantity), NO_NUMBERS)

    def layers(self, name: str) -> list[str]:
        """Return the layers in which something was measured, in their order in the net."""
        ends = f"/{name}"
        found = (quantity.removesuffix(ends) for _, quantity in self.rows if quantity.endswith(ends))
        return list(dict.fromkeys(found))

    def layers_of(self, arm: str, mode: str, name: str) -> list[str]:
        """Return the layers in which something was measured in an arm's runs, in their order in its net."""
        first = next(iter(self.ended[arm]), None)
        found = {layer: self.of(mode, f"{layer}/{name}") for layer in self.layers(name)}
        # The rows keep the order in which they were written, which is that of the layers.
        places = {layer: rows.index[rows["run"] == first] for layer, rows in found.items()}
        return sorted((layer for layer in places if len(places[layer])), key=lambda layer: places[layer][0])

    def moments(self, quantities: Sequence[str]) -> int:
        """Return at how many steps a run was looked at, most often."""
        series = [rows for (_, quantity), rows in self.rows.items() if quantity in quantities]
        return max((int(rows["run"].value_counts().max()) for rows in series), default=0)

    def over_steps(self, mode: str, quantity: str, runs: Sequence[int]) -> pd.DataFrame:
        """Return values ``(steps x runs)`` of an arm, at the steps at which half of its runs or more were seen."""
        rows = self.of(mode, quantity)
        rows = rows[rows["run"].isin(runs)]
        probed = rows["step"].value_counts()
        wide = rows.pivot(index="step", columns="run", values="value").replace([np.inf, -np.inf], np.nan)
        return wide[probed.reindex(wide.index) * 2 >= len(runs)]

    def last(self, mode: str, quantity: str) -> pd.Series:
        """Return each run's value at its last moment."""
        if (mode, quantity) not in self._lasts:
            rows = self.of(mode, quantity)
            runs, values = rows["run"].to_numpy(), rows["value"].to_numpy(dtype=float)
            # The rows of a run are together, in the order in which they were written.
            ends = np.flatnonzero(np.append(runs[1:] != runs[:-1], True)[: len(runs)])
            finite = np.where(np.isfinite(values[ends]), values[ends], np.nan)
            self._lasts[mode, quantity] = pd.Series(finite, index=runs[ends])
        return self._lasts[mode, quantity]

    def arrays(self, run: int) -> dict[str, np.ndarray]:
        """Return the arrays of a run at its last moment, by ``<mode>/<name>``."""
        if run not in self._arrays:
            prefix, found = f"{self.name}/", read_arrays(self.folders[run])
            self._arrays[run] = {
                key.removeprefix(prefix): array[-1] for key, array in found.items() if key.startswith(prefix)
            }
        return self._arrays[run]

    @cached_property
    def _lasts(self) -> dict[tuple[str, str], pd.Series]:
        return {}

    @cached_property
    def _arrays(self) -> dict[int, dict[str, np.ndarray]]:
        return {}


def measured(sweep: SweepSummary, records: Sequence[Record]) -> Iterator[Measured]:
    """Yield the measurements of each probe in the runs of a sweep."""
    rows = read_probes(records)
    rows = rows.drop_duplicates(["run", "probe", "mode", "quantity", "step"], keep="last")
    folders = {number: record.folder for number, record in enumerate(records)}
    headlines = dict.fromkeys(key for record in records for key in record.result.probes)
    for name, of_probe in rows.groupby("probe", sort=False, observed=True):
        parts = of_probe.groupby(["mode", "quantity"], sort=False, observed=True)
        kept = {(str(mode), str(quantity)): part[["run", "step", "value"]] for (mode, quantity), part in parts}
        heads = [key.split("/", 3)[3] for key in headlines if key.startswith(f"probe/{name}/")]
        yield Measured(str(name), sweep, kept, folders, tuple(dict.fromkeys(heads)))


def seed_quartiles(values: np.ndarray) -> np.ndarray:
    """Return the quartiles ``(3, n)`` of ``(n x seeds)``, over the seeds of which half or more have a number.

    >>> seed_quartiles(np.array([[1.0, 2.0, 4.0], [np.nan, 2.0, 4.0], [np.nan, np.nan, 4.0]])).T.tolist()
    [[1.5, 2.0, 3.0], [2.5, 3.0, 3.5], [nan, nan, nan]]
    """
    found = np.full((3, len(values)), np.nan)
    known = np.isfinite(values).sum(axis=1) * 2 >= max(1, values.shape[1])
    if known.any():
        quantile = np.quantile if np.isfinite(values[known]).all() else np.nanquantile
        found[:, known] = quantile(values[known], [0.25, 0.5, 0.75], axis=1)
    return found


def probe_ratios(sweep: SweepSummary, records: Sequence[Record]) -> pd.DataFrame:
    """Return a row per arm and number: its ratio to that of the arm that differs in the model alone.

    The ratio is the Hodges–Lehmann estimate over paired seeds, with the interval of the signed-rank test;
    ``smaller`` is the share of the seeds in which the arm's number is smaller. Flags are left out. Empty without
    an arm of ``nobn``.
    """
    found = probe_columns(records).reindex(sweep.runs.index)
    rows = []
    for arm, baseline in pairs(sweep):
        untrained = bool(sweep.configurations.loc[[arm, baseline], "mostly_untrained"].any())
        for quantity in found:
            both = paired_values(sweep, found[quantity], arm, baseline)
            if len(both) and not both.isin([0.0, 1.0]).all(axis=None):
                ours, theirs = both[arm].to_numpy(), both[baseline].to_numpy()
                about = {"arm": arm, "baseline": baseline, "quantity": quantity, "untrained": untrained}
                estimate = estimate_columns("ratio", ratio(ours, theirs))
                rows.append({**about, "seeds": len(both), **estimate, "smaller": float((ours < theirs).mean())})
    return pd.DataFrame(rows, columns=RATIO_COLUMNS)


def ratio(arm: np.ndarray, baseline: np.ndarray) -> Estimate:
    """Return the ratio of paired numbers with its 95 % interval; NaN unless all are positive."""
    if (arm <= 0).any() or (baseline <= 0).any():
        return UNKNOWN_ESTIMATE
    return shown_estimate(RATIO, pseudomedian(log_ratios(arm, baseline)))


def paired_values(sweep: SweepSummary, values: pd.Series, arm: str, baseline: str) -> pd.DataFrame:
    """Return the finite values of two arms, ``(seeds x 2)``."""
    runs = sweep.runs.assign(value=values.where(np.isfinite(values)))
    known = runs[runs["configuration"].isin([arm, baseline])].dropna(subset=["value", "seed"])
    wide = known.drop_duplicates(["configuration", "seed"]).pivot(
        index="seed", columns="configuration", values="value"
    )
    return wide.reindex(columns=[arm, baseline]).dropna()


def pairs(sweep: SweepSummary) -> Iterator[tuple[str, str]]:
    """Yield each arm with a normalizer, and the one that differs from it in having none."""
    if MODEL not in sweep.keys:
        return
    settings = {str(arm): dict(row) for arm, row in sweep.configurations[sweep.keys].to_dict("index").items()}
    names = {tuple(own.items()): arm for arm, own in settings.items()}
    for arm, own in settings.items():
        other = names.get(tuple({**own, MODEL: PLAIN}.items()))
        if other is not None and other != arm:
            yield arm, other


def ratio_lines(table: pd.DataFrame) -> list[str]:
    """Return the lines of the table that is printed, where there are as many seeds as a claim needs."""
    rows = table[(table["seeds"] >= ENOUGH) & table["ratio"].notna()].head(MOST_SEEDS).to_dict("records")
    if not rows:
        return []
    left = {
        f"against {PLAIN}": [str(row["arm"]) for row in rows],
        "of": [str(row["quantity"]).removeprefix("probe/") for row in rows],
    }
    right = {
        "ratio (95 % interval)": [
            "one is untrained" if row["untrained"] else with_interval(row, "ratio")  # type: ignore[arg-type]
            for row in rows
        ],
        "smaller": [f"{round(row['smaller'] * row['seeds'])}/{row['seeds']}" for row in rows],
    }
    return [
        *aligned(left, right),
        "",
        "ratio: median over the seeds, paired (Hodges–Lehmann); smaller: in how many of them",
    ]


def probe_columns(records: Sequence[Record]) -> pd.DataFrame:
    """Return a row per record and a column ``probe/<probe>/<mode>/<quantity>`` per number, NaN where missing."""
    return pd.DataFrame([record.result.probes for record in records], index=range(len(records)), dtype=float)


def probe_table(sweep: SweepSummary, records: Sequence[Record]) -> pd.DataFrame:
    """Return a row per arm: the median of each number over the seeds whose runs finished, NaN left out."""
    finished = sweep.runs[sweep.runs["status"] == "finished"].drop_duplicates(["configuration", "seed"])
    found = probe_columns(records).loc[finished.index]
    return found.groupby(finished["configuration"]).median().reindex(sweep.configurations.index)


def printed_probes(sweep: SweepSummary, records: Sequence[Record]) -> list[str]:
    """Return the lines of a table for each probe, below each other; a wide one is broken."""
    table = probe_table(sweep, records)
    left = {
        name: sweep.configurations[key].tolist()
        for name, key in zip(short_names(sweep.keys), sweep.keys, strict=True)
    }
    left = left or {"arm": sweep.configurations.index.tolist()}
    several = (sweep.runs.groupby("configuration")["seed"].nunique() > 1).any()
    over = ", median over the finished seeds" if several else ""
    blocks: dict[str, dict[str, list[str]]] = {}
    for column in table:
        _, probe, mode, quantity = str(column).split("/", 3)
        blocks.setdefault(probe, {})[f"{quantity} ({mode})"] = [format_number(value) for value in table[column]]
    lines: list[str] = []
    for probe, cells in blocks.items():
        lines += [*([""] if lines else []), f"{probe}: when it last looked{over}"]
        for part in broken(left, cells):
            lines += aligned(left, part)
    return lines


def broken(left: dict[str, list[str]], right: dict[str, list[str]]) -> list[dict[str, list[str]]]:
    """Return the columns of ``right`` in parts, each of which fits beside ``left``."""
    parts: list[dict[str, list[str]]] = [{}]
    for name, cells in right.items():
        if parts[-1] and max(map(len, aligned(left, {**parts[-1], name: cells}))) > TABLE_LETTERS:
            parts.append({})
        parts[-1][name] = cells
    return parts
