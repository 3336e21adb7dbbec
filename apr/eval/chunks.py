"""Text -> chunks of token ids, cut as llama-perplexity cuts them.

The token stream is cut into pieces of `context` ids, the rest is left over. Where the tokenizer
puts a token before a text (bos), the stream begins with it and it replaces the first id of every
further chunk. The first half of a chunk is context, the second half is scored: `context // 2` to
the end, so that each token is predicted from at least half a chunk. One newline at the end of a
text file is dropped. Facts: llama.cpp, tools/perplexity and the option `-f`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from apr.data.files import find_files
from apr.data.report import SourceReport
from apr.data.sources import Document, read_files
from apr.errors import InvalidFormat

if TYPE_CHECKING:
    from apr.tokenizer import Tokenizer

DEFAULT_CONTEXT = 512
LEAST_CHUNKS = 2  # llama-perplexity refuses a shorter text
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Text:
    """A data set as chunks, `[chunks, context]`, and what was read for them."""

    name: str
    chunks: Ids
    tokens_read: int
    report: SourceReport

    @property
    def context(self) -> int:
        """Ids of a chunk."""
        return int(self.chunks.shape[1])

    @property
    def sha256(self) -> str:
        """Of the ids as they were given to the model, 64-bit little-endian."""
        return hashlib.sha256(self.chunks.astype("<i8").tobytes()).hexdigest()

    @property
    def first(self) -> int:
        """Position from which on logits are scored: they predict `first + 1` to the end."""
        return self.context // 2

    @property
    def scored(self) -> Ids:
        """Ids that are predicted, `[chunks, context - first - 1]`."""
        return self.chunks[:, self.first + 1 :]


def scored_per_chunk(context: int) -> int:
    """Tokens of a chunk that are scored."""
    return context - context // 2 - 1


def read(name: str, tokenizer: Tokenizer, context: int, most: int | None, text_key: str) -> Text:
    """The chunks of a file, folder or glob; at most `most` of them, then reading ends.

    Raises:
        InvalidFormat: the text is shorter than two chunks, as in llama-perplexity; errors of
            `apr.data` otherwise.
    """
    report = SourceReport()
    before = tokenizer.added_around[0]
    ids: list[int] = list(before)
    wanted = None if most is None else max(most, LEAST_CHUNKS) * context
    for part in _token_parts(name, tokenizer, text_key, report):
        ids += part
        if wanted is not None and len(ids) >= wanted:
            break
    count = len(ids) // context
    if count < LEAST_CHUNKS:
        fits = len(ids) // LEAST_CHUNKS
        raise InvalidFormat(
            name,
            f"gives {len(ids):,} tokens, {LEAST_CHUNKS} chunks of {context:,} need "
            f"{LEAST_CHUNKS * context:,}",
            "use more text" + (f", or --context {fits} or smaller" if fits >= 3 else ""),
        )
    if most is not None:
        count = min(count, most)
    chunks = np.array(ids[: count * context], dtype=np.int64).reshape(count, context)
    chunks[:, : len(before)] = before
    return Text(name, chunks, len(ids), report)


def _token_parts(
    name: str, tokenizer: Tokenizer, text_key: str, report: SourceReport
) -> Iterator[list[int]]:
    """Ids of one document after the other, the end-of-text token between two of them.

    A plain text file is one document, also where reading has cut it into pieces.
    """
    end = list(tokenizer.eos_token_ids[:1])
    files = find_files([name], report)
    kinds = {file.path: file.kind for file in files}
    waiting: Document | None = None
    for document in read_files(
        files, text_key=text_key, on_bad_record="stop", report=report, paths=[name]
    ):
        if waiting is not None:
            yield tokenizer.encode(waiting.text, parse_special=False)
            one = document.source == waiting.source and (
                kinds[document.source] == "text" or document.line == waiting.line
            )
            if not one:
                yield end
        waiting = document
    if waiting is not None:
        text = waiting.text
        if kinds[waiting.source] == "text":
            text = text.removesuffix("\n")
        yield tokenizer.encode(text, parse_special=False)


class ByteLengths:
    """Bytes of text that each id stands for; control tokens and fillers stand for none."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, int] = {}

    def of(self, ids: Sequence[int]) -> Ids:
        """Bytes of each id, `[len]`."""
        return np.array([self._one(int(i)) for i in ids], dtype=np.int64)

    def _one(self, id: int) -> int:
        if id not in self._known:
            special = self._tokenizer.is_special(id)
            self._known[id] = 0 if special else len(self._tokenizer.token_bytes(id))
        return self._known[id]
