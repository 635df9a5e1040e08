"""Hooks of MkDocs: the reference of the config groups, and links and marks that only GitHub or Sphinx understands.

The reference is made of ``conf/`` and of the schemas, so that it cannot differ from them.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import fields
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from normlab.config.schema import SECTIONS

CONF = Path(__file__).parent.parent / "conf"
CONFIG_PAGE = "reference/config.md"
GROUPS = {
    "data": "The data set, its splits and minibatches.",
    "model": "The normalizer, usually the compared factor.",
    "net": "The architecture.",
    "optimizer": "The optimizer; `optimizer._target_=…` takes any other of torch.",
    "scheduler": "The learning-rate schedule; `scheduler._target_=…` takes any other of torch.",
    "loss": "The training loss.",
    "trainer": "Arguments of Lightning's Trainer, and of normlab.",
    "module": "The LightningModule: `population` trains runs together, `lightning` each alone.",
    "callbacks": "Early stopping, and Lightning's callbacks.",
    "logger": "What is logged beside `curves.csv`.",
    "metrics": "Further metrics of torchmetrics, in a group of one's own.",
    "probes": "Measurements during training.",
    "experiment": "Predefined sweeps.",
    "claim": "Published claims, each a sweep with a criterion.",
}
REPOSITORY_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?:\.\./)+(?!images)[^)]*\)")
ROLE = re.compile(r":(?:class|func|meth|data|attr|mod|exc):(?=<code>)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated page."""
    files.append(File.generated(config, CONFIG_PAGE, content=config_page()))
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Replace links to files of the repository, which the site lacks, by their text."""
    known = {file.src_uri for file in files}

    def replace(match: re.Match[str]) -> str:
        target = match[0].rpartition("(")[2][:-1].partition("#")[0]
        parts = [*page.file.src_uri.split("/")[:-1], *target.split("/")]
        path = list[str]()
        for part in parts:
            path = path[:-1] if part == ".." else [*path, part]
        return match[0] if "/".join(path) in known else match[1]

    return REPOSITORY_LINK.sub(replace, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Remove the roles of Sphinx before code."""
    return ROLE.sub("", html)


def config_page() -> str:
    """Return the page of all config groups, options and keys."""
    parts = [
        "# Config groups",
        "`group=option` chooses an option, `group.key=value` sets a key, and `+group.key=value` adds an argument "
        "that the class of an option has and its file does not. This page is made of the files in `conf/` and of "
        "the schemas that check a configuration.",
        "## Keys without a group",
        table(("key", "default", "meaning"), keys_of(CONF / "train.yaml")),
    ]
    for group, text in GROUPS.items():
        parts += [f"## {group}", text, *schema_part(group), *options_part(group)]
    return "\n\n".join(parts) + "\n"


def schema_part(group: str) -> Iterator[str]:
    """Yield the table of the keys of a group that are checked, with their limits."""
    schema: Any = SECTIONS.get(group)
    if schema is None or not fields(schema):
        return
    limits = limits_of(schema)
    rows = []
    for each in fields(schema):
        default = "" if each.default is NO_DEFAULT else plain(each.default)
        rows.append(
            (f"`{group}.{each.name}`", type_name(each.type), default, limits.get(f"{group}.{each.name}", ""))
        )
    yield "Keys that are checked before training:"
    yield table(("key", "type", "if absent", "must be"), rows)


def options_part(group: str) -> Iterator[str]:
    """Yield the table of the options of a group, and the keys of each."""
    files = sorted((CONF / group).glob("*.yaml"))
    yield table(("option", ""), [(f"`{group}={file.stem}`", description(file)) for file in files])
    for file in files:
        if group not in ("claim", "experiment") and (rows := keys_of(file)):
            yield f"### {group}={file.stem}"
            yield table(("key", "default", "meaning"), [(f"`{group}.{key[1:]}", *rest) for key, *rest in rows])


def limits_of(schema: type) -> dict[str, str]:
    """Return the limits of each key, read from the calls of ``require`` in the schema."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(schema)))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "require"]
    texts = [[a.value for a in call.args[1:3] if isinstance(a, ast.Constant)] for call in calls]
    return {pair[0]: pair[1] for pair in texts if len(pair) == 2}


def description(file: Path) -> str:
    """Return the comment at the top of a YAML file."""
    lines = file.read_text().splitlines()
    comments = [line[1:].strip() for line in lines[: next(i for i, x in enumerate([*lines, ""]) if x[:1] != "#")]]
    return cell(" ".join(line for line in comments if not line.startswith(("@", "python "))))


def keys_of(file: Path) -> list[tuple[str, str, str]]:
    """Return the keys at the top level of a YAML file, with their values and comments."""
    rows, comments = list[tuple[str, str, str]](), list[str]()
    for number, line in enumerate(file.read_text().splitlines()):
        if line.startswith("#"):
            comments.append(line[1:].strip())
        elif match := re.match(r"(\w+):\s*([^#]*?)\s*(?:#\s*(.*))?$", line):
            name, value, comment = match[1], match[2], match[3] or " ".join(comments)
            if name not in ("defaults", "hydra", "_target_", "_partial_"):
                rows.append((f"`{name}`", f"`{value}`" if value else "", cell(comment)))
            comments = []
        elif not line.strip():
            comments = []
        if number == 0 and comments:
            comments = []  # the description of the file
    return rows


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def cell(text: str) -> str:
    """Escape the text of a cell."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def plain(value: Any) -> str:
    """Return a default value as it is typed."""
    text = (
        {None: "null", True: "true", False: "false"}.get(value, value) if isinstance(value, bool | None) else value
    )
    return "" if str(text) == "???" else f"`{text}`"


def type_name(annotation: Any) -> str:
    """Return the name of a type."""
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    text = str(annotation) if "|" in str(annotation) or "[" in str(annotation) else text
    return cell(text.replace("None", "null").replace("typing.", "").replace("normlab.config.schema.", ""))
