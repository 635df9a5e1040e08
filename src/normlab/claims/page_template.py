"""The templates of the claims' pages, which stand beside that of the report page."""

from typing import Any

from markupsafe import Markup

from normlab.claims.verdict import Answer
from normlab.claims.wording import (
    UNITS,
    effect_text,
    interval_text,
    linked,
    p_text,
    part_words,
    required_text,
    verdict_sentences,
)
from normlab.report.page import TEMPLATE, templates


def render(template: str, /, **values: Any) -> str:
    """Render a template of the claims' pages, with the styles and the script of the report page."""
    environment = templates()
    environment.filters |= {
        "effect": effect_text,
        "interval": interval_text,
        "linked": linked,
        "p": p_text,
        "part_words": part_words,
        "required": required_text,
        "sentences": verdict_sentences,
    }
    css = Markup("\n".join((TEMPLATE / file).read_text() for file in ("page.css", "claims.css")))
    script = Markup((TEMPLATE / "page.js").read_text())
    return environment.get_template(template).render(
        css=css, script=script, units=UNITS, answers=list(Answer), **values
    )
