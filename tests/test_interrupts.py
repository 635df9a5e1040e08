"""Ctrl-C and the signals of a cluster are never lost, whenever they come."""

import os
import signal
import subprocess
import sys
import threading
import weakref

import pytest

from normlab.interrupts import PREEMPTIONS, Preempted, blocked_ctrl_c, interrupts


@pytest.fixture(autouse=True)
def default_sigint_handler():
    """Install Python's default handler, since Ctrl-C is ignored if the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
    assert (interrupts.pressed, interrupts.preempted, interrupts.recording) == (False, 0, False)


def send(number: int = signal.SIGINT) -> None:
    """Send a signal to this process, and give Python time to handle it."""
    os.kill(os.getpid(), number)
    for _ in range(1000):
        pass


class Target:
    """An object with a weak reference, whose callback runs when it is deleted."""


def press_ctrl_c_in_weakref_callback() -> None:
    target = Target()
    reference = weakref.ref(target, lambda _: send())
    del target
    assert reference() is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_in_a_callback_is_raised_at_next_check():
    press_ctrl_c_in_weakref_callback()
    steps: list[int] = []

    def train() -> None:
        with interrupts.recorded():
            for step in range(10):
                press_ctrl_c_in_weakref_callback()
                steps.append(step)
                interrupts.check()

    with pytest.raises(KeyboardInterrupt):
        train()
    assert steps == [0]


def test_ctrl_c_discarded_before_a_training_is_raised_as_it_begins(monkeypatch):
    printed: list[object] = []
    monkeypatch.setattr(sys, "__unraisablehook__", printed.append)
    reached: list[str] = []

    def command() -> None:
        with interrupts.remembered():
            press_ctrl_c_in_weakref_callback()
            reached.append("before the training")
            with interrupts.recorded():
                reached.append("the training")

    with pytest.raises(KeyboardInterrupt):
        command()
    assert reached == ["before the training"]
    assert printed == [], "the message of an exception that is raised again"


def test_ctrl_c_during_the_imports_of_a_script_is_raised_by_the_command():
    reached: list[str] = []

    def script() -> None:
        interrupts.record_from_start()
        send()
        reached.append("the imports")
        with interrupts.remembered():
            reached.append("the command")

    with pytest.raises(KeyboardInterrupt):
        script()
    assert reached == ["the imports"]


def test_ctrl_c_that_became_another_error_is_raised():
    def command() -> None:
        with interrupts.remembered():
            try:
                send()
            except KeyboardInterrupt:
                raise ImportError("cannot load module more than once per process") from None

    with pytest.raises(KeyboardInterrupt):
        command()


def test_ctrl_c_discarded_at_the_end_of_a_command_is_raised():
    def command() -> None:
        with interrupts.remembered():
            press_ctrl_c_in_weakref_callback()

    with pytest.raises(KeyboardInterrupt):
        command()


def test_error_in_a_training_does_not_hide_ctrl_c():
    def train() -> None:
        with interrupts.recorded():
            send()
            raise RuntimeError("out of luck")

    with pytest.raises(KeyboardInterrupt):
        train()


def test_ctrl_c_after_last_check_is_raised_on_exit():
    after: list[bool] = []

    def train() -> None:
        with interrupts.recorded():
            send()
            after.append(True)

    with pytest.raises(KeyboardInterrupt):
        train()
    assert after == [True]


def test_second_ctrl_c_is_raised_at_once():
    def train() -> None:
        with interrupts.recorded():
            send()
            with pytest.raises(KeyboardInterrupt):
                send()

    with pytest.raises(KeyboardInterrupt):
        train()


def test_previous_handlers_are_restored():
    ours = {number: signal.signal(number, lambda *_: None) for number in PREEMPTIONS}
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *PREEMPTIONS)}
    with interrupts.recorded():
        for number, handler in before.items():
            assert signal.getsignal(number) is not handler
            signal.signal(number, signal.SIG_IGN)
    assert before == {number: signal.getsignal(number) for number in before}
    with interrupts.remembered():
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    assert before == {number: signal.getsignal(number) for number in before}
    for number, handler in ours.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, *PREEMPTIONS])
def test_ignored_signal_stays_ignored(number):
    before = signal.signal(number, signal.SIG_IGN)
    with interrupts.remembered(), interrupts.recorded():
        send(number)
    assert signal.getsignal(number) is signal.SIG_IGN
    signal.signal(number, before)


@pytest.mark.parametrize("number", PREEMPTIONS)
def test_signal_of_a_cluster_ends_a_training_at_next_check(number):
    steps: list[int] = []

    def train() -> None:
        with interrupts.recorded():
            for step in range(10):
                if step == 2:
                    send(number)
                    send(signal.SIGTERM)
                steps.append(step)
                interrupts.check()

    with pytest.raises(Preempted, match=f"stopped by {signal.Signals(number).name}") as error:
        train()
    assert (error.value.signum, steps) == (number, [0, 1, 2])
    with interrupts.recorded():
        interrupts.check()


def test_ctrl_c_while_a_process_is_started_reaches_this_one_only():
    code = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()))"
    printed: list[str] = []

    def start() -> None:
        with interrupts.recorded(), blocked_ctrl_c():
            os.kill(os.getpid(), signal.SIGINT)
            printed.append(subprocess.check_output([sys.executable, "-c", code], text=True))

    with pytest.raises(KeyboardInterrupt):
        start()
    assert printed == ["True\n"], "the process has SIGINT blocked"
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_nothing_is_recorded_outside_the_main_thread():
    handlers: list[object] = []

    def train() -> None:
        with interrupts.remembered(), interrupts.recorded():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler]
