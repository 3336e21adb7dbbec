"""Text while it is generated, never half a character.

Tokens of a byte-level vocabulary end anywhere, also inside a character. The decoder holds back the
bytes of an unfinished character until the rest arrives; the pieces joined are exactly what decoding
all ids at once gives (invalid bytes become U+FFFD at the same places). A `TextStream` also ends the
text before a stop string.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from apr.engine.stops import StopStrings

if TYPE_CHECKING:
    from apr.tokenizer import Tokenizer


class StreamDecoder:
    """Decodes ids one by one; call `finish` after the last.

    Args:
        tokenizer: the ids' own.
        skip_special_tokens: leave control tokens out of the text.
        continues: the text goes on where another ended; a space at its beginning then stays, where
            decoding it as a text of its own drops it (SentencePiece).
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special_tokens: bool = False,
        continues: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special_tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._run: list[bytes] = []  # byte tokens that are still to be judged together
        self._strip = tokenizer.strips_leading_space and not continues

    def feed(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is unfinished."""
        if self._skip_special and self._tokenizer.is_special(token_id):
            return ""
        data = self._tokenizer.token_bytes(token_id)
        if self._tokenizer.is_byte_fallback(token_id):
            self._run.append(data)
            return ""
        return self._stripped(self._byte_run() + self._utf8.decode(data))

    def finish(self) -> str:
        """What is still held back: nothing, or U+FFFD for a character that never ended."""
        return self._stripped(self._byte_run() + self._utf8.decode(b"", final=True))

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The pieces for a whole sequence, one a token and the rest of `finish`."""
        return [*(self.feed(i) for i in ids), self.finish()]

    def _byte_run(self) -> str:
        """SentencePiece's byte tokens: a run of them is text if all of it is, else each is one
        U+FFFD.
        """
        run, self._run = b"".join(self._run), []
        try:
            return run.decode("utf-8")
        except UnicodeDecodeError:
            return "\ufffd" * len(run)

    def _stripped(self, text: str) -> str:
        """Without the space that SentencePiece puts before a text."""
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text


class TextStream:
    """The text of a generation while it runs: whole characters, ended before a stop string.

    Control tokens are left out. The pieces given to `on_text` joined are `text`.

    Attributes:
        text: what is certain so far; all of it after `finish`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        stop_strings: Sequence[str] = (),
        on_text: Callable[[str], None] | None = None,
        continues: bool = True,
    ) -> None:
        self._decoder = StreamDecoder(tokenizer, skip_special_tokens=True, continues=continues)
        self._stops = StopStrings(stop_strings)
        self._on_text = on_text
        self.text = ""

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the text; None while none has."""
        return self._stops.found

    def feed(self, token_id: int) -> bool:
        """Take a further token; whether the text goes on (no stop string is complete)."""
        self._give(self._stops.feed(self._decoder.feed(token_id)))
        return self._stops.found is None

    def finish(self) -> None:
        """Give out what was held back; a stop string may become complete with it."""
        self._give(self._stops.feed(self._decoder.finish()))
        self._give(self._stops.finish())

    def _give(self, piece: str) -> None:
        if piece:
            self.text += piece
            if self._on_text is not None:
                self._on_text(piece)
