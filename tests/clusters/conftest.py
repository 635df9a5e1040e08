"""Fixtures: a SLURM and a Ray cluster on this machine; tests are skipped where the programs are absent."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.clusters.ray import RAY, RayCluster
from tests.clusters.slurm import PACKAGES, SlurmCluster, missing_programs

IN_CI = os.environ.get("NORMLAB_CI") == "1"
"""True in continuous integration, which must never be without the clusters."""


def skip(reason: str) -> None:
    """Skip the test; in continuous integration let it fail."""
    if IN_CI:
        pytest.fail(f"{reason}; NORMLAB_CI=1 forbids to skip")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def slurm_session() -> Iterator[SlurmCluster]:
    """Return a SLURM cluster of this test process."""
    if missing := missing_programs():
        skip(f"needs {', '.join(missing)}: apt-get install {PACKAGES}")
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, SlurmCluster(Path(folder)) as cluster:
        yield cluster


@pytest.fixture
def slurm(slurm_session: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    """Return a SLURM cluster that this process and its subprocesses use; its jobs are cancelled after the test."""
    for name, value in slurm_session.environment.items():
        monkeypatch.setenv(name, value)
    yield slurm_session
    slurm_session.cancel_jobs()


@pytest.fixture(scope="session")
def ray_session() -> Iterator[RayCluster]:
    """Return a Ray cluster of this test process."""
    if not Path(RAY).exists():
        skip("needs Ray: pip install normlab[ray]")
    with tempfile.TemporaryDirectory(prefix="ray-") as folder, RayCluster(Path(folder)) as cluster:
        yield cluster


@pytest.fixture
def ray_cluster(ray_session: RayCluster, monkeypatch: pytest.MonkeyPatch) -> RayCluster:
    """Return a Ray cluster of two nodes with one CPU each that subprocesses of this process use."""
    for name, value in ray_session.environment.items():
        monkeypatch.setenv(name, value)
    return ray_session
