"""Documents -> shards: duplicates dropped, split, encoded in parallel, written in order.

Threads, not processes: the tokenizers library leaves Python's lock while it encodes, and on two
cores threads of ours were 1.5 times as fast as two spawned processes and a little faster than the
library's own threads (docs/spec/data.md has the figures). Results are written in the order of the
documents, so the number of workers changes nothing but the time.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from apr.data.files import SourceFile
from apr.data.progress import BuildProgress, Report
from apr.data.report import SourceReport
from apr.data.shards import Shard, ShardWriter, dtype_for
from apr.data.sources import Document, read_files
from apr.data.split import Split, digest_of
from apr.errors import InvalidFormat

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SIDES = ("train", "validation")
# Encoding takes some 250 bytes for each token in flight: small batches keep that small.
BATCH_BYTES = 256 << 10
BATCH_TEXTS = 1024


class Encoder(Protocol):
    """What a build needs of a tokenizer (`apr.tokenizer.Tokenizer` is one)."""

    @property
    def vocab_size(self) -> int:
        """Number of ids."""

    @property
    def fingerprint(self) -> str:
        """Changes with whatever decides the ids of a text."""

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The ids that end a text."""

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """The ids of each text, no special tokens added."""

    def tokens(self) -> list[str]:
        """The tokens by id."""


@dataclass(frozen=True, slots=True)
class Job:
    """What to read and how."""

    files: Sequence[SourceFile]
    paths: Sequence[str]
    text_key: str
    on_bad_record: str

    def documents(self, report: SourceReport) -> Iterator[Document]:
        """The documents, from the beginning; `report` is filled."""
        return read_files(
            self.files,
            text_key=self.text_key,
            on_bad_record=self.on_bad_record,
            report=report,
            paths=self.paths,
        )


@dataclass
class Side:
    """The running counts of one side."""

    tokens: int = 0
    documents: int = 0
    bytes: int = 0
    shards: list[Shard] = field(default_factory=list)


@dataclass
class Built:
    """What a build counted."""

    report: SourceReport
    sides: dict[str, Side] = field(default_factory=lambda: {name: Side() for name in SIDES})
    documents: int = 0
    duplicates: int = 0
    duplicate_bytes: int = 0
    max_token_id: int = 0


def distinct_documents(job: Job, at_most: int, report: SourceReport) -> int:
    """The number of distinct documents, counted up to `at_most`; `report` is filled so far.

    Raises:
        InvalidFormat: there is no text at all; see `iter_documents`.
    """
    seen: set[bytes] = set()
    for document in job.documents(report):
        seen.add(digest_of(document.text))
        if len(seen) >= at_most:
            break
    return len(seen)


def write_shards(
    job: Job,
    tokenizer: Encoder,
    end_of_text: int,
    split: Split,
    folder: Path,
    report: SourceReport,
    workers: int,
    progress: Report,
) -> Built:
    """Encode the documents of `job` into shards in `folder`.

    Memory: the text and tokens of `2 * workers` batches, and some 100 bytes for each distinct
    document (its 16-byte hash in a set).

    Raises:
        InvalidFormat: no text, a broken record (if told to stop), or a token id that the
            tokenizer's vocabulary does not have.
    """
    built = Built(report)
    dtype = dtype_for(tokenizer.vocab_size)
    writers = {side: ShardWriter(folder, side, dtype) for side in SIDES}
    pending: deque[Future[_Encoded]] = deque()

    def finish_oldest() -> None:
        done = pending.popleft().result()
        if done.max_id >= tokenizer.vocab_size:
            raise InvalidFormat(
                "tokenizer", f"gave id {done.max_id}, its vocab_size is {tokenizer.vocab_size}"
            )
        built.max_token_id = max(built.max_token_id, done.max_id)
        for side, ids in done.ids.items():
            writers[side].append(ids)
            built.sides[side].tokens += len(ids)
        tokens = sum(side.tokens for side in built.sides.values())
        progress(BuildProgress(report.bytes_read, report.bytes_total, report.documents, tokens))

    pool = ThreadPoolExecutor(workers, thread_name_prefix="tokenize")
    try:
        with _library_threads_off():
            for batch in _batches(_parts(job.documents(report), split, built)):
                pending.append(pool.submit(_encode, tokenizer, end_of_text, batch))
                while len(pending) > 2 * workers:
                    finish_oldest()
            while pending:
                finish_oldest()
    except BaseException:
        for writer in writers.values():
            writer.abandon()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    for side, writer in writers.items():
        built.sides[side].shards = writer.close()
    return built


@dataclass(frozen=True, slots=True)
class _Part:
    side: str
    text: str
    bytes: int


@dataclass(frozen=True, slots=True)
class _Encoded:
    ids: dict[str, npt.NDArray[np.uint32]]
    max_id: int


def _parts(documents: Iterator[Document], split: Split, built: Built) -> Iterator[_Part]:
    """Each distinct document's parts, counted."""
    seen: set[bytes] = set()
    for document in documents:
        digest = digest_of(document.text)
        if digest in seen:
            built.duplicates += 1
            built.duplicate_bytes += len(document.text.encode("utf-8"))
            continue
        seen.add(digest)
        built.documents += 1
        for side, text in zip(SIDES, split.parts(document.text, digest), strict=True):
            if text:
                part = _Part(side, text, len(text.encode("utf-8")))
                built.sides[side].documents += 1
                built.sides[side].bytes += part.bytes
                yield part


def _batches(parts: Iterator[_Part]) -> Iterator[list[_Part]]:
    batch: list[_Part] = []
    size = 0
    for part in parts:
        batch.append(part)
        size += part.bytes
        if size >= BATCH_BYTES or len(batch) >= BATCH_TEXTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode(tokenizer: Encoder, end_of_text: int, batch: list[_Part]) -> _Encoded:
    import numpy as np

    end = np.array([end_of_text], dtype=np.uint32)
    pieces: dict[str, list[npt.NDArray[np.uint32]]] = {}
    encoded = tokenizer.encode_batch([part.text for part in batch])
    for part, ids in zip(batch, encoded, strict=True):
        pieces.setdefault(part.side, []).extend((np.array(ids, dtype=np.uint32), end))
    joined = {side: np.concatenate(arrays) for side, arrays in pieces.items()}
    return _Encoded(joined, max(int(ids.max()) for ids in joined.values()))


@contextmanager
def _library_threads_off() -> Iterator[None]:
    """One thread a batch, so that `workers` means what it says (read anew at each call)."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
