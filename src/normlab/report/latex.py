"""The main table of a report in LaTeX, :func:`main_table`."""

import pandas as pd

from normlab.report.console import with_interval
from normlab.report.report_data import ReportData, table_rows
from normlab.stats.comparison import RATIO


def main_table(data: ReportData) -> str:
    """Return a table of each arm's primary metric, with its interval, and its effect against the baseline."""
    name, comparisons = data.analysis.design.primary.name, data.analysis.comparisons
    effects = {}
    for row in table_rows(comparisons):
        if row["metric"] == name and row["baseline"] == data.analysis.design.baseline:
            shown = with_interval(row, "estimate")
            effects[row["panel"], row["arm"]] = f"$\\times$ {shown}" if row["effect"] == RATIO else shown
    lines = [
        [
            row["panel"],
            row["arm"],
            str(row["seeds"]),
            with_interval(row, "iqm"),
            effects.get((row["panel"], row["arm"]), "--"),
        ]
        for row in table_rows(data.analysis.arms)
    ]
    frame = pd.DataFrame(lines, columns=["panel", "arm", "replicates", name, "effect"])
    return latex_table(frame if frame["panel"].any() else frame.drop(columns="panel"))


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
    """Escape the characters of names and numbers that LaTeX reads as commands."""
    for character in "&%#_":
        text = text.replace(character, f"\\{character}")
    return text.replace("\N{MINUS SIGN}", "$-$").replace("\N{EN DASH}", "--")
