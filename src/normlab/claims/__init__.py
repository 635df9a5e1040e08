"""Claims: criteria that turn the numbers of a sweep into a verdict, to be named by ``_target_``."""

from normlab.claims.criteria import (
    AllOf,
    Better,
    Criterion,
    Difference,
    Each,
    Equivalent,
    Interaction,
    NotWorse,
    Ratio,
    Share,
)
from normlab.claims.quantities import Correlation, Slope, Within
from normlab.claims.sweep import ReportSweep, Sweep
from normlab.claims.verdict import Answer, Part, Verdict

__all__ = [
    "AllOf",
    "Answer",
    "Better",
    "Correlation",
    "Criterion",
    "Difference",
    "Each",
    "Equivalent",
    "Interaction",
    "NotWorse",
    "Part",
    "Ratio",
    "ReportSweep",
    "Share",
    "Slope",
    "Sweep",
    "Verdict",
    "Within",
]
