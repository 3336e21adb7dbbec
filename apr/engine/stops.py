"""Stop strings: a text that ends before them, and never shows a part of one.

They are found in the text, so one may begin in one token and end in another. The end of a text
that could still become a stop string is held back until it cannot. Of several, the one that is
complete first ends the text, so that it does not matter how the text was cut into tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from apr.errors import UsageError


class StopStrings:
    """Lets text through up to the first stop string; call `finish` where none came.

    Attributes:
        found: the stop string that ended the text; None while none has.

    Raises:
        UsageError: a stop string is empty.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        if not all(stops):
            raise UsageError("stop", "a stop string is empty", "write at least one character")
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    def feed(self, piece: str) -> str:
        """What of the text so far is certain; nothing once a stop string was found."""
        if self.found is not None:
            return ""
        text = self._held + piece
        ends = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            _, at, self.found = min(ends)
            self._held = ""
            return text[:at]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back, now that nothing follows."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that `stop` begins with, less than all of it."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
