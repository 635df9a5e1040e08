"""Command ``normlab new``: writes a project of the user's own into a new folder; the entry is :func:`main`."""

import argparse
import keyword
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from normlab.errors import ConfigError, first_line

TEMPLATE = Path(__file__).parent / "project_template"
SUFFIX = ".template"
"""Ending of the template's files, so that tools do not take them for code of this package."""
NAME = "mylab"
"""Name of the template's package, which the name of the project replaces."""
NOT_NAMES = ("train", "tests", "conf", "outputs")
"""Names of other files and folders of a project."""
DESCRIPTION = (
    "Write a small project of your own into a new folder: an entry script, configuration files, a normalizer, a "
    "dataset and tests."
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, write the project and print what to type next; errors exit with one line."""
    parser = argparse.ArgumentParser(prog="normlab new", description=DESCRIPTION)
    parser.add_argument("path", type=Path, metavar="NAME", help="folder of the project, new or empty")
    folder = parser.parse_args(arguments).path
    try:
        files = write_project(folder)
    except (ConfigError, OSError) as error:
        sys.exit(f"error: {first_line(error)}")
    print(f"{folder}: {', '.join(files)}\n\n  cd {folder}\n  python train.py experiment=first")


def write_project(folder: Path) -> list[str]:
    """Write the files of the template into a new or empty folder, and return their names.

    Raises:
        ConfigError: if the folder holds something, or its name cannot be that of a package.
    """
    typed = folder.absolute().name
    name = typed.replace("-", "_")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} must be a new or empty folder, got one with files; choose another name")
    if not name.isidentifier() or keyword.iskeyword(name) or name in NOT_NAMES:
        raise ConfigError(
            f"NAME must be the name of a Python package, of letters, digits and _, got {typed}; take one as my_lab"
        )
    if is_installed(name):
        raise ConfigError(f"NAME must be new to Python, which has a package {name} already; take one as my_{name}")
    files = []
    for source in sorted(TEMPLATE.rglob(f"*{SUFFIX}")):
        relative = str(source.relative_to(TEMPLATE)).removesuffix(SUFFIX).replace(NAME, name)
        path = folder / (".gitignore" if relative == "gitignore" else relative)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source.read_text().replace(NAME, name))
        files.append(str(path.relative_to(folder)))
    return files


def is_installed(name: str) -> bool:
    """Return True if a module of this name is installed, or one of Python; a folder without code is none."""
    spec = find_spec(name)
    return spec is not None and spec.origin is not None
