"""Verdict sentences: comparisons, time ratios and interactions as text; see :func:`sentence`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from normlab.stats.comparison import (
    ALPHA,
    BETTER,
    BEYOND_MAXIMUM,
    NO_DIFFERENCE,
    NOT_COMPARABLE,
    POINTS,
    RATIO,
    TOO_FEW,
    WORSE,
)
from normlab.stats.design import LR, Scope
from normlab.stats.grid import Grid
from normlab.stats.multiple_comparisons import PART_OF_POOLED, replicates_needed
from normlab.stats.tuning import Tuned, Tuning

AnyRow = Mapping[Any, Any]
UNTUNED = "not tuned: other rates may reverse it"


def sentence(row: AnyRow, grid: Grid, tuning: Tuning) -> str:
    """Return a comparison as a sentence: finding, effect with interval, p, scope and settings.

    Args:
        row: a row of the comparisons.
        grid, tuning: the sweep and the chosen settings.
    """
    return "; ".join(clauses(row, grid, tuning))


def clauses(row: AnyRow, grid: Grid, tuning: Tuning) -> list[str]:
    """Return the clauses of the sentence, the finding first."""
    arm, baseline, verdict = row["arm"], row["baseline"], row["verdict"]
    where = f" at {row['panel']}" if row["panel"] else ""
    if verdict.startswith(NOT_COMPARABLE):
        return [f"{arm} and {baseline}{where} are {verdict}"]
    effect = effect_clause(row)
    if verdict == PART_OF_POOLED:
        return [f"{arm} against {baseline}{where}, {verdict}: {effect}"]
    settings = settings_clause(row, grid, tuning)
    notes = [*settings, *shortened_clause(row, grid, tuning), *failure_clause(row)]
    if verdict == TOO_FEW:
        finding = f"{verdict} to compare {arm} with {baseline}{where}: {too_few_reason(row)}"
        return [finding, effect, *equivalence_clause(row), *notes]
    if verdict == BEYOND_MAXIMUM:
        return [f"{verdict} for {arm} against {baseline}{where}", effect, *equivalence_clause(row), *notes]
    if verdict in (BETTER, WORSE):
        finding = f"{arm} is {verdict} than {baseline}{where}"
    else:
        finding = f"{verdict} between {arm} and {baseline}{where}"
    tail = [*new_table_clause(row, grid), *equivalence_clause(row), *notes]
    return [f"{finding}: {effect}, {p_clause(row)}{scope_clause(row)}", *undeclared_clause(row), *tail]


def undeclared_clause(row: AnyRow) -> list[str]:
    """Return the reason for no declared difference although the interval excludes equality."""
    same = 1.0 if row["effect"] == RATIO else 0.0
    if (
        row["verdict"] != NO_DIFFERENCE
        or math.isnan(row["estimate"])
        or row["estimate_low"] <= same <= row["estimate_high"]
    ):
        return []
    if row["p_near_best"] > ALPHA >= row["p"]:
        worse = row["arm"] if row["side"] > 0 else row["baseline"]
        return [f"near-best settings of {worse} are not shown to be worse"]
    return ["the interval is not corrected for multiple comparisons"]


def effect_clause(row: AnyRow) -> str:
    """Return the effect with its 95 % interval; the share of better pairs if too many runs diverged."""
    name, value = row["metric"], row["estimate"]
    if math.isnan(value):
        low, high = percent_text(row["better_low"]), percent_text(row["better_high"])
        return (
            f"too many runs diverged to estimate {name}; {row['arm']} is better in "
            f"{percent_text(row['better'])} of the pairs (95 % CI {low.removesuffix(' %')}–{high})"
        )
    enough = row["replicates"] >= replicates_needed(1)  # with fewer, the interval is unbounded
    ends = interval_text(row["estimate_low"], row["estimate_high"], interval_separator(row)) if enough else ""
    if row["effect"] == RATIO:
        return f"{name} ratio {ratio_text(value)}{ends}"
    unit = " points" if row["effect"] == POINTS else ""
    return f"{name} difference {two_digits(value, plus=True)}{unit}{ends}"


def interval_separator(row: AnyRow) -> str:
    """Return the text between two ends: a dash for ratios, " to " for ends that may be negative."""
    return "–" if row["effect"] == RATIO else " to "


def p_clause(row: AnyRow) -> str:
    """Return the corrected p with the number of comparisons and of the look."""
    notes = [f"{row['comparisons']} comparisons"] * (row["comparisons"] > 1) + [f"look {row['look']}"] * (
        row["look"] > 0
    )
    return f"p = {p_value(row['p_adjusted'])}" + f" ({', '.join(notes)})" * bool(notes)


def scope_clause(row: AnyRow) -> str:
    """Return the scope of a verdict: the number of replicates and their source of variation.

    >>> scope_clause({"replicates": 12, "scope": "split", "splits": 1})
    ', over 12 splits of this table'
    >>> scope_clause({"replicates": 8, "scope": "draw", "splits": 3})
    ', over 8 × 3 draws of the data'
    >>> scope_clause({"replicates": 8, "scope": "seed", "splits": 3})
    ', over 8 seeds on these 3 splits'
    """
    n, splits = row["replicates"], row["splits"]
    if row["scope"] == Scope.SEED:
        return f", over {with_noun(n, 'seed')} {'on this split' if splits == 1 else f'on these {splits} splits'}"
    unit = "splits of this table" if row["scope"] == Scope.SPLIT else "draws of the data"
    return f", over {n} × {splits} {unit}" if splits > 1 else f", over {n} {unit}"


def too_few_reason(row: AnyRow) -> str:
    """Return the reason for a verdict of too few replicates."""
    if not row["disjoint"]:
        return f"the same {with_noun(row['replicates'], 'replicate')} chose the settings"
    n, differ = row["replicates"], row["differing"]
    if math.isinf(row["factor"]):
        return f"{with_noun(n, 'replicate')} exceed the declared maximum"
    needed = replicates_needed(row["comparisons"], row["factor"])
    several = f" for {row['comparisons']} comparisons" * (row["comparisons"] > 1)
    if differ == n:
        return f"{n} of the {needed} replicates needed{several}"
    return f"{differ} of {n} replicates differ, {needed} must{several}"


def new_table_clause(row: AnyRow, grid: Grid) -> list[str]:
    """Return the result of the corrected t test for new tables, for a verdict over splits of one table."""
    is_test = row["metric"].startswith("test/")
    if row["scope"] != Scope.SPLIT or not is_test or row["verdict"] not in (BETTER, WORSE):
        return []
    p = row["new_table_p_adjusted"]
    if math.isnan(p):
        use = grid.uses[row["of_panels"][0]]
        reason = "runs diverged" if use.train and use.test else "the number of rows is unknown"
        return [f"not testable for new tables like this one, as {reason}"]
    result = "also holds" if p <= ALPHA else "not shown to hold"
    return [f"{result} for new tables like this one, p = {p_value(p)}"]


def equivalence_clause(row: AnyRow) -> list[str]:
    """Return the result of the equivalence test, if a margin was given."""
    p = row["equivalence_p_adjusted"]
    if math.isnan(p):
        return []
    within = f"equivalent within {margin_text(row)}"
    ends = interval_text(row["equivalence_low"], row["equivalence_high"], interval_separator(row), level=90)
    result = within if p <= ALPHA else f"not shown to be {within}"
    return [f"{result}, p = {p_value(p)}{ends}"]


def margin_text(row: AnyRow) -> str:
    """Return the margin in the unit of the effect."""
    margin = row["margin"]
    if row["effect"] == RATIO:
        return f"{100 * margin:g} %"
    return f"{100 * margin:g} points" if row["effect"] == POINTS else f"{margin:g}"


def failure_clause(row: AnyRow) -> list[str]:
    """Return the numbers of runs of each arm that diverged or stayed untrained, if any did."""
    if not row["failed"] + row["baseline_failed"]:
        return []
    p = row["failure_p_adjusted"]
    tested = "" if math.isnan(p) else f", p = {p_value(p)}"
    return [
        f"{row['arm']} failed to train in {row['failed']} of {row['failures_of']} runs, "
        f"{row['baseline']} in {row['baseline_failed']}{tested}"
    ]


def settings_clause(row: AnyRow, grid: Grid, tuning: Tuning) -> list[str]:
    """Return the settings of both arms in all pooled panels, and the replicates that chose them."""
    keys, panels = grid.design.tuned, row["of_panels"]
    use = grid.uses[panels[0]]
    choices = {arm: [tuning[panel, arm] for panel in panels] for arm in (row["baseline"], row["arm"])}
    texts = {
        arm: " or ".join(dict.fromkeys(settings_text(keys, grid, tuned) for tuned in of_arm))
        for arm, of_arm in choices.items()
    }
    is_tuned = {arm: any(len(tuned.rows) > 1 for tuned in of_arm) for arm, of_arm in choices.items()}
    is_common = len(set(texts.values())) == 1
    listed = ", ".join(f"{arm} at {text}" for arm, text in texts.items())
    text = next(iter(texts.values())) if is_common else listed
    if not any(is_tuned.values()):
        return [f"{'at ' * is_common}{text}, {UNTUNED}"] if text else []
    if use.within:
        text = f"{' and '.join(last_part(key) for key in keys)} chosen on the validation part of each split"
    else:
        seeds = with_noun(len(use.tuning), "other seed" if use.is_disjoint else "of these seed")
        text = f"{'at ' * is_common}{text}, chosen on {seeds}"
    return [text, *(f"{arm} had one setting, {UNTUNED}" for arm, was_tuned in is_tuned.items() if not was_tuned)]


def settings_text(keys: Sequence[str], grid: Grid, tuned: Tuned) -> str:
    """Return the tuned settings of an arm with short key names; the learning rate if no key is tuned."""
    row = tuned.common
    if row is None:
        return ""
    if not keys:
        return f"{last_part(LR)} {grid.rates[row]}" if grid.rates[row] else ""
    return ", ".join(
        f"{last_part(key)} {text}" for key, text in zip(keys, grid.configurations[row].tuned, strict=True)
    )


def last_part(key: str) -> str:
    """Return the part of a key after its last dot."""
    return key.rpartition(".")[2]


def shortened_clause(row: AnyRow, grid: Grid, tuning: Tuning) -> list[str]:
    """Return the number of runs that stopped early, if any did."""
    table, count = grid.tables["shortened"], 0
    for panel in row["of_panels"]:
        for arm in (row["arm"], row["baseline"]):
            count += int((tuning[panel, arm].pick(table, grid.uses[panel]) > 0.5).sum())
    return [f"runs that stopped early, counted with the last tenth of their own epochs: {count}"] if count else []


def time_sentence(row: AnyRow) -> str:
    """Return the ratios of the time to the target and of the time per step; empty if both are unknown."""
    arm, baseline, clauses = row["arm"], row["baseline"], []
    where = f" at {row['panel']}" if row["panel"] else ""
    low, high = row["steps_ratio_low"], row["steps_ratio_high"]
    if not math.isnan(low) and (low > 0 or math.isfinite(high)):
        ratios = [
            f"{ratio_text(row[f'{name}_ratio'])} times the {name} of {baseline}"
            + interval_text(row[f"{name}_ratio_low"], row[f"{name}_ratio_high"], "–")
            for name in ("steps", "seconds")
            if not math.isnan(row[f"{name}_ratio_low"])
        ]
        clauses.append(f"{arm} reaches the target{where} in {', and in '.join(ratios)}")
    if not math.isnan(row["step_time_ratio"]):
        ends = interval_text(row["step_time_ratio_low"], row["step_time_ratio_high"], "–")
        value = ratio_text(row["step_time_ratio"])
        clauses.append(f"a step of {arm}{where} takes {value} times as long as a step of {baseline}{ends}")
    return "; ".join(clauses)


def interaction_sentence(row: AnyRow) -> str:
    """Return the change of an arm's effect between two panels as a sentence."""
    quantity = "ratio of ratios" if row["effect"] == RATIO else "difference of differences"
    unit = " points" if row["effect"] == POINTS else ""
    ends = interval_text(row["estimate_low"], row["estimate_high"], interval_separator(row))
    value = ratio_text(row["estimate"]) if row["effect"] == RATIO else two_digits(row["estimate"])
    unknown = math.isnan(row["estimate"])
    estimate = "too many runs diverged for an estimate" if unknown else f"{quantity} {value}{unit}{ends}"
    changes = "changes" if row["p_adjusted"] <= ALPHA else "is not shown to change"
    return (
        f"the effect of {row['arm']} against {row['baseline']} {changes} from {row['other']} to {row['panel']}: "
        f"{estimate}, p = {p_value(row['p_adjusted'])}, {with_noun(row['replicates'], 'replicate')}"
    )


def with_noun(count: int, noun: str) -> str:
    """Return a number with its noun.

    >>> with_noun(1, "split"), with_noun(12, "split")
    ('1 split', '12 splits')
    """
    return f"{count} {noun}{'s' * (count != 1)}"


def interval_text(low: float, high: float, between: str, level: int = 95) -> str:
    """Return an interval as text to follow its estimate; an infinite end is left out.

    >>> interval_text(0.38, 0.51, "–"), interval_text(0.38, math.inf, "–"), interval_text(-math.inf, 2.0, " to ")
    (', 95 % CI 0.38–0.51', ', 95 % CI more than 0.38', ', 95 % CI less than 2')
    >>> interval_text(-math.inf, math.inf, " to "), interval_text(0.0, math.inf, "–")
    (', 95 % CI unbounded', ', 95 % CI unbounded')
    >>> interval_text(math.nan, math.nan, "–")
    ''
    """
    if math.isnan(low) or math.isnan(high):
        return ""
    no_low = math.isinf(low) or (between == "–" and low == 0)
    text = ratio_text if between == "–" else two_digits
    if math.isinf(high):
        return f", {level} % CI unbounded" if no_low else f", {level} % CI more than {text(low)}"
    if no_low:
        return f", {level} % CI less than {text(high)}"
    return f", {level} % CI {text(low)}{between}{text(high)}"


def percent_text(share: float) -> str:
    """Format a share in percent; a dash if it is unknown.

    >>> percent_text(0.875), percent_text(0.0312), percent_text(math.nan)
    ('88 %', '3 %', '–')
    """
    return "–" if math.isnan(share) else f"{100 * share:.0f} %"


def ratio_text(value: float) -> str:
    """Format a ratio with two significant digits, three from 1 on, and with three decimals near 1.

    >>> ratio_text(0.4312), ratio_text(12.345), ratio_text(1.0021), ratio_text(0.95)
    ('0.43', '12.3', '1.002', '0.95')
    """
    near = f"{value:.3f}".rstrip("0").rstrip(".")
    return near if 0.9 < value < 1.1 else two_digits(value)


def two_digits(value: float, plus: bool = False) -> str:
    """Format a number with two significant digits, three from 1 on.

    >>> two_digits(0.4312), two_digits(12.345), two_digits(3.2e-07), two_digits(0.05, plus=True)
    ('0.43', '12.3', '3.2e-07', '+0.05')
    """
    digits = 3 if abs(value) >= 1 else 2
    return f"{value:{'+' if plus else ''}.{digits}g}"


def p_value(p: float) -> str:
    """Format p with two significant digits; rounded up where p > 0.05 would be shown as 0.05.

    >>> p_value(0.0078125), p_value(0.0501), p_value(1e-7)
    ('0.0078', '0.051', '1e-07')
    """
    text = f"{p:.2g}"
    return f"{math.ceil(p * 1000) / 1000:g}" if p > ALPHA >= float(text) else text
