"""Reading every byte of an `.apr` file and saying what, if anything, is wrong with it.

What the weights mean (NaN, dead tensors, plausible sizes) is the business of `apr qa`; this is
about the file. A single flipped bit anywhere, or a cut at any byte, does not pass.
"""

from __future__ import annotations

import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from apr.checkpoint.layout import FOOTER_SIZE
from apr.checkpoint.reader import AprFile
from apr.checkpoint.structure import Buffer
from apr.errors import CorruptFile, StrPath
from apr.mapped import release
from apr.tensors import Bytes

_CHUNK = 4 << 20


@dataclass(frozen=True, slots=True)
class Verification:
    """What was checked and found in order."""

    path: Path
    size_bytes: int
    tensors: int
    parameters: int
    checksum: str
    seconds: float
    checks: tuple[str, ...] = (
        "magic and version",
        "header checksum",
        "flags and row-major layout",
        "bounds of sections and tensors",
        "order of names",
        "overlap",
        "dtype sizes",
        "file length",
        "metadata is a JSON object",
        "body checksum",
        "zero padding",
    )


def verify(path: StrPath) -> Verification:
    """Read every byte of a file.

    Raises:
        NotFound: it does not exist, or is not a file.
        StorageError: it cannot be read.
        InvalidFormat: it is another format, version or dtype, or has a flag that is not supported.
        CorruptFile: any check does not hold; each has its own message.
    """
    started = time.perf_counter()
    return _verify(AprFile.open(path), started)


def verify_bytes(path: StrPath, buffer: Buffer) -> Verification:
    """As `verify`, for a file that is already in memory; `path` is named in errors.

    Raises:
        InvalidFormat, CorruptFile: see `verify`.
    """
    started = time.perf_counter()
    return _verify(AprFile(path, buffer, len(buffer)), started)


def _verify(file: AprFile, started: float) -> Verification:
    whole = np.frombuffer(file.buffer, dtype=np.uint8)
    computed = _checksum(whole[: file.size_bytes - FOOTER_SIZE])
    if computed != file.stored_checksum:
        raise CorruptFile(
            file.path,
            f"body checksum is {file.stored_checksum}, its {file.size_bytes - FOOTER_SIZE:,} "
            f"bytes give {computed}",
            "a byte has changed since it was written: copy it again from where it came",
        )
    _ = file.metadata  # parses, or refuses
    for start, stop in file.index.gaps:
        for at in range(start, stop, _CHUNK):
            piece = whole[at : min(at + _CHUNK, stop)]
            if piece.any():
                raise CorruptFile(
                    file.path,
                    f"the padding at byte {at + int(piece.argmax())} is not zero"
                    if piece.size == 1
                    else f"the padding between bytes {start} and {stop} is not zero",
                )
    return Verification(
        path=file.path,
        size_bytes=file.size_bytes,
        tensors=len(file.index.entries),
        parameters=sum(tensor.num_elements for tensor in file.tensors.values()),
        checksum=computed,
        seconds=time.perf_counter() - started,
    )


def _checksum(body: Bytes) -> str:
    crc = 0
    for at in range(0, body.size, _CHUNK):
        piece = body[at : at + _CHUNK]
        crc = zlib.crc32(piece.data, crc)
        release(piece)
    return f"{crc:08x}"
