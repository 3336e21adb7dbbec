"""`write_apr`: the bare file, streamed, checksummed as it goes, atomically.

All sizes are known before the first byte, so header and index are written first and each tensor
passes once, in pieces. What the file must hold to be a language model is complete.py's business.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from apr.atomic import atomic_file
from apr.checkpoint.layout import FOOTER_SIZE, Flag, Plan, padding, plan, stored_size
from apr.checkpoint.metadata import serialize
from apr.checkpoint.reader import AprFile
from apr.errors import CorruptFile, InvalidFormat, StrPath
from apr.mapped import release
from apr.tensors import Tensor

_PUSH = 32 << 20  # bytes
_DERIVED = Flag.HAS_VOCAB | Flag.QUANTIZED | Flag.ROW_MAJOR
_OPTIONAL = Flag.FILTERBANK | Flag.MODEL_CARD | Flag.STREAMING


@dataclass(frozen=True, slots=True)
class Written:
    """A file that was written: `checksum` is its footer, CRC-32 of all before, 8 hex digits."""

    path: Path
    size_bytes: int
    checksum: str


def write_apr(
    path: StrPath,
    metadata: Mapping[str, Any],
    tensors: Sequence[Tensor],
    *,
    flags: Flag = Flag(0),  # noqa: B008  (an IntFlag is a constant)
    force: bool = False,
) -> Written:
    """Write an `.apr` file.

    `total_size` (bytes of all tensors, unpadded) and `param_count` (elements) are filled in unless
    the metadata states them. Row-major is always set, QUANTIZED where a tensor is in blocks,
    HAS_VOCAB where the metadata holds `tokenizer.vocabulary`. Needs one piece of one tensor in
    memory beside what a tensor's `load` itself allocates. Before the file is renamed into place it
    is opened again: header, index, length, metadata and footer are compared with what was meant.

    Args:
        path: the file to make; its folder too, if missing.
        metadata: canonical keys, see docs/spec/apr-format.md; None counts as unset.
        tensors: any order; the index and the data are sorted by name.
        flags: FILTERBANK, MODEL_CARD or STREAMING; all others follow from the contents.
        force: replace an existing file.

    Raises:
        InvalidFormat: metadata or a tensor's name, shape or size that the format cannot hold.
        StorageError: exists already, disk full, read-only; nothing is left behind.
    """
    other = flags & ~(_DERIVED | _OPTIONAL)
    if other:
        raise InvalidFormat(path, f"the flag {other.name} cannot be written")
    flags |= Flag.QUANTIZED if any(tensor.dtype.is_block for tensor in tensors) else Flag(0)
    flags |= Flag.HAS_VOCAB if metadata.get("tokenizer.vocabulary") else Flag(0)
    filled = dict(metadata)
    if filled.get("total_size") is None:
        filled["total_size"] = sum(stored_size(path, tensor) for tensor in tensors)
    if filled.get("param_count") is None:
        filled["param_count"] = sum(tensor.num_elements for tensor in tensors)
    laid_out = plan(path, serialize(path, filled), tensors, flags)
    with atomic_file(path, force=force) as temporary:
        with temporary.open("wb") as file:
            checksum = _write(path, file, laid_out, {tensor.name: tensor for tensor in tensors})
        _read_back(temporary, laid_out, checksum)
    return Written(Path(path), laid_out.file_size, checksum)


class _Sink:
    """The file being written: keeps the checksum, and the disk busy while bytes are still coming.

    Left alone, the kernel holds gigabytes of unwritten pages until the final flush, and the disk
    idles meanwhile. Saying that the pages just written are not needed starts their writing now
    (they stay cached, being busy): 1.2 s became 0.6 s for 1 GB on ext4.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._written = self._pushed = 0
        self.crc = 0

    def put(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        self._file.write(data)
        self.crc = zlib.crc32(data, self.crc)
        self._written += len(data)
        pending = self._written - self._pushed
        if pending >= _PUSH and hasattr(os, "posix_fadvise"):
            self._file.flush()
            os.posix_fadvise(self._file.fileno(), self._pushed, pending, os.POSIX_FADV_DONTNEED)
            self._pushed = self._written


def _write(path: StrPath, file: BinaryIO, laid_out: Plan, tensors: Mapping[str, Tensor]) -> str:
    sink = _Sink(file)
    sink.put(laid_out.front)
    for entry in laid_out.entries:
        written = 0
        for piece in tensors[entry.name].chunks():
            written += piece.nbytes
            if written > entry.size:
                break
            sink.put(piece.data)
            release(piece)
        if written != entry.size:
            raise InvalidFormat(
                path,
                f"tensor {entry.name!r} gives {written} bytes or more, {entry.dtype.name} "
                f"{list(entry.shape)} takes {entry.size}",
            )
        sink.put(padding(entry.size))
    file.write(sink.crc.to_bytes(FOOTER_SIZE, "little"))
    return f"{sink.crc:08x}"


def _read_back(temporary: Path, laid_out: Plan, checksum: str) -> None:
    """Open what was written and compare all but the weights, which the checksum stands for.

    Reading the weights too would only show what is still in the page cache, at the price of a
    second pass over the file; `verify` does it when asked.
    """
    file = AprFile.open(temporary)
    front = bytes(file.buffer[: len(laid_out.front)])
    if (
        front != laid_out.front
        or file.index.entries != laid_out.entries
        or file.stored_checksum != checksum
    ):
        raise CorruptFile(temporary, "does not read back as it was written")
