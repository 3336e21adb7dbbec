"""One source file -> its records, in bounded memory: plain text, JSON lines, Parquet.

A reader yields `Record` (text and the line where it begins), `BadRecord` for what is broken and
could be stepped over, and raises `Unreadable` when the file as a whole is no text. Text is taken
byte for byte: no newline is translated, a byte order mark alone is dropped.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from apr.data.files import SourceFile
from apr.data.report import BadRecord
from apr.errors import FeatureUnavailable

# The tokenizer needs some 250 bytes of memory for each token in flight. So a document above
# MAX_DOCUMENT_BYTES is cut at paragraph or line borders into pieces of up to PIECE_BYTES: whatever
# is common stays whole, and a huge file costs little memory.
MAX_DOCUMENT_BYTES = 2 << 20
PIECE_BYTES = 512 << 10
# A line of JSON above this is a broken record: it would have to be held whole to be parsed.
MAX_LINE_BYTES = 64 << 20
CHUNK = 64 << 10
SNIFF = 8 << 10


@dataclass(frozen=True, slots=True)
class Record:
    """A text and the line (from 1; row, in Parquet) where it begins; `cut`: more of it follows."""

    text: str
    line: int
    cut: bool = False


class Unreadable(Exception):
    """The file as a whole holds no text that can be read; the message is the reason."""


class Truncated(Exception):
    """The compressed stream ends or breaks before its end; the message says where."""


Progress = Callable[[int], None]


def records(file: SourceFile, text_key: str, progress: Progress) -> Iterator[Record | BadRecord]:
    """The records of one file; `progress` is told the bytes taken from disk so far.

    Raises:
        Unreadable: see there.
        FeatureUnavailable: the reader's package is not installed.
    """
    if file.kind == "parquet":
        yield from _parquet(file, text_key, progress)
        return
    with Path(file.path).open("rb") as raw:
        chunks = _sniffed(_decompressed(raw, file.compression, progress))
        if file.kind == "jsonl":
            yield from _json_lines(file.path, chunks, text_key)
        else:
            yield from _plain_text(file.path, chunks)


def cut_text(text: str) -> list[str]:
    """A text whole, or in pieces at paragraph or line borders if it is too long (UTF-8 bytes)."""
    if len(text) * 4 <= MAX_DOCUMENT_BYTES:
        return [text]
    data = memoryview(text.encode("utf-8"))
    if len(data) <= MAX_DOCUMENT_BYTES:
        return [text]
    pieces = []
    while len(data) > PIECE_BYTES:
        end = _border(bytes(data[:PIECE_BYTES]))
        pieces.append(bytes(data[:end]).decode("utf-8"))
        data = data[end:]
    pieces.append(bytes(data).decode("utf-8"))
    return pieces


def _border(data: bytes) -> int:
    """Where to cut `data`: after the last empty line, else line, else space, else character."""
    half = len(data) // 2
    for mark in (b"\n\n", b"\n\r\n", b"\n", b" "):
        found = data.rfind(mark, half)
        if found >= 0:
            return found + len(mark)
    end = len(data)
    # A UTF-8 character is at most 4 bytes; step back over continuation bytes to its first byte.
    for back in range(1, 4):
        byte = data[end - back]
        if byte & 0xC0 == 0xC0:
            return end - back
        if byte & 0x80 == 0:
            break
    return end


# --- bytes -------------------------------------------------------------------------------------


def _decompressed(raw: IO[bytes], compression: str, progress: Progress) -> Iterator[bytes]:
    """Chunks of the unpacked stream.

    Raises:
        Truncated: after the last good chunk, if the stream breaks off.
    """
    if compression == "none":
        while chunk := raw.read(CHUNK):
            progress(raw.tell())
            yield chunk
        return
    if compression == "zstd":
        yield from _unpacked_zstd(raw, progress)
        return
    try:
        with gzip.GzipFile(fileobj=raw) as unpacked:
            while chunk := unpacked.read(CHUNK):
                progress(raw.tell())
                yield chunk
    except EOFError:
        raise Truncated("the gzip stream is cut short") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise Truncated(f"the gzip stream is damaged ({error})".lower()) from None


def _unpacked_zstd(raw: IO[bytes], progress: Progress) -> Iterator[bytes]:
    # The object interface says whether a frame was complete; the stream reader ends silently. A
    # kilobyte of input unpacks to at most some 40 MB (128 KiB per 3-byte block): bounded.
    try:
        import zstandard
    except ImportError:
        raise FeatureUnavailable(
            ".zst", "reading it needs the package zstandard", "pip install zstandard"
        ) from None
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    frame = decompressor.decompressobj()
    started = False
    try:
        while data := raw.read(1 << 10):
            progress(raw.tell())
            while data:
                started = True
                if chunk := frame.decompress(data):
                    for start in range(0, len(chunk), CHUNK):
                        yield chunk[start : start + CHUNK]
                data = b""
                if frame.eof:
                    data = frame.unused_data
                    frame, started = decompressor.decompressobj(), False
    except zstandard.ZstdError as error:
        raise Truncated(f"the zstd stream is damaged ({error})") from None
    if started:
        raise Truncated("the zstd stream is cut short")


def _sniffed(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same chunks; a stream that begins like a binary file is refused.

    Raises:
        Unreadable: the first kilobytes hold a NUL byte, or are UTF-16.
    """
    head = b""
    broken: Truncated | None = None
    try:
        for chunk in chunks:
            head += chunk
            if len(head) >= SNIFF:
                break
    except Truncated as error:
        if not head:
            raise Unreadable(str(error)) from None
        broken = error
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise Unreadable("UTF-16 text, only UTF-8 is read")
    if b"\0" in head[:SNIFF]:
        raise Unreadable("binary (a NUL byte near its beginning)")
    yield head.removeprefix(b"\xef\xbb\xbf")
    if broken:
        raise broken
    yield from chunks


# --- plain text --------------------------------------------------------------------------------


def _plain_text(path: str, chunks: Iterator[bytes]) -> Iterator[Record | BadRecord]:
    buffer = bytearray()
    line = 1
    limit = MAX_DOCUMENT_BYTES
    try:
        for chunk in chunks:
            buffer += chunk
            if len(buffer) > limit:
                limit = PIECE_BYTES
            while limit == PIECE_BYTES and len(buffer) > limit:
                end = _border(bytes(buffer[:limit]))
                piece = bytes(buffer[:end])
                del buffer[:end]
                yield _text_record(path, piece, line, cut=True)
                line += piece.count(b"\n")
    except Truncated as error:
        yield BadRecord(path, line + buffer.count(b"\n"), str(error))
        return
    yield _text_record(path, bytes(buffer), line, cut=False)


def _text_record(path: str, data: bytes, line: int, cut: bool) -> Record | BadRecord:
    nul = data.find(b"\0")
    if nul >= 0:
        return BadRecord(path, line + data.count(b"\n", 0, nul), "a NUL byte")
    try:
        return Record(data.decode("utf-8"), line, cut)
    except UnicodeDecodeError as error:
        at = line + data.count(b"\n", 0, error.start)
        return BadRecord(path, at, f"not UTF-8 (byte 0x{data[error.start]:02x})")


# --- JSON lines --------------------------------------------------------------------------------


def _json_lines(path: str, chunks: Iterator[bytes], key: str) -> Iterator[Record | BadRecord]:
    number = 0
    try:
        for number, line in _lines(chunks):
            if line is None:
                yield BadRecord(path, number, f"longer than {MAX_LINE_BYTES >> 20} MiB")
            elif line.strip():
                yield _json_record(path, number, line, key)
    except Truncated as error:
        yield BadRecord(path, number + 1, str(error))


def _lines(chunks: Iterator[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Lines with their number from 1; None for one that is too long to hold."""
    number, pending, too_long = 0, bytearray(), False
    for chunk in chunks:
        *whole, rest = chunk.split(b"\n")
        for part in whole:
            number += 1
            fits = not too_long and len(pending) + len(part) <= MAX_LINE_BYTES
            yield number, bytes(pending) + part if fits else None
            pending.clear()
            too_long = False
        pending += rest
        if len(pending) > MAX_LINE_BYTES:
            too_long = True
            pending.clear()
    if pending or too_long:
        yield number + 1, None if too_long else bytes(pending)


def _json_record(path: str, number: int, line: bytes, key: str) -> Record | BadRecord:
    try:
        value: Any = json.loads(line)
    except UnicodeDecodeError:
        return BadRecord(path, number, "not UTF-8")
    except (ValueError, RecursionError) as error:
        return BadRecord(path, number, f"not JSON ({getattr(error, 'msg', 'too deep')})".lower())
    if not isinstance(value, dict):
        return BadRecord(path, number, f"a JSON {type(value).__name__}, not an object")
    if key not in value:
        return BadRecord(path, number, f"no key {key!r} (there are {_names(value)})")
    return text_or_bad(path, number, value[key], key)


def text_or_bad(path: str, number: int, text: object, key: str) -> Record | BadRecord:
    """A record if `text` is a string that can be text."""
    if not isinstance(text, str):
        return BadRecord(path, number, f"{key!r} is {type(text).__name__}, not a string")
    if "\0" in text:
        return BadRecord(path, number, "a NUL character")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return BadRecord(path, number, "half a surrogate pair, which is no character")
    return Record(text, number)


def _names(value: dict[str, Any]) -> str:
    names = [repr(name[:40]) for name in list(value)[:5]]
    return ", ".join(names) + (", ..." if len(value) > 5 else "") if names else "none"


# --- Parquet -----------------------------------------------------------------------------------


def _parquet(file: SourceFile, key: str, progress: Progress) -> Iterator[Record | BadRecord]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise FeatureUnavailable(
            file.path, "reading Parquet needs the package pyarrow", "pip install 'apr[parquet]'"
        ) from None
    try:
        table = parquet.ParquetFile(file.path)
    except (pyarrow.ArrowException, OSError) as error:
        raise Unreadable(f"not a Parquet file ({str(error).splitlines()[0]})") from None
    if key not in table.schema_arrow.names:
        names = ", ".join(map(repr, table.schema_arrow.names[:8]))
        raise Unreadable(f"no column {key!r} (there are {names})")
    kind = table.schema_arrow.field(key).type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise Unreadable(f"column {key!r} holds {kind}, not strings")
    row = 0
    try:
        for group in range(table.num_row_groups):
            for batch in table.iter_batches(256, row_groups=[group], columns=[key]):
                for value in batch.column(0):
                    row += 1
                    yield _parquet_record(file.path, row, value, key)
            progress(file.size * (group + 1) // table.num_row_groups)
    except (pyarrow.ArrowException, OSError) as error:
        yield BadRecord(file.path, row + 1, f"damaged ({str(error).splitlines()[0]})")


def _parquet_record(path: str, row: int, value: Any, key: str) -> Record | BadRecord:
    try:
        return text_or_bad(path, row, value.as_py(), key)
    except UnicodeDecodeError:
        return BadRecord(path, row, "not UTF-8")
