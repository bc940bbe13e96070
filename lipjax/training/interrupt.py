"""Stop between two steps, not inside one."""

import contextlib
import signal
import threading
from collections.abc import Iterator


class Watch:
    """Which signal has arrived.

    Attributes:
        received: The number of the signal, or None.
    """

    received: int | None = None

    def exit(self) -> None:
        """Ends the program as shells expect it, with status `128 + received`."""
        raise SystemExit(128 + self.received)


@contextlib.contextmanager
def watch_signals(*signals: int) -> Iterator[Watch]:
    """Notes SIGTERM and SIGINT instead of obeying them, so that a loop can save before it leaves.

    A second SIGINT (Ctrl-C pressed twice) raises KeyboardInterrupt at once. The previous handlers
    come back at the end. Outside the main thread Python allows no handlers; nothing is noted then.

    Args:
        *signals: Other signals to watch instead.

    >>> with watch_signals() as watch:
    ...     signal.raise_signal(signal.SIGTERM)
    >>> watch.received == signal.SIGTERM
    True
    """
    watch = Watch()

    def note(number, frame):
        if watch.received == number == signal.SIGINT:
            raise KeyboardInterrupt
        watch.received = number

    if threading.current_thread() is not threading.main_thread():
        yield watch
        return
    signals = signals or (signal.SIGTERM, signal.SIGINT)
    previous = {number: signal.signal(number, note) for number in signals}
    try:
        yield watch
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
