"""Search space of a study: the dimensions of swept overrides; the entry is :func:`dimension_of`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep, Sweep

from normlab.errors import ConfigError, require

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

LOG = "log"
"""The tag of a dimension that is searched on a logarithmic scale."""


@dataclass(frozen=True)
class Dimension:
    """A swept override.

    Attributes:
        key: of the override, with ``+`` or ``++`` if it adds a key.
        typed: the override as typed.
        values: of a list or a range, in order; empty for an interval.
        texts: the values as they are written in an override.
        low, high: the ends of an interval or range; None for a list.
        step: between the values of a range; None for others.
        log: whether the scale is logarithmic.
    """

    key: str
    typed: str
    values: Sequence[Any] = ()
    texts: Sequence[str] = ()
    low: float | None = None
    high: float | None = None
    step: float | None = None
    log: bool = False

    def distribution(self) -> "BaseDistribution":
        """Return Optuna's distribution."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.low is None or self.high is None:
            return CategoricalDistribution(list(self.values))
        if isinstance(self.low, int):
            return IntDistribution(self.low, int(self.high), self.log, int(self.step or 1))
        return FloatDistribution(self.low, self.high, self.log, self.step)

    def trained(self, value: Any) -> Any:
        """Return the value that is trained for one that Optuna sampled.

        Floats of an interval are rounded to six significant digits, so that tables and folders can be read.
        """
        if self.low is None or self.high is None:
            return value
        if self.values:  # Optuna computes low + k step, with rounding errors
            return min(self.values, key=lambda own: abs(own - value))
        rounded = float(f"{value:.6g}") if isinstance(value, float) else value
        return min(max(rounded, self.low), self.high)

    def word(self, value: Any) -> str:
        """Return the override that assigns a value of :meth:`trained`."""
        text = self.texts[self.values.index(value)] if self.values and self.low is None else value
        return f"{self.key}={text}"

    @property
    def extremes(self) -> Sequence[Any]:
        """The values that are validated before the study: those of a list, the ends of others."""
        return self.values if self.low is None else list(dict.fromkeys((self.low, self.high)))


def dimension_of(override: Override) -> Dimension:
    """Return the dimension of a swept override.

    Raises:
        ConfigError: for an empty range or interval, and for a scale that Optuna cannot search.
    """
    key, typed, sweep = override.get_key_element(), str(override.input_line), override.value()
    tags = sweep.tags if isinstance(sweep, Sweep) else set()
    for tag in sorted(tags - {LOG}):
        raise ConfigError(f"{typed}: the tag of a search space must be {LOG}, got {tag}")
    if isinstance(sweep, IntervalSweep):
        return interval(key, typed, sweep)
    texts = list(dict.fromkeys(override.sweep_string_iterator()))
    require(len(texts) > 0, key, "at least one value", typed)
    if isinstance(sweep, RangeSweep):
        return range_of(key, typed, list(override.sweep_iterator()), LOG in tags)
    if LOG in tags:
        raise ConfigError(f"{typed}: a list has no logarithmic scale; leave out the tag")
    assert isinstance(sweep, ChoiceSweep) or override.is_choice_sweep()
    values = [plain(value) for value in override.sweep_iterator()]
    values = values if len(values) == len(texts) == len(set(values)) else list(texts)
    return Dimension(key, typed, values, texts)


def plain(value: Any) -> Any:
    """Return a number, truth value or None as it is, and the text of all others, as Optuna takes no lists."""
    return (
        value
        if value is None or isinstance(value, bool | int | float)
        else Override._get_value_element_as_str(value)
    )


def interval(key: str, typed: str, sweep: IntervalSweep) -> Dimension:
    """Return the dimension of an interval: of integers if both ends are, otherwise of floats."""
    low, high = sweep.start, sweep.end
    assert low is not None
    assert high is not None
    require(low <= high, key, "an interval from low to high", typed)
    require_positive(low, key, typed, LOG in sweep.tags)
    if not (isinstance(low, int) and isinstance(high, int)):
        low, high = float(low), float(high)
    return Dimension(key, typed, low=low, high=high, log=LOG in sweep.tags)


def range_of(key: str, typed: str, values: list[Any], log: bool) -> Dimension:
    """Return the dimension of a range, whose values are ordered numbers."""
    step = abs(values[1] - values[0]) if len(values) > 1 else 1
    require_positive(min(values), key, typed, log)
    if log and not (isinstance(values[0], int) and step == 1):
        raise ConfigError(f"{typed}: a range with a logarithmic scale must have integers and step 1; use interval")
    low, high = min(values), max(values)
    return Dimension(key, typed, values, [str(value) for value in values], low, high, None if log else step, log)


def require_positive(low: float, key: str, typed: str, log: bool) -> None:
    """Raise ConfigError for a logarithmic scale that begins at 0 or below."""
    require(not log or low > 0, key, "above 0 on a logarithmic scale", typed)
