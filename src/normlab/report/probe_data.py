"""Read a sweep's probe measurements: values over steps, tables of last values, ratios to ``nobn``.

:func:`measurements` is the main entry. Medians are over finished runs, one per seed of a configuration.
Infinite values count as missing, like NaN.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from normlab.report.charts import configuration_styles, legend_labels
from normlab.report.factors import short_names
from normlab.report.figures import LegendEntry, Style, finite, style_entries
from normlab.report.sweep_summary import SweepSummary
from normlab.results.reading import read_arrays
from normlab.stats.comparison import RATIO, estimate_columns, shown_estimate
from normlab.stats.design import MODEL, OPTIMIZER, PLAIN, configuration_label, natural
from normlab.stats.estimates import UNKNOWN_ESTIMATE, Estimate, log_ratios
from normlab.stats.signed_rank import pseudomedian

MODES = ("batch", "frozen")
"""The usual modes in the order of the figures; other modes of a probe follow."""

NO_ROWS = pd.DataFrame({"run": [], "step": [], "value": []})
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


@dataclass(frozen=True)
class ProbeData:
    """The measurements of one probe in the runs of a sweep.

    Attributes:
        name: of the probe.
        sweep: the sweep.
        rows: by mode and quantity, a data frame with the columns ``run``, ``step`` and ``value``.
        headline: the main quantities, which are in the tables.
    """

    name: str
    sweep: SweepSummary
    rows: Mapping[tuple[str, str], pd.DataFrame]
    headline: Sequence[str] = ()

    def restricted_to(self, sweep: SweepSummary) -> "ProbeData":
        """Return the measurements of the runs in a part of the sweep."""
        rows = {key: frame[frame["run"].isin(sweep.runs.index)] for key, frame in self.rows.items()}
        return replace(self, sweep=sweep, rows={key: frame for key, frame in rows.items() if len(frame)})

    @cached_property
    def modes(self) -> list[str]:
        """The modes that were measured, ``batch`` and ``frozen`` first."""
        measured = dict.fromkeys(mode for mode, _ in self.rows)
        return [*(mode for mode in MODES if mode in measured), *(mode for mode in measured if mode not in MODES)]

    @cached_property
    def configurations(self) -> list[str]:
        """The configurations with measurements, in the order of the sweep."""
        probed = set().union(*(rows["run"].unique() for rows in self.rows.values()))
        names = set(self.sweep.runs.loc[[run for run in self.sweep.runs.index if run in probed], "configuration"])
        return [configuration for configuration in self.sweep.configurations.index if configuration in names]

    @cached_property
    def style_of(self) -> dict[str, Style]:
        """The colour and line style of each configuration, as in the learning curves."""
        return configuration_styles(self.sweep)

    @cached_property
    def labels(self) -> dict[str, str]:
        """The legend label of each configuration, with its number of unfinished runs."""
        return legend_labels(self.sweep)

    @cached_property
    def finished(self) -> dict[str, list[int]]:
        """The numbers of the finished runs of each configuration, one per seed."""
        runs = self.sweep.runs[self.sweep.runs["status"] == "finished"].drop_duplicates(["configuration", "seed"])
        return {name: runs.index[runs["configuration"] == name].tolist() for name in self.configurations}

    @cached_property
    def unfinished(self) -> pd.DataFrame:
        """The diverged, stopped and failed runs of the sweep."""
        return self.sweep.runs[self.sweep.runs["status"] != "finished"]

    def has(self, quantity: str, mode: str | None = None) -> bool:
        """Return True if a quantity has a finite value, in any mode by default."""
        modes = self.modes if mode is None else [mode]
        return any(np.isfinite(self.rows_of(mode, quantity)["value"]).any() for mode in modes)

    def rows_of(self, mode: str, quantity: str) -> pd.DataFrame:
        """Return the measurements of one quantity, an empty frame if it was not measured."""
        return self.rows.get((mode, quantity), NO_ROWS)

    def layers(self, name: str) -> list[str]:
        """Return the layers with measurements of ``<layer>/<name>``, in their order in the net."""
        suffix = f"/{name}"
        layers = (quantity.removesuffix(suffix) for _, quantity in self.rows if quantity.endswith(suffix))
        return list(dict.fromkeys(layers))

    def layers_of(self, configuration: str, mode: str, name: str) -> list[str]:
        """Return the layers with measurements in a configuration's runs, in their order in its net."""
        first = next(iter(self.finished[configuration]), None)
        frames = {layer: self.rows_of(mode, f"{layer}/{name}") for layer in self.layers(name)}
        # Rows are in the order in which they were written, which is that of the layers.
        positions = {layer: rows.index[rows["run"] == first] for layer, rows in frames.items()}
        layers = (layer for layer, position in positions.items() if len(position))
        return sorted(layers, key=lambda layer: positions[layer][0])

    def max_measurements(self, quantities: Sequence[str]) -> int:
        """Return the maximum number of steps at which one run was measured."""
        series = [rows for (_, quantity), rows in self.rows.items() if quantity in quantities]
        return max((int(rows["run"].value_counts().max()) for rows in series), default=0)

    def over_steps(self, mode: str, quantity: str, runs: Sequence[int]) -> pd.DataFrame:
        """Return values ``(steps x runs)`` at the steps that at least half of the runs share."""
        rows = self.rows_of(mode, quantity)
        rows = rows[rows["run"].isin(runs)]
        counts = rows["step"].value_counts()
        wide = rows.pivot(index="step", columns="run", values="value").replace([np.inf, -np.inf], np.nan)
        return wide[counts.reindex(wide.index) * 2 >= len(runs)]

    def last(self, mode: str, quantity: str) -> pd.Series:
        """Return the value of each run at its last measurement."""
        if (mode, quantity) not in self._lasts:
            rows = self.rows_of(mode, quantity)
            runs, values = rows["run"].to_numpy(), rows["value"].to_numpy(dtype=float)
            # The rows of a run are consecutive, in the order in which they were written.
            ends = np.flatnonzero(np.append(runs[1:] != runs[:-1], True)[: len(runs)])
            finite = np.where(np.isfinite(values[ends]), values[ends], np.nan)
            self._lasts[mode, quantity] = pd.Series(finite, index=runs[ends])
        return self._lasts[mode, quantity]

    def last_medians(self) -> pd.DataFrame:
        """Return the median over seeds of each last value, a row per configuration and overall quantity."""
        rows = [
            (configuration, mode, name, self.last(mode, name).reindex(runs).median())
            for mode, name in self.rows
            if "/" not in name
            for configuration, runs in self.finished.items()
        ]
        return pd.DataFrame(rows, columns=["arm", "statistics", "quantity", "median"])

    def arrays(self, run: int) -> dict[str, np.ndarray]:
        """Return the arrays of a run at its last measurement, by ``<mode>/<name>``."""
        if run not in self._arrays:
            prefix, arrays = f"{self.name}/", read_arrays(self.sweep.records[run])
            self._arrays[run] = {
                key.removeprefix(prefix): array[-1] for key, array in arrays.items() if key.startswith(prefix)
            }
        return self._arrays[run]

    @cached_property
    def legend(self) -> list[LegendEntry]:
        """The legend entry of each configuration."""
        return style_entries(self.style_of, {name: self.labels[name] for name in self.configurations})

    def stability_limits(self, quantity: str = "stability") -> list[float]:
        """Return the distinct stability limits of the runs' optimizers on a quadratic, sorted and rounded."""
        runs = [run for of_configuration in self.finished.values() for run in of_configuration]
        limits = [self.last(mode, quantity).reindex(runs).dropna() for mode in self.modes]
        return sorted({round(float(limit), 3) for of_mode in limits for limit in of_mode})

    def densities(self, mode: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return eigenvalue grid and spectral density of each configuration's first seed, where measured."""
        spectra = {}
        for configuration in self.configurations:
            for run in self.finished[configuration][:1]:
                arrays = self.arrays(run)
                grid, density = (arrays.get(f"{mode}/{name}") for name in ("density_grid", "density"))
                if grid is not None and density is not None and np.isfinite(density).any():
                    spectra[configuration] = (grid, density)
        return spectra

    def losses(self, mode: str, kind: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return for each configuration α ``(A,)`` and the losses ``(seeds x A)`` on a line."""
        lines = {}
        for configuration in self.configurations:
            pairs = [
                (arrays[f"{mode}/{kind}_alphas"], arrays[f"{mode}/{kind}_losses"])
                for arrays in map(self.arrays, self.finished[configuration])
                if f"{mode}/{kind}_losses" in arrays
            ]
            same = [values for alphas, values in pairs if alphas.shape == pairs[0][0].shape]
            if same and np.isfinite(same).any():
                lines[configuration] = (pairs[0][0], finite(np.stack(same)))
        return lines

    @cached_property
    def _lasts(self) -> dict[tuple[str, str], pd.Series]:
        return {}

    @cached_property
    def _arrays(self) -> dict[int, dict[str, np.ndarray]]:
        return {}


def measurements(sweep: SweepSummary) -> Iterator[ProbeData]:
    """Yield the measurements of each probe in the runs of a sweep."""
    headlines = dict.fromkeys(key for record in sweep.records for key in record.result.probes)
    for name, of_probe in sweep.probes.groupby("probe", sort=False, observed=True):
        groups = of_probe.groupby(["mode", "quantity"], sort=False, observed=True)
        frames = {
            (str(mode), str(quantity)): frame[["run", "step", "value"]] for (mode, quantity), frame in groups
        }
        headline = [key.split("/", 3)[3] for key in headlines if key.startswith(f"probe/{name}/")]
        yield ProbeData(str(name), sweep, frames, tuple(dict.fromkeys(headline)))


def probe_ratios(sweep: SweepSummary) -> pd.DataFrame:
    """Return the ratio of each probe number to that of ``nobn``, a row per configuration and number.

    The baseline of a configuration differs from it in the model alone. The ratio is the Hodges–Lehmann estimate
    over paired seeds with the interval of the signed-rank test; ``smaller`` is the share of seeds whose number is
    smaller than the baseline's. Quantities that are 0 or 1 throughout are flags and left out. The table is empty
    without ``nobn``.
    """
    numbers = sweep.probe_numbers.reindex(sweep.runs.index)
    rows = []
    for configuration, baseline in baseline_pairs(sweep):
        untrained = bool(sweep.configurations.loc[[configuration, baseline], "mostly_untrained"].any())
        for quantity in numbers:
            paired = paired_values(sweep, numbers[quantity], configuration, baseline)
            if len(paired) and not paired.isin([0.0, 1.0]).all(axis=None):
                values, of_baseline = paired[configuration].to_numpy(), paired[baseline].to_numpy()
                row = {"arm": configuration, "baseline": baseline, "quantity": quantity, "untrained": untrained}
                estimate = estimate_columns("ratio", paired_ratio(values, of_baseline))
                smaller = float((values < of_baseline).mean())
                rows.append({**row, "seeds": len(paired), **estimate, "smaller": smaller})
    return pd.DataFrame(rows, columns=RATIO_COLUMNS)


def paired_ratio(values: np.ndarray, baseline: np.ndarray) -> Estimate:
    """Return the ratio of paired values with its 95 % interval; NaN unless all are positive."""
    if (values <= 0).any() or (baseline <= 0).any():
        return UNKNOWN_ESTIMATE
    return shown_estimate(RATIO, pseudomedian(log_ratios(values, baseline)))


def paired_values(sweep: SweepSummary, values: pd.Series, configuration: str, baseline: str) -> pd.DataFrame:
    """Return the seeds at which both configurations have a finite value, ``(seeds x 2)``."""
    runs = sweep.runs.assign(value=values.where(np.isfinite(values)))
    known = runs[runs["configuration"].isin([configuration, baseline])].dropna(subset=["value", "seed"])
    wide = known.drop_duplicates(["configuration", "seed"]).pivot(
        index="seed", columns="configuration", values="value"
    )
    return wide.reindex(columns=[configuration, baseline]).dropna()


def baseline_pairs(sweep: SweepSummary) -> Iterator[tuple[str, str]]:
    """Yield each configuration with a normalizer and the ``nobn`` configuration that equals it otherwise."""
    if MODEL not in sweep.keys:
        return
    rows = sweep.configurations[sweep.keys].to_dict("index").items()
    settings = {str(configuration): dict(row) for configuration, row in rows}
    names = {tuple(row.items()): configuration for configuration, row in settings.items()}
    for configuration, row in settings.items():
        baseline = names.get(tuple({**row, MODEL: PLAIN}.items()))
        if baseline is not None and baseline != configuration:
            yield configuration, baseline


def probe_table(sweep: SweepSummary) -> pd.DataFrame:
    """Return the median of each probe number over finished seeds, a row per configuration."""
    finished = sweep.runs[sweep.runs["status"] == "finished"].drop_duplicates(["configuration", "seed"])
    numbers = sweep.probe_numbers.loc[finished.index]
    return numbers.groupby(finished["configuration"]).median().reindex(sweep.configurations.index)


def split_by_panel(sweep: SweepSummary) -> dict[str, SweepSummary]:
    """Split a sweep into panels by name, such as ``init=kaiming``.

    Within a panel, configurations differ only in the normalizer and in keys of the optimizer and scheduler. A
    sweep that does not vary the normalizer, or varies nothing else, is a single panel with the name "".
    """
    within = [
        key for key in sweep.keys if key == MODEL or (key.startswith(OPTIMIZER) and key not in sweep.implicit)
    ]
    others = [key for key in sweep.keys if key not in within]
    if MODEL not in within or not others:
        return {"": sweep}
    within.sort(key=lambda key: key != MODEL)
    groups = sorted(
        set(sweep.configurations[others].itertuples(index=False, name=None)), key=lambda row: [*map(natural, row)]
    )
    names = short_names(others)
    return {
        configuration_label(names, group): select_panel(sweep, within, dict(zip(others, group, strict=True)))
        for group in groups
    }


def select_panel(sweep: SweepSummary, keys: list[str], common: dict[str, str]) -> SweepSummary:
    """Return the configurations with the ``common`` settings, renamed by their settings of ``keys``."""
    rows = sweep.configurations[(sweep.configurations[list(common)] == list(common.values())).all(axis=1)]
    names = {
        name: configuration_label(keys, settings)
        for name, settings in zip(rows.index, rows[keys].to_numpy().tolist(), strict=True)
    }
    runs = sweep.runs[sweep.runs["configuration"].isin(names)]
    runs = runs.assign(configuration=runs["configuration"].map(names))
    return replace(sweep, keys=keys, configurations=rows.rename(index=names), runs=runs)
