"""The end of a sweep."""
from pathlib import Path


def close_sweep(folder: Path) -> None:
    """Close."""
