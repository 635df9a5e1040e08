"""Ctrl-C is never lost, wherever it comes."""

import os
import signal
import weakref

import pytest

from normlab.training.interrupts import Interrupts


@pytest.fixture(autouse=True)
def heeded():
    """Let Ctrl-C do what it does in a terminal, also where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press() -> None:
    """Press Ctrl-C, and let Python see it."""
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000):
        pass


class Thing:
    """Something whose end can be watched."""


def press_where_exceptions_are_discarded() -> None:
    thing = Thing()
    watched = weakref.ref(thing, lambda _: press())
    del thing
    assert watched() is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_ctrl_c_in_a_callback_is_lost_without_and_raised_at_the_next_check_with_it():
    press_where_exceptions_are_discarded()
    steps: list[int] = []

    def train() -> None:
        interrupts = Interrupts()
        with interrupts.recorded():
            for step in range(10):
                press_where_exceptions_are_discarded()
                steps.append(step)
                interrupts.check()

    with pytest.raises(KeyboardInterrupt):
        train()
    assert steps == [0]


def test_a_ctrl_c_after_the_last_check_is_raised_at_the_end():
    after: list[bool] = []

    def train() -> None:
        with Interrupts().recorded():
            press()
            after.append(True)

    with pytest.raises(KeyboardInterrupt):
        train()
    assert after == [True]


def test_a_second_ctrl_c_is_raised_at_once():
    interrupts = Interrupts()
    with interrupts.recorded():
        press()
        with pytest.raises(KeyboardInterrupt):
            press()
        interrupts.was_pressed = False


def test_afterwards_ctrl_c_acts_as_before():
    with Interrupts().recorded():
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_ignored_ctrl_c_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interrupts().recorded():
        press()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
