"""Ctrl-C and SIGTERM: the step is finished and saved; a second Ctrl-C stops at once, unsaved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_signals(stop: Callable[[str], bool]) -> Iterator[None]:
    """Tell `stop` of each signal by its name, while inside; it returns False if it knew already.

    Only the main thread gets signals; in another one nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, _frame: FrameType | None) -> None:
        first = stop("Ctrl-C" if number == signal.SIGINT else "SIGTERM")
        if not first and number == signal.SIGINT:
            raise KeyboardInterrupt

    old = {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
