"""Parts and verdicts of claims in words and short numbers, for the pages."""

import math
import re
from collections.abc import Iterable, Sequence

from markupsafe import Markup, escape

from normlab.claims.verdict import Answer, Part, Verdict, decisive_part, needed_text
from normlab.report.console import MINUS, num
from normlab.stats.comparison import POINTS, RATIO
from normlab.stats.regions import Region
from normlab.stats.signed_rank import MOST_INFINITE

UNITS = {
    RATIO: "ratio",
    POINTS: "percentage points",
    "difference": "difference",
    "value": "value",
    "slope": "slope",
    "share": "share of replicates",
    "correlation": "correlation",
}
"""The units of effects in words."""
NEUTRAL = {RATIO: 1.0, POINTS: 0.0, "difference": 0.0, "slope": 0.0, "share": 0.5, "correlation": 0.0}
"""The value of each unit that means no effect."""
ANSWERS = {Answer.HOLDS: "Holds", Answer.FAILS: "Does not hold", Answer.UNDECIDED: "Undecided"}
METRICS = {
    "train_eval/loss": "training loss",
    "train_eval/acc": "training accuracy",
    "test/loss": "test loss",
    "test/acc": "test accuracy",
    "val/loss": "validation loss",
    "val/acc": "validation accuracy",
    "train/loss": "loss of the training steps",
    "largest/optimizer.lr": "largest learning rate that trains",
}
RATE = "learning rate"
QUANTITIES = {
    "activations/gradient_rms": "RMS gradient of the weights",
    "activations/centered_effective_rank": "centered effective rank",
    "along_gradient/loss_range": "range of the loss along the gradient",
    "along_gradient/relative_change": "relative change of the gradient along itself",
    "along_gradient/cosine_min": "smallest cosine of gradients along the gradient",
    "along_gradient/beta_lr": "β·η along the gradient",
    "angular_update/relative_angle": "angle of a step over its prediction",
    "curvature/lambda_max_lr": "sharpness × learning rate",
    "curvature/preconditioned_lambda_max_lr": "preconditioned sharpness × learning rate",
    "fgsm/acc_drop_eps0.1": "accuracy lost to an attack of ε = 0.1",
    "gradient_lipschitz/median": "Lipschitz constant of the gradient",
    "residual_branches/branch_ratio": "branch over skip",
}
"""The numbers of probes in words, by ``<probe>/<quantity>``; others are shown as they are named."""
MODES = {"batch": "batch statistics", "frozen": "running statistics"}
KEYS = {
    "data.corrupt": "corruption",
    "data.standardize": "standardized inputs",
    "net.activation": "activation",
    "net.init": "initialization",
    "optimizer.lr": RATE,
    "data.batch_size": "batch size",
    "data.train": "training samples",
    "data.test": "test samples",
    "net.hidden": "hidden layers",
    "trainer.max_epochs": "epochs",
}
ARMS = {
    "bn": "batch normalization",
    "nobn": "no normalization",
    "ln": "layer normalization",
    "gn": "group normalization",
    "rms": "root mean square normalization",
    "brn": "batch renormalization",
    "noisy": "batch normalization with random scale and shift after it",
    "actnorm": "learned scale and shift that normalize the first batch",
    "dyt": "dynamic tanh",
    "derf": "scaled error function",
    "skipinit": "residual branches scaled by a learned number that starts at 0",
    "running": "batch normalization that evaluates with running averages",
    "reestimated": "batch normalization that evaluates with statistics of the training data",
    "batch": "batch normalization that evaluates with statistics of the evaluated samples",
    "norm": "trained scale and shift of batch normalization alone",
    "random:norm": "as many trained random entries of other weights",
    "output": "trained output layer alone",
    "none": "a constant learning rate",
    "exponential": "a learning rate that changes by a factor after each step",
}
"""The names of arms in words."""
SERIES = {
    "first": "{}, first measurement",
    "mean": "{}, mean over training",
    "last_third": "{}, last third of training",
}
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
OUTSIDE_BRACKETS = re.compile(r", (?![^\[({]*[\])}])")
HIDDEN = re.compile(r"hidden\{?(?=\w)")
ARXIV = re.compile(r"(?:arXiv:)?\b(\d{4}\.\d{4,5})\b")


def segments(name: str) -> list[str]:
    """Return the segments of the name of a part in words.

    >>> segments("bn against nobn, test/loss, data.batch_size=4 over data.batch_size=60")
    ['bn against nobn', 'test loss', 'batch size 4 over batch size 60']
    """
    words = ", ".join(setting_words(metric_words(segment)) for segment in OUTSIDE_BRACKETS.split(name))
    return OUTSIDE_BRACKETS.split(words)


def metric_words(name: str) -> str:
    """Return the name of a metric in words; other text stays as it is.

    >>> metric_words("steps/train_eval/loss/0.1"), metric_words("last_third/probe/edge/batch/sharpness")
    ('steps to a training loss of 0.1', 'sharpness (edge), batch statistics, last third of training')
    """
    if name in METRICS:
        return METRICS[name]
    if " on " in name:
        metric, _, x = name.partition(" on ")
        key = x.removeprefix("log ")
        return f"{metric_words(metric)}, on {'log ' * (key != x)}{KEYS.get(key, key)}"
    kind, _, rest = name.partition("/")
    if kind in SERIES:
        return SERIES[kind].format(metric_words(rest))
    if kind == "at" and "/" in rest:
        epoch, _, rest = rest.partition("/")
        return f"{metric_words(rest)} at epoch {epoch}"
    if kind == "steps" and rest.rpartition("/")[0] in METRICS:
        metric, _, target = rest.rpartition("/")
        return f"steps to a {METRICS[metric]} of {target}"
    if kind == "probe" and rest.count("/") > 1:
        probe, mode, quantity = rest.split("/", 2)
        layer, _, quantity = quantity.rpartition("/")
        shown = QUANTITIES.get(f"{probe}/{quantity}", f"{quantity} ({probe})".replace("_", " "))
        words = f"{shown}, {MODES.get(mode, mode)}"
        return f"{words}, {HIDDEN.sub('hidden layer ', layer).replace('}', '')}" if layer else words
    return name


def setting_words(text: str) -> str:
    """Return text with its ``key=value`` settings in words.

    >>> setting_words("optimizer.lr=0.1 over net.width=64"), setting_words("net.hidden=[64, 64, 64]")
    ('learning rate 0.1 over width 64', 'hidden layers 3 × 64')
    """

    def words(match: re.Match[str]) -> str:
        key, value = match.groups()
        entries = re.findall(r"[^\[\], ]+", value)
        if value.startswith("[") and len(entries) > 1 and len(set(entries)) == 1:
            value = f"{len(entries)} × {entries[0]}"
        return f"{KEYS.get(key, key.rpartition('.')[2].replace('_', ' '))} {value}"

    return re.sub(r"([A-Za-z_][\w.]*)=(\[[^\]]*\]|\S+)", words, text)


def part_words(part: Part) -> str:
    """Return the name of a part in words."""
    return ", ".join(segments(part.name))


def number(unit: str, value: float, digits: int = 3) -> str:
    """Return a value in its unit, without its sign; a share is in percent, with a digit less.

    >>> number("share", 0.8333), number("ratio", 0.61234), number("points", -8.25), number("value", 2.4e-9)
    ('83', '0.612', '−8.25', '2.4·10⁻⁹')
    """
    text = num(100 * value, digits - 1) if unit == "share" else num(value, digits)
    factor, e, power = text.partition("e")
    exponent = str(int(power.replace(MINUS, "-"))).translate(SUPERSCRIPT) if e else ""
    return f"{factor}·10{exponent}".removeprefix("1·") if e else text


def effect_text(part: Part) -> str:
    """Return the estimate of a part, such as ``0.61`` or ``83 %``, with as many digits as its interval has."""
    if math.isnan(part.effect):
        return "no estimate" if part.n else "no value"
    return number(part.unit, part.effect, digits_of(part.interval)) + suffix(part.unit)


def interval_text(part: Part) -> str:
    """Return the interval of a part, such as ``0.55 to 0.68``."""
    if math.isnan(part.effect):
        return f"over {MOST_INFINITE:.0%} infinite".replace("%", " %") if part.n else "–"
    digits = digits_of(part.interval)
    low, high = (number(part.unit, end, digits) for end in part.interval)
    return f"{low} to {high}{suffix(part.unit)}"


def digits_of(ends: tuple[float, float]) -> int:
    """Return the digits that two ends need: 3, or more if they lie closer together than 1 %.

    >>> digits_of((0.55, 0.68)), digits_of((0.999999, 1.000001)), digits_of((1.0, 1.0))
    (3, 7, 3)
    """
    low, high = ends
    width, size = high - low, max(abs(low), abs(high))
    if not 0 < width < math.inf:
        return 3
    return min(9, max(3, math.ceil(math.log10(size / width)) + 1))


def required_text(part: Part) -> str:
    """Return the region in which a part holds, such as ``below 0.9``."""
    return region_words(part.unit, part.region)


def region_words(unit: str, region: Region) -> str:
    r"""Return a region in its unit, in words.

    >>> region_words("share", Region(0.5)), region_words("slope", Region(-0.6, -0.4))
    ('above 50\xa0%', 'between −0.6 and −0.4')
    """
    digits = digits_of(region)
    low, high = (number(unit, end, digits) for end in region)
    if region.is_bounded:
        return f"between {low} and {high}{suffix(unit)}"
    return f"{f'below {high}' if math.isinf(region.low) else f'above {low}'}{suffix(unit)}"


def p_text(p: float | None) -> str:
    """Return p with two significant digits.

    >>> p_text(0.01234), p_text(1e-7), p_text(0.6), p_text(None)
    ('0.012', '<\\xa00.0001', '0.60', '–')
    """
    if p is None:
        return "–"
    return "<\N{NO-BREAK SPACE}0.0001" if p < 1e-4 else f"{p:.2f}" if p >= 0.1 else f"{p:.2g}"


def suffix(unit: str) -> str:
    """Return the sign after a number of a unit."""
    return "\N{NO-BREAK SPACE}%" if unit == "share" else ""


def found_text(part: Part) -> str:
    """Return the estimate of a part, its interval and the region that the claim requires, in words."""
    if not part.n:
        return f"{part_words(part)}: no replicate has the values"
    if math.isnan(part.effect):
        reason = f"no estimate from n = {part.n}, {interval_text(part)}"
        return f"{part_words(part)}: {reason}; the claim requires {required_text(part)}"
    found = f"{UNITS.get(part.unit, part.unit)} {effect_text(part)}"
    interval = f"{part.level} % interval {interval_text(part)}, n = {part.n}"
    return f"{part_words(part)}: {found} ({interval}); the claim requires {required_text(part)}"


def verdict_sentences(verdict: Verdict) -> list[str]:
    """Return a verdict in plain sentences: the answer, its decisive part, and the replicates that would decide."""
    parts = verdict.parts
    many = f"of the {len(parts)} parts"
    openings = {
        Answer.HOLDS: f"each {many} is shown. The weakest is ",
        Answer.FAILS: f"for {count_of(parts, Answer.FAILS)} {many} the opposite is shown. The clearest is ",
        Answer.UNDECIDED: f"{count_of(parts, Answer.HOLDS)} {many} can be shown. The weakest is ",
    }
    opening = openings[verdict.answer] if len(parts) > 1 else ""
    found = found_text(parts[decisive_part(parts, verdict.answer)])
    sentences = [f"{ANSWERS[verdict.answer]}: {opening}{found}."]
    if verdict.answer == Answer.UNDECIDED and any(part.n > 1 for part in parts):
        needed = needed_text(verdict.needed)
        sentences.append(f"{needed[0].upper()}{needed[1:]}.")
    return sentences


def count_of(parts: Sequence[Part], answer: Answer) -> int:
    """Return the number of parts with an answer of their own."""
    return sum(part.answer == answer for part in parts)


def arms_in(verdicts: Iterable[Verdict]) -> list[tuple[str, str]]:
    """Return the arms that the parts of verdicts name, each with its name in words."""
    # Arms stand before the name of the metric, the first one with a slash.
    text = " ".join(part.name.partition("/")[0] for verdict in verdicts for part in verdict.parts)
    return [(arm, words) for arm, words in ARMS.items() if re.search(rf"\b{arm}\b", text)]


def linked(source: str) -> Markup:
    """Return a source as HTML, with a link to each paper on arXiv."""
    link = r'<a href="https://arxiv.org/abs/\1">arXiv:\1</a>'
    return Markup(ARXIV.sub(link, str(escape(source))))


def shared_segments(names: Sequence[list[str]]) -> list[str]:
    """Return the segments that all names of several parts have, in order.

    >>> shared_segments([["bn against nobn", "test loss", "batch size 4"], ["bn against nobn", "test loss"]])
    ['bn against nobn', 'test loss']
    """
    return [segment for segment in names[0] if all(segment in name for name in names)] if len(names) > 1 else []
