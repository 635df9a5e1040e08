"""The files that a configuration is written in."""

from collections.abc import Iterable
from pathlib import Path


def find_line(text: str, folders: Iterable[Path]) -> str | None:
    """Return the first file and line of YAML below the folders that holds a text, None if none does."""
    for folder in folders:
        for path in sorted(folder.rglob("*.yaml")):
            for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
                # An interpolation without its brace is not found in one that is closed.
                if text in line and f"{text}}}" not in line:
                    return f"{short(path)}, line {number}"
    return None


def short(path: Path) -> str:
    """Return a path relative to the current folder where it is below it, as it is otherwise."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
