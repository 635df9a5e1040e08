"""Ctrl-C is never lost, whenever it is pressed."""

import os
import signal
import weakref

import pytest

from normlab.training.progress import Interrupts


@pytest.fixture(autouse=True)
def default_sigint_handler():
    """Install Python's default handler, since Ctrl-C is ignored if the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press_ctrl_c() -> None:
    """Press Ctrl-C, and give Python time to handle it."""
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000):
        pass


class Target:
    """An object with a weak reference, whose callback runs when it is deleted."""


def press_ctrl_c_in_weakref_callback() -> None:
    target = Target()
    reference = weakref.ref(target, lambda _: press_ctrl_c())
    del target
    assert reference() is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_in_a_callback_is_raised_at_next_check():
    press_ctrl_c_in_weakref_callback()
    steps: list[int] = []

    def train() -> None:
        interrupts = Interrupts()
        with interrupts.recorded():
            for step in range(10):
                press_ctrl_c_in_weakref_callback()
                steps.append(step)
                interrupts.check()

    with pytest.raises(KeyboardInterrupt):
        train()
    assert steps == [0]


def test_ctrl_c_after_last_check_is_raised_on_exit():
    after: list[bool] = []

    def train() -> None:
        with Interrupts().recorded():
            press_ctrl_c()
            after.append(True)

    with pytest.raises(KeyboardInterrupt):
        train()
    assert after == [True]


def test_second_ctrl_c_is_raised_at_once():
    interrupts = Interrupts()
    with interrupts.recorded():
        press_ctrl_c()
        with pytest.raises(KeyboardInterrupt):
            press_ctrl_c()
        interrupts.was_pressed = False


def test_previous_handler_is_restored():
    with Interrupts().recorded():
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ignored_ctrl_c_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interrupts().recorded():
        press_ctrl_c()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
