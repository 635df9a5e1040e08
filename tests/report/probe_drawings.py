"""Measurements of every probe, and readers of the figures that are drawn of them."""

import numpy as np
from matplotlib.collections import PathCollection

from normlab.report.figures import drawing, save
from normlab.report.probe_data import measurements
from normlab.report.probe_figures import FIGURES, draw_plain_numbers, probe_figures
from normlab.report.sweep_summary import summarize_sweep
from normlab.results.series import ProbeRecord
from normlab.results.sweep import read_sweep

LIPSCHITZ = {"q25": 50.0, "q75": 200.0, "max": 400.0, "unreliable": 0.0}
CURVATURE = {"lambda_max": 4.0, "dhd_lambda_max": 8.0, "stability": 2.0, "indicative": 0.0}


def measurement(probe, step, mode="batch", arrays=None, headline=(), **numbers):
    values = {name.replace("__", "/"): float(x) for name, x in numbers.items()}
    return ProbeRecord(step // 10, step, 0.0, probe, mode, values, arrays or {}, headline)


def summary_of(tmp_path):
    return summarize_sweep(read_sweep(tmp_path / "sweep"))


def draw_probe(tmp_path, name, *, laid_out=False):
    """Draw the figure of a probe; return it and its axes, or None twice without values."""
    [probe] = [probe for probe in measurements(summary_of(tmp_path)) if probe.name == name]
    with drawing():
        figure = FIGURES.get(name, draw_plain_numbers)(probe) or draw_plain_numbers(probe)
        if laid_out:
            figure.draw_without_rendering()
    return figure, figure and figure.axes


def write_probe_figures(sweep, folder):
    drawn = probe_figures(sweep)
    return [save(figure, folder / f"{stem}.{kind}") for stem, figure, _ in drawn for kind in ("png", "svg")]


def caption_text(figure):
    titles = [legend.get_title() for legend in figure.legends]
    return " ".join(text.get_text() for text in [*figure.texts, *titles]).replace("\n", " ")


def legend_texts(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def panel_titles(figure):
    return [panel.get_title(loc="left") for panel in figure.axes]


def series(axes):
    """Return the values of the non-empty lines of a panel."""
    return [np.asarray(line.get_ydata()).tolist() for line in axes.lines if len(line.get_ydata())]


def dots(axes):
    """Return the positions of the dots of a panel, with a flag for hollow ones."""
    return [
        (x, round(y), bool((face == 1).all()))
        for dots in axes.collections
        if isinstance(dots, PathCollection)
        for (x, y), face in zip(dots.get_offsets().tolist(), dots.get_facecolors()[:, :3], strict=True)
    ]


def all_measurements(step, scale, modes=("batch", "frozen")):
    """Return measurements of all probes at one step."""
    grid, alphas = np.linspace(-1, 5 * scale, 20), np.linspace(-1, 1, 5)
    measurements = []
    for mode in modes:
        spectrum = {"density": np.exp(-(grid**2)), "density_grid": grid}
        losses = {"random_alphas": alphas, "random_losses": 0.1 + scale * alphas**2}
        losses |= {"between_alphas": (alphas + 1) / 2, "between_losses": 1.1 + alphas * scale / 10}
        layers = {
            f"hidden{i}__{name}": scale / i
            for i in (1, 2, 3)
            for name in ("std", "gradient_rms", "effective_rank", "dead")
        }
        percentiles = {f"hidden{i}__{q}": i + x for i in (1, 2) for q, x in (("q15", -1), ("q50", 0), ("q85", 1))}
        ranges = {"loss": 1, "loss_min": 0.5, "loss_max": scale, "predictiveness_min": 0.1, "cosine_min": 0.9}
        measurements += [
            measurement("gradient_lipschitz", step, mode, median=100 * scale, **LIPSCHITZ),
            measurement(
                "along_gradient", step, mode, **ranges, predictiveness_max=scale, beta=scale, beta_lr=scale
            ),
            measurement(
                "covariate_shift", step, mode, difference=scale, relative=0.5, cosine=0.9, out__cosine=0.9
            ),
            measurement("preactivations", step, mode, **percentiles),
            measurement("curvature", step, mode, spectrum, lambda_max_lr=scale / 5, **CURVATURE),
            measurement("activations", step, mode, **layers),
            measurement("line", step, mode, losses, rise=scale),
            measurement("of_a_user", step, mode, norm=scale, hidden1__norm=scale),
        ]
    return measurements


NAMES = [*FIGURES, "of_a_user"]
