"""How much longer a step of one arm takes than one of another; the entry is :func:`time_per_step_ratio`."""

import numpy as np
from numpy.typing import ArrayLike

from normlab.stats.estimates import Estimate
from normlab.stats.pseudomedian import paired_test


def time_per_step_ratio(arm: ArrayLike, baseline: ArrayLike, level: float = 0.95) -> Estimate:
    r"""Return the ratio of two arms' seconds per step, estimated from rounds in which both were timed.

    .. math::
        \exp(\hat\theta), \qquad \hat\theta = \mathrm{median}_{q \le r}\, \frac{d_q + d_r}{2}, \qquad
        d_r = \log \frac{t_r^{\text{arm}}}{t_r^{\text{baseline}}}

    with the interval of the signed-rank test of d, :func:`~normlab.stats.pseudomedian.paired_test`. The
    rounds are interleaved, so that a machine that slows down slows both arms of a pair.

    The interval is about the noise of repeated timing in one process on one machine. It covers no other process,
    version or machine. Rounds that other work disturbs together are not independent, and make it too narrow.

    Args:
        arm: t of the arm, seconds per step of each round, ``(R,)``.
        baseline: t of the baseline in the same rounds, ``(R,)``.
        level: the confidence, between 0 and 1.

    Raises:
        ValueError: if the rounds are not the same, or a time is not positive.
    """
    ours, theirs = np.asarray(arm, dtype=float), np.asarray(baseline, dtype=float)
    if ours.shape != theirs.shape or ours.ndim != 1:
        raise ValueError(f"both arms must have the same rounds (R,), got {ours.shape} and {theirs.shape}")
    if not (ours > 0).all() or not (theirs > 0).all():
        raise ValueError("times must be positive")
    shift = paired_test(np.log(ours / theirs), level).shift
    return Estimate(*(float(np.exp(end)) for end in (shift.value, shift.low, shift.high)))
