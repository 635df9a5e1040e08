"""Records of claims with given answers, for tests of the pages."""

import json
import math

from scipy.stats import norm

from normlab.claims.claim import Claim
from normlab.claims.judge import verdict_json
from normlab.claims.verdict import Part, decide
from normlab.config.frozen import to_jsonable
from normlab.stats.regions import Region

BELOW = Region(high=1.0)


def part(
    name="bn against nobn, test/loss", unit="ratio", effect=0.6, se=0.05, region=BELOW, n=24, level=95, **changed
):
    """Return a part whose p follow from a normal estimate; the standard error of a ratio is that of its log."""
    scale = math.log if unit == "ratio" else float
    back = math.exp if unit == "ratio" else float
    value, reach = scale(effect), norm.ppf(0.5 + level / 200) * se
    tails = [norm.cdf((value - scale(end)) / se) for end in region if math.isfinite(end)]
    above = [1 - tails.pop(0)] if math.isfinite(region.low) else []
    sides = 2 if level == 95 else 1
    inside = min(1.0, sides * max([*above, *tails]))
    outside = min(1.0, 2 * min([1 - p for p in (*above, *tails)]))
    values = {"interval": (back(value - reach), back(value + reach)), "p": inside, "p_against": outside}
    needed = None if inside <= 0.05 or outside <= 0.05 else 3 * n
    return Part(
        **{
            "name": name,
            "unit": unit,
            "effect": effect,
            "level": level,
            "region": region,
            "n": n,
            "needed": needed,
            **values,
            **changed,
        }
    )


def record(name, parts, *, claim=None, profile=None, **changed):
    """Return the contents of a ``claim.json``."""
    statement = {
        "name": name,
        "statement": f"the statement of {name}",
        "source": "Ioffe and Szegedy 2015, arXiv:1502.03167, figure 1",
        "about": "optimization",
        "protocol": "One net on digits, tuned over the same rates.",
        "order": 1,
        "controls": ["the same rates for each arm"],
        "confounds": ["initialization"],
        "power": "0.9 at a log ratio of −0.1 (sd 0.15 over 12 design seeds)",
        "minutes": 2,
        "replace": "bn",
        "fresh": None,
        "compare": None,
        "full": {},
    } | (claim or {})
    assert set(statement) <= {*Claim.__dataclass_fields__}
    values = {
        "schema": 1,
        "claim": statement,
        "budget": "quick",
        "overrides": [],
        "fresh": False,
        "data": "digits",
        "registration": {"sha256": "ab" * 32, "commit": "1a2b3c4", "date": "2026-11-20", "modified": False},
        "code": {"commit": "0123456789abcdef", "dirty": False, "normlab": "0.1.0", "torch": "2.13.0"},
        "ended": "2026-11-29T12:00:00+00:00",
        "seconds": 108.0,
        "seeds": "1000–1023",
        "runs": {"finished": 191, "diverged": 1},
        "scope": "24 splits of this table",
        "report": "report/index.html",
        "verdict": verdict_json(decide(parts)),
    }
    if profile:
        entries = {
            arm: {"error": each} if isinstance(each, str) else verdict_json(decide(each))
            for arm, each in profile.items()
        }
        values["profile"] = entries
    return values | changed


def write(folder, values, key=None):
    """Write a record into its folder, named like the claim by default."""
    target = folder / (key or values["claim"]["name"])
    target.mkdir(parents=True)
    (target / "claim.json").write_text(json.dumps(to_jsonable(values)))
