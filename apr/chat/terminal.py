"""Where a text appears while it is made, and Ctrl-C and SIGTERM meanwhile.

On a terminal, control characters that a model wrote are shown as what they are: they must not move
the cursor, colour the screen or answer in the user's name. Anywhere else the text is exact, UTF-8.
"""

from __future__ import annotations

import io
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from apr.errors import InvalidFormat

_KEPT = "\n\t"
_SHOWN = {
    code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in _KEPT
} | {ord("\r"): None}


def visible(text: str) -> str:
    """A text for a terminal: control characters by their number, carriage returns left out."""
    return text.translate(_SHOWN)


class Screen:
    """Writes pieces of a text as they come.

    Attributes:
        is_terminal: whether somebody watches.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self.is_terminal = out.isatty()
        self._at_line_start = True
        if isinstance(out, io.TextIOWrapper):
            # Written as decided above, whatever the locale; a terminal keeps its encoding.
            with suppress(io.UnsupportedOperation):
                if self.is_terminal:
                    out.reconfigure(errors="replace")
                else:
                    out.reconfigure(encoding="utf-8", errors="replace", newline="")

    def write(self, piece: str) -> None:
        """Show a further piece at once."""
        if not piece:
            return
        self._at_line_start = piece.endswith("\n")  # first: Ctrl-C may come while it is written
        self._out.write(visible(piece) if self.is_terminal else piece)
        self._out.flush()

    def end(self) -> None:
        """The text is over: what follows on a terminal begins a line of its own."""
        if self.is_terminal and not self._at_line_start:
            self.write("\n")


def hidden() -> Screen:
    """A screen that nobody sees."""
    return Screen(io.StringIO())


def reader(watched: bool) -> Callable[[str], str]:
    """Gives the next line of stdin after showing a prompt, which only a watched one has.

    It raises EOFError at the end, and InvalidFormat for a line that is not UTF-8.
    """
    if not watched:
        return lambda _prompt: _line()
    with suppress(ImportError):
        import readline  # noqa: F401  (lines can be edited, earlier ones come back)
    if sys.stdout.isatty():
        return input

    def ask(prompt: str) -> str:
        print(prompt, end="", file=sys.stderr, flush=True)
        return input()

    return ask


def _line() -> str:
    line = sys.stdin.buffer.readline()
    if not line:
        raise EOFError
    try:
        return line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InvalidFormat("stdin", f"a line is not UTF-8 (byte {error.start})") from error


@contextmanager
def signals_as_interrupt() -> Iterator[threading.Event]:
    """SIGTERM and SIGHUP interrupt as Ctrl-C does, while inside; the event says that one came.
    Only the main thread gets signals; in another one nothing changes.
    """
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    def interrupt(_number: int, _frame: object) -> None:
        came.set()
        raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    old = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield came
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
