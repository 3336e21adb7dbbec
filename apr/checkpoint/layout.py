"""The bytes of an `.apr` file: header, index entries, alignment, flags; packing them.

Order in the file: header, metadata, tensor index, tensor data, footer; everything little-endian.
Facts: docs/spec/apr-format.md. Reading, with its checks, is in structure.py.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag

from apr.dtypes import DType
from apr.errors import InvalidFormat, StrPath
from apr.tensors import Tensor

MAGIC = b"APR\0"
VERSION = (2, 0)
HEADER_SIZE = 64
FOOTER_SIZE = 4
ALIGNMENT = 64
MAX_METADATA = 16 << 20
MAX_NAME = 256
MAX_DIMS = 8

_HEADER = struct.Struct("<4sBBHIQIQQI20s")  # magic, version, flags, counts and offsets, checksum
_TAIL = struct.Struct("<QQ")  # an index entry's offset and size
SMALLEST_ENTRY = 2 + 1 + 1 + 1 + _TAIL.size  # a name of one byte, no dimensions


class Flag(IntFlag):
    """The header's flags. A reader that does not know a bit must not guess what it means."""

    LZ4 = 0x001
    ZSTD = 0x002
    ENCRYPTED = 0x004
    SIGNED = 0x008
    SHARDED = 0x010
    QUANTIZED = 0x020
    FILTERBANK = 0x040
    MODEL_CARD = 0x080
    STREAMING = 0x100
    HAS_VOCAB = 0x200
    ROW_MAJOR = 0x400
    COLUMN_MAJOR = 0x800


# The byte layout behind these is not public, or (sharded) not in one file.
UNREADABLE = Flag.LZ4 | Flag.ZSTD | Flag.ENCRYPTED | Flag.SIGNED | Flag.SHARDED
KNOWN_FLAGS = 0xFFF


@dataclass(frozen=True, slots=True)
class Header:
    """The 64 bytes at the start. Offsets and sizes in bytes from the start of the file."""

    flags: int
    tensor_count: int
    metadata_size: int
    tensor_index_offset: int
    data_offset: int
    metadata_offset: int = HEADER_SIZE
    version: tuple[int, int] = VERSION

    def pack(self) -> bytes:
        """The header with its checksum."""
        fields = (
            MAGIC,
            *self.version,
            self.flags,
            self.tensor_count,
            self.metadata_offset,
            self.metadata_size,
            self.tensor_index_offset,
            self.data_offset,
        )
        unsigned = _HEADER.pack(*fields, 0, b"")
        return _HEADER.pack(*fields, header_checksum(unsigned), b"")

    @classmethod
    def unpack(cls, raw: bytes) -> Header:
        """The fields of 64 bytes, unchecked."""
        (_, major, minor, flags, count, meta_offset, meta_size, index_offset, data_offset, _, _) = (
            _HEADER.unpack(raw)
        )
        return cls(flags, count, meta_size, index_offset, data_offset, meta_offset, (major, minor))


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of the index. `offset` counts from `data_offset`; `size` is without padding."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    offset: int
    size: int

    def pack(self) -> bytes:
        """The entry's bytes."""
        name, dims = self.name.encode(), len(self.shape)
        return b"".join(
            (
                struct.pack("<H", len(name)),
                name,
                struct.pack(f"<BB{dims}Q", self.dtype.apr_id, dims, *self.shape),
                _TAIL.pack(self.offset, self.size),
            )
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """Where everything of a file that is to be written goes, before a byte of it is there."""

    header: Header
    entries: tuple[Entry, ...]
    front: bytes
    file_size: int


def header_checksum(raw: bytes) -> int:
    """CRC-32 over the 64 bytes without the checksum's own four (left out, not zeroed)."""
    return zlib.crc32(raw[44:64], zlib.crc32(raw[:40]))


def align(size: int) -> int:
    """`size` rounded up to the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def padding(size: int) -> bytes:
    """The zeros that bring `size` to the alignment."""
    return bytes(align(size) - size)


def plan(path: StrPath, metadata: bytes, tensors: Sequence[Tensor], flags: Flag) -> Plan:
    """Lay out a file: the front (header, metadata, index, padded) and each tensor's place.

    Args:
        path: named in errors.
        metadata: the JSON, without padding.
        tensors: any order; the plan has them sorted by name in byte order.
        flags: as they go into the header; row-major is added.

    Raises:
        InvalidFormat: a name, number of dimensions, shape or size that the format cannot hold, or
            a name that occurs twice.
    """
    if len(metadata) > MAX_METADATA:
        raise InvalidFormat(
            path,
            f"the metadata is {len(metadata):,} bytes of JSON, the format ends at {MAX_METADATA:,}",
            "use a smaller vocabulary, or shorten the training record",
        )
    entries: list[Entry] = []
    offset = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.name.encode("utf-8", "surrogatepass")):
        _check_name(path, tensor.name)
        if entries and entries[-1].name == tensor.name:
            raise InvalidFormat(path, f"two tensors are named {tensor.name!r}")
        if len(tensor.shape) > MAX_DIMS:
            raise InvalidFormat(
                path,
                f"tensor {tensor.name!r} has {len(tensor.shape)} dimensions, "
                f"the format ends at {MAX_DIMS}",
            )
        size = stored_size(path, tensor)
        entries.append(Entry(tensor.name, tensor.dtype, tensor.shape, offset, size))
        offset += align(size)
    index = b"".join(entry.pack() for entry in entries)
    index_offset = HEADER_SIZE + align(len(metadata))
    data_offset = index_offset + align(len(index))
    header = Header(
        int(flags | Flag.ROW_MAJOR), len(entries), len(metadata), index_offset, data_offset
    )
    front = b"".join((header.pack(), metadata, padding(len(metadata)), index, padding(len(index))))
    return Plan(header, tuple(entries), front, data_offset + offset + FOOTER_SIZE)


def stored_size(path: StrPath, tensor: Tensor) -> int:
    """Bytes of a tensor, without padding.

    Raises:
        InvalidFormat: its shape is no whole number of its type's blocks; named with the file.
    """
    try:
        return tensor.nbytes
    except InvalidFormat as error:
        raise InvalidFormat(path, f"tensor {tensor.name!r}: {error.what}") from error


def _check_name(path: StrPath, name: str) -> None:
    try:
        length = len(name.encode())
    except UnicodeEncodeError as error:
        raise InvalidFormat(path, f"tensor name {name!r} cannot be written as UTF-8") from error
    if not 0 < length <= MAX_NAME:
        raise InvalidFormat(
            path,
            f"tensor name {name[:40]!r} is {length} bytes long, the format allows 1 to {MAX_NAME}",
        )
