"""The runs of a sweep in Python and notebooks: :func:`load_sweep` and :class:`Sweep`."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from normlab.config.frozen import FrozenConfig
from normlab.errors import ConfigError, nearest, require
from normlab.report.console import run_table
from normlab.report.latex import main_table
from normlab.report.report_data import (
    COMPARISON_COLUMNS,
    ReportData,
    ReportOptions,
    build_report_data,
    curve_direction,
    read_history,
    table_rows,
)
from normlab.report.sweep_summary import SweepSummary, quartile_curves, summarize_sweep
from normlab.results.sweep import Record, read_sweep
from normlab.stats.design import LR
from normlab.stats.sentences import sentence

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import nn

log = logging.getLogger("normlab")
AXES_SIZE = (5.0, 3.6)
"""Width and height of a plot in inches."""


def load_sweep(path: str | PathLike[str]) -> "Sweep":
    """Read the runs of a sweep, or of a single run, from its folder.

    Runs that failed or are not finished count as such; damaged files are named in warnings.

    Args:
        path: a folder with runs at any depth, such as ``outputs/mine``.

    Raises:
        ConfigError: if there is no such folder, it holds no run, or a later version of normlab wrote a run.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder; give the folder of a sweep, such as outputs/mine")
    records = read_sweep(folder)
    if not records:
        raise ConfigError(f"{folder} holds no runs; give the folder of a sweep, or one that contains sweeps")
    unread = [record.folder for record in records if not record.result.config]
    if unread:
        log.warning(
            "%d of %d runs have no readable configuration and count as failed, such as %s",
            len(unread),
            len(records),
            unread[0],
        )
    return Sweep(folder, records)


def sweep(*overrides: str) -> "Sweep":
    """Train a sweep in this process and return it, as ``normlab train -m`` with the same overrides does.

    Log lines and the table are printed; a terminal or a notebook shows a progress bar. An option of one's own is
    found in the folder ``conf`` of the working directory.

    Args:
        overrides: words such as ``"model=bn,nobn"`` and ``"seed=range(8)"``. Without ``hydra.sweep.dir``, the
            sweep is written into a new folder below ``outputs``; a sweep in a given folder is continued.

    Raises:
        ConfigError: for a mistake in the overrides, before anything is trained.
    """
    from normlab.train import train_sweep

    return load_sweep(train_sweep(overrides))


class Sweep:
    """The runs of a sweep as data frames, with comparisons, plots and trained nets; see :func:`load_sweep`.

    Attributes:
        folder: that was read.
    """

    def __init__(self, folder: Path, records: Sequence[Record]) -> None:
        self.folder = folder
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __repr__(self) -> str:
        counts = pd.Series([record.result.status.value for record in self._records]).value_counts()
        return f"<Sweep {self.folder}: " + ", ".join(f"{count} {name}" for name, count in counts.items()) + ">"

    @cached_property
    def _summary(self) -> SweepSummary:
        return summarize_sweep(self._records, ReportOptions.of_runs(self._records, self.folder).compare)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """A row per run, indexed by its number, sorted by setting and seed.

        Columns: ``name``; a column for each setting that varies; ``status`` (finished, diverged, stopped, failed);
        ``seed``; ``best/…``, ``last/…`` and ``final/…``, the metrics at the best epoch, at the last one, and
        their mean over the last tenth of the epochs; ``test/…`` at the best epoch; ``best_epoch``, ``epochs``,
        ``steps``, ``seconds``; ``error``; ``folder``, relative to that of the sweep.
        """
        table = run_table(self._summary, self._records, self.folder)
        return table.set_axis(self._summary.listed.index.rename("run"))

    @cached_property
    def curves(self) -> pd.DataFrame:
        """A row per run, epoch and metric.

        Columns: ``run``, ``epoch``, ``step``, ``metric`` such as ``val/loss``, ``value``.
        """
        return self._summary.curves

    @cached_property
    def probes(self) -> pd.DataFrame:
        """A row per run, step and number of a probe.

        Columns: ``run``, ``epoch``, ``step``, ``probe``, ``mode``, ``quantity``, ``value``.
        """
        return self._summary.probes

    def compare(
        self,
        metric: str | None = None,
        baseline: str | None = None,
        factor: str | None = None,
        margin: float | None = None,
        pairs: bool = False,
    ) -> pd.DataFrame:
        """Compare the arms over their replicates, as the report does, and return a row per comparison.

        Each arm is compared at its best settings. Columns: ``panel``, ``arm``, ``baseline``, ``metric``;
        ``effect``, which is ``ratio``, ``difference`` or ``points`` (percentage points); ``estimate`` with its
        95 % interval from ``low`` to ``high``; ``p`` of the signed-rank test, corrected for all comparisons;
        ``verdict``; ``replicates``; ``sentence``, which says all of it in words.

        >>> print(*sweep.compare()["sentence"], sep="\\n")  # doctest: +SKIP

        Args:
            metric: such as ``test/loss``; by default those of the report.
            baseline: the arm that the others are compared with; by default that of the report.
            factor: the key whose settings are the arms, by default ``model``.
            margin: of the equivalence test.
            pairs: True to compare all arms with each other.

        Raises:
            ConfigError: if there is no such metric, baseline or factor; the message lists those that exist.
        """
        data = self._analyzed(metric=metric, baseline=baseline, compare=factor, margin=margin, pairs=pairs or None)
        rows, design = data.analysis.comparisons, data.analysis.design
        if rows.empty:
            return pd.DataFrame(columns=[*design.panels, *COMPARISON_COLUMNS.values(), "sentence"])
        grid, tuning = data.analysis.grid, data.analysis.tuning
        sentences = [sentence(row, grid, tuning) for row in table_rows(rows)]
        return rows[list(COMPARISON_COLUMNS)].rename(columns=COMPARISON_COLUMNS).assign(sentence=sentences)

    def _analyzed(self, **options: Any) -> ReportData:
        """Return the analysis of the report with other options, None for its own; earlier looks count as there."""
        own = ReportOptions.of_runs(self._records, self.folder)
        given = {name: value for name, value in options.items() if value is not None}
        summary = None if "compare" in given else self._summary
        history = read_history(self.folder, self._records)
        return build_report_data(self._records, replace(own, **given), summary, history, [self.folder])

    def plot_curves(self, metric: str | None = None, panel: str | None = None, ax: "Axes | None" = None) -> "Axes":
        """Plot a metric by epoch: each arm's median over the replicates and its interquartile range.

        The axis shows the second half of training; a triangle at its edge marks where earlier values leave it.

        Args:
            metric: such as ``train/loss``; by default the optimized one.
            panel: if the sweep has several.
            ax: axes to draw into; by default those of a new figure.

        Raises:
            ConfigError: if there is no such metric or panel; the message lists those that exist.
        """
        from normlab.report.charts import draw_medians
        from normlab.report.sections import styles_of

        data, name = self._analyzed(), metric or self._summary.metric
        known = sorted(self.curves["metric"].astype(str).unique())
        if name not in known:
            raise ConfigError(f"metric must be one of {', '.join(known) or 'the recorded ones'}, got {name}")
        runs = data.selected_runs(chosen_panel(data, panel))
        rows = self.curves[self.curves["run"].isin(runs.index) & (self.curves["metric"] == name)]
        curves = quartile_curves(data.summary, rows.assign(step=rows["epoch"]), runs["arm"])
        with plotting(ax, "epoch", name) as axes:
            draw_medians(axes, curves, styles_of(data), "epoch", curve_direction(data.summary, name))
            add_arms(axes, data, list(dict.fromkeys(curves["name"])))
        return axes

    def plot_rates(self, metric: str | None = None, panel: str | None = None, ax: "Axes | None" = None) -> "Axes":
        """Plot a metric against the learning rate: each arm's interquartile mean with its 95 % interval.

        A filled dot is the chosen rate; × marks rates at which runs diverged. See :meth:`plot_curves`.

        Raises:
            ConfigError: if the sweep has one learning rate only.
        """
        from normlab.report.charts import plot_against
        from normlab.report.sections import rate_rows, styles_of

        data = self._analyzed(metric=metric)
        place, primary = chosen_panel(data, panel), data.analysis.design.primary
        rows = rate_rows(data, place) if LR in data.analysis.design.tuned else pd.DataFrame({LR: []})
        if rows[LR].nunique() < 2:
            raise ConfigError(f"plot_rates needs runs with several {LR}, such as {LR}=0.001,0.01,0.1")
        with plotting(ax, "learning rate", primary.name) as axes:
            add_arms(axes, data, plot_against(axes, rows, LR, styles_of(data), primary.direction))
        return axes

    def plot_seeds(self, metric: str | None = None, panel: str | None = None, ax: "Axes | None" = None) -> "Axes":
        """Plot a metric of each replicate as a line across the arms; × marks arms with diverged runs.

        See :meth:`plot_curves`.
        """
        from normlab.report.charts import plot_seeds
        from normlab.report.sections import paired_values, styles_of

        data = self._analyzed(metric=metric)
        values = paired_values(data, chosen_panel(data, panel))
        with plotting(ax, "", data.analysis.design.primary.name) as axes:
            plot_seeds(axes, values, styles_of(data))
        return axes

    def to_latex(self, metric: str | None = None, baseline: str | None = None) -> str:
        """Return the main table in LaTeX (booktabs): each arm's metric and its effect against the baseline.

        The metric is the interquartile mean over the replicates with its 95 % interval. See :meth:`compare`.
        """
        return main_table(self._analyzed(metric=metric, baseline=baseline))

    def net(self, run: int | str, checkpoint: str = "best") -> "nn.Module":
        """Return the trained net of a run, in evaluation mode on the CPU.

        Args:
            run: its number, the index of :attr:`runs`, or its name.
            checkpoint: ``best`` or ``last``.

        Raises:
            ConfigError: if there is no such run or checkpoint, or the net cannot be rebuilt.
        """
        from normlab.evaluation.checkpoint import checkpoint_of, require_fit
        from normlab.training.build import make_module, precision_of, shared_data

        require(checkpoint in ("best", "last"), "checkpoint", "best or last", checkpoint)
        record = self._records[self._number(run)]
        loaded = checkpoint_of(record, checkpoint)
        config = FrozenConfig.of(record.result.config)
        data = shared_data(config)
        net = make_module([config], data).to(precision_of(config)).population.member_net(0)
        require_fit(loaded, net, "its code has changed since the training")
        net.load_state_dict(loaded.state_dict)
        return net.eval()

    def _number(self, run: int | str) -> int:
        names = {record.result.name: number for number, record in enumerate(self._records)}
        if isinstance(run, str) and run not in names:
            raise ConfigError(f"run must be a name of runs.name, got {run}; did you mean {nearest(run, names)}?")
        number = names[run] if isinstance(run, str) else int(run)
        require(0 <= number < len(self), "run", f"from 0 to {len(self) - 1}, the index of runs", number)
        return number


def chosen_panel(data: ReportData, panel: str | None) -> str:
    """Return the panel that is drawn.

    Raises:
        ConfigError: if it does not exist, or there are several and none is chosen.
    """
    panels = data.analysis.arms["panel"].unique().tolist()
    if panel is None and len(panels) == 1:
        return str(panels[0])
    if panel not in panels:
        raise ConfigError(f"panel must be one of {', '.join(map(repr, panels))}, got {panel!r}")
    return str(panel)


@contextmanager
def plotting(ax: "Axes | None", x: str, y: str) -> Iterator["Axes"]:
    """Context manager with the look of the report, for axes that are given or new, with labels."""
    from normlab.report.figures import drawing

    with drawing():
        if ax is None:
            import matplotlib.pyplot as plt

            _, ax = plt.subplots(figsize=AXES_SIZE, layout="constrained")
        yield ax
        ax.set(xlabel=x, ylabel=y)


def add_arms(axes: "Axes", data: ReportData, arms: Sequence[str]) -> None:
    """Add a legend of several arms."""
    from normlab.report.figures import style_entries
    from normlab.report.sections import styles_of

    if len(arms) > 1:
        handles, labels = zip(*style_entries(styles_of(data), {arm: arm for arm in arms}), strict=True)
        axes.legend(handles, labels)
