"""Signals are noted, and the old handlers come back."""

import signal
import threading

import pytest

from lipjax.training import watch_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_handlers_come_back(number):
    before = signal.getsignal(number)
    with watch_signals() as watch:
        assert watch.received is None and signal.getsignal(number) is not before
        signal.raise_signal(number)
        assert watch.received == number
        with pytest.raises(SystemExit) as left:
            watch.exit()
    assert left.value.code == 128 + number
    assert signal.getsignal(number) is before


def test_a_second_interrupt_is_obeyed():
    with watch_signals() as watch:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)  # the first Ctrl-C, after another signal
        assert watch.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.fixture(autouse=True)
def interrupts_raise():
    """As at a terminal: a process that a shell starts in the background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_only_the_named_signals_are_watched():
    with watch_signals(signal.SIGUSR1) as watch:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGUSR1)
    assert watch.received == signal.SIGUSR1


def test_outside_the_main_thread_nothing_is_noted():
    seen = []

    def watch_there():
        with watch_signals() as watch:
            seen.append(watch.received)

    thread = threading.Thread(target=watch_there)
    thread.start()
    thread.join()
    assert seen == [None]
