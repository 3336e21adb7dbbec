"""Text while it is generated, never half a character.

Tokens of a byte-level vocabulary end anywhere, also inside a character. The decoder holds back the
bytes of an unfinished character until the rest arrives; the pieces joined are exactly what decoding
all ids at once gives (invalid bytes become U+FFFD at the same places).
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apr.tokenizer import Tokenizer


class StreamDecoder:
    """Decodes ids one by one; call `finish` after the last."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special_tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._run: list[bytes] = []  # byte tokens that are still to be judged together
        self._strip = tokenizer.strips_leading_space

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
