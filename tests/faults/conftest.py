"""Option ``--moments`` and fixtures of the tests that interrupt commands at random moments."""

import signal
from collections.abc import Callable, Iterator

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option; it is known where ``tests/faults`` is named on the command line."""
    parser.addoption("--moments", type=int, help="number of random moments of each test that interrupts a command")


@pytest.fixture
def moments(request: pytest.FixtureRequest) -> Callable[[int], int]:
    """Return a function from the usual number of random moments to the one that the command line asks for."""
    return lambda usual: request.config.getoption("--moments", None) or usual


@pytest.fixture
def ctrl_c_is_default() -> Iterator[None]:
    """Install Python's handler of Ctrl-C: where it is ignored, as in the background, child processes ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
