"""Names of functions in docs/architecture.md and docs/concepts.md."""

import re
from importlib import import_module
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("architecture.md", "concepts.md")


def names_on(page):
    return sorted(set(re.findall(r"`((?:normlab|hydra_plugins\.normlab)(?:\.\w+)*)`", (DOCS / page).read_text())))


def load(name):
    """Import the longest module path in a dotted name, and look up the rest as attributes."""
    module, *rest = name, ""
    while True:
        try:
            found = import_module(module)
            break
        except ModuleNotFoundError:
            module, _, last = module.rpartition(".")
            rest = [last, *rest]
    for attribute in filter(None, rest):
        found = getattr(found, attribute)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_pages_name_functions(page):
    assert page != "architecture.md" or len(names_on(page)) > 30


@pytest.mark.parametrize("name", sorted({name for page in PAGES for name in names_on(page)}))
def test_name_exists(name):
    load(name)


def test_packages_of_the_table_are_all_there_are():
    table = re.findall(r"^\| `normlab\.(\w+)` \|", (DOCS / "architecture.md").read_text(), re.M)
    packages = {path.parent.name for path in (DOCS.parent / "src/normlab").glob("*/__init__.py")}
    assert set(table) == packages
