"""Command ``normlab new``: writes a project of the user's own; the entry is :func:`main`."""


def main() -> None:
    """Write the project."""
