"""Trained runs for the tests of evaluations, and ``eval.py`` as a function."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from normlab.results.result import Result

SHORT = ("trainer.max_epochs=3", "logger=csv")


@pytest.fixture
def train(run_train) -> Callable[..., Result]:
    """Return a function that trains a run in the folder ``run`` and returns its record."""

    def run(*words: str) -> Result:
        outcome = run_train(*SHORT, *words, "hydra.run.dir=run")
        assert outcome.code == 0, outcome.err
        result = Result.read(Path("run"))
        assert result is not None
        return result

    return run


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory) -> Path:
    """Return the folder of runs that several tests use."""
    return tmp_path_factory.mktemp("trained")


@pytest.fixture
def trained(run_train, trained_once) -> Callable[..., None]:
    """Return a function that puts runs of one arm and seed each into the working directory.

    The end of a folder's name, ``model=bn,seed=0``, holds the overrides.
    """

    def copy(*folders: str) -> None:
        for folder in folders:
            name = Path(folder).name
            if not (trained_once / name).exists():
                outcome = run_train(*SHORT, *name.split(","), f"hydra.run.dir='{trained_once / name}'")
                assert outcome.code == 0, outcome.err
            shutil.copytree(trained_once / name, folder)

    return copy


@pytest.fixture
def evaluated(run_eval) -> Callable[..., tuple[dict[str, Any], str]]:
    """Return a function that evaluates and returns the content of the new ``eval.json`` and the printed text."""

    def run(*words: str) -> tuple[dict[str, Any], str]:
        before = set(Path().rglob("eval.json"))
        outcome = run_eval(*words)
        assert (outcome.code, outcome.err) == (0, "")
        (written,) = set(Path().rglob("eval.json")) - before
        return json.loads(written.read_text()), outcome.out

    return run


@pytest.fixture
def metrics_of(evaluated) -> Callable[..., dict[str, float]]:
    """Return a function that evaluates one run and returns its metrics."""

    def run(*words: str) -> dict[str, float]:
        (entry,) = evaluated(*words)[0]["runs"]
        return entry["metrics"]

    return run


@pytest.fixture
def digests() -> Callable[[], dict[Path, str]]:
    """Return a function that returns the hash of each file below the working directory."""

    def run() -> dict[Path, str]:
        files = [path for path in sorted(Path().rglob("*")) if path.is_file()]
        return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    return run
