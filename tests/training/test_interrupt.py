"""Ctrl-C is answered at once, also while an operator hangs; a second one stops it."""

import logging
import os
import signal
import time

import pytest

from evolve.training.interrupt import Interrupt


def until(condition):
    end = time.monotonic() + 2
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_answered_while_the_step_still_runs(caplog, number):
    before = signal.getsignal(number)
    with caplog.at_level(logging.WARNING), Interrupt() as interrupt:
        os.kill(os.getpid(), number)
        until(lambda: caplog.records)
        assert interrupt.signal == number
        assert signal.Signals(number).name in caplog.text
        assert "A second one stops it at once" in caplog.text
        assert signal.getsignal(number) is before


@pytest.fixture
def as_in_a_terminal():
    """What runs in the background ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("as_in_a_terminal")
def test_the_second_interrupts_what_hangs():
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Interrupt() as interrupt:  # noqa: PT012 - the second ends the sleep
        os.kill(os.getpid(), signal.SIGINT)
        while interrupt.signal is None:  # two that wait together are one
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(30)
    assert time.monotonic() - started < 10
