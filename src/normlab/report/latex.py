"""The main table of a report in LaTeX, :func:`main_table`."""

import pandas as pd

from normlab.report.console import effect_text, with_interval
from normlab.report.report_data import ReportData, table_rows

COMMANDS = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%#_$" + "{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"$<$",
        ">": r"$>$",
        "\N{MULTIPLICATION SIGN}": r"$\times$",
        "\N{MINUS SIGN}": "$-$",
        "\N{INFINITY}": r"$\infty$",
        "\N{EN DASH}": "--",
    }
)
"""The characters that LaTeX reads as commands or lacks, and their spelling."""


def main_table(data: ReportData) -> str:
    """Return a table of each arm's primary metric, with its interval, and its effect against the baseline.

    Columns without content, such as the arm where there is one, are left out.
    """
    name, comparisons = data.analysis.design.primary.name, data.analysis.comparisons
    effects: dict[tuple[str, str], str] = {}
    for row in table_rows(comparisons):
        if row["metric"] == name:  # of several pairs of an arm, that with the baseline comes first
            effects.setdefault((row["panel"], row["arm"]), effect_text(row))
    lines = [
        [
            row["panel"],
            row["arm"],
            str(row["seeds"]),
            with_interval(row, "iqm"),
            effects.get((row["panel"], row["arm"]), "\N{EN DASH}"),
        ]
        for row in table_rows(data.analysis.arms)
    ]
    frame = pd.DataFrame(lines, columns=["panel", "arm", "replicates", name, "effect"])
    unused = [name for name in ("panel", "arm") if not frame[name].any()] + ["effect"] * (not effects)
    return latex_table(frame.drop(columns=unused))


def latex_table(frame: pd.DataFrame) -> str:
    r"""Return a table in LaTeX with the rules of booktabs.

    >>> print(latex_table(pd.DataFrame({"arm": ["ws_gn"], "loss": ["0.1"]})))
    \begin{tabular}{ll}
    \toprule
    arm & loss \\
    \midrule
    ws\_gn & 0.1 \\
    \bottomrule
    \end{tabular}
    """
    rows = [" & ".join(escaped(str(cell)) for cell in row) + r" \\" for row in frame.to_numpy().tolist()]
    head = " & ".join(escaped(str(name)) for name in frame) + r" \\"
    begin = f"\\begin{{tabular}}{{{'l' * frame.shape[1]}}}"
    return "\n".join([begin, r"\toprule", head, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}"])


def escaped(text: str) -> str:
    r"""Escape the characters of names and numbers that LaTeX reads as commands.

    >>> escaped("lr_0 = 5 % & {#1}"), escaped("\N{MULTIPLICATION SIGN} 1 (\N{MINUS SIGN}2 to \N{INFINITY})")
    ('lr\\_0 = 5 \\% \\& \\{\\#1\\}', '$\\times$ 1 ($-$2 to $\\infty$)')
    """
    return text.translate(COMMANDS)
