"""Reading header and index with every bound checked before anything is allocated or trusted.

Each function takes the whole file as a buffer of known size and raises an error that names what is
wrong, where, and both figures. No byte of a tensor is looked at. Each way in which a file can be
wrong has a message of its own; docs/spec/apr-format.md lists them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from mmap import mmap

from apr.checkpoint.layout import (
    ALIGNMENT,
    FOOTER_SIZE,
    HEADER_SIZE,
    KNOWN_FLAGS,
    MAGIC,
    MAX_DIMS,
    MAX_METADATA,
    MAX_NAME,
    SMALLEST_ENTRY,
    UNREADABLE,
    VERSION,
    Entry,
    Flag,
    Header,
    align,
    header_checksum,
)
from apr.dtypes import BY_APR_ID
from apr.errors import CorruptFile, InvalidFormat, StrPath

Buffer = bytes | mmap

_DAMAGED = "the file is damaged: copy it again from where it came"
_CUT = "the file was cut short: copy or download it again"
_U64 = struct.Struct("<Q")

_OTHER_MAGICS: tuple[tuple[bytes, str, str], ...] = (
    (b"APRN", "is an APR v1 file (magic APRN)", "convert it with the Rust apr that wrote it"),
    (b"APR1", "is an older .apr file (magic APR1)", "convert it with the Rust apr that wrote it"),
    (b"APR2", "is an early APR v2 file (magic APR2)", "convert it with the Rust apr that wrote it"),
    (b"GGUF", "is a GGUF file renamed, not an .apr file", "give it the name NAME.gguf"),
    (b"PK\x03\x04", "is a zip archive (perhaps torch.save's), not an .apr file", ""),
    (b"\x80\x02", "is a Python pickle, not an .apr file", ""),
    (b"\x1f\x8b", "is gzip-compressed, not an .apr file", "decompress it first"),
    (b"\x28\xb5\x2f\xfd", "is zstd-compressed, not an .apr file", "decompress it first"),
    (b"\x89HDF", "is an HDF5 file, not an .apr file", ""),
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself", "run git lfs pull"),
)


@dataclass(frozen=True, slots=True)
class Index:
    """The checked index: entries in their order, and the file's regions that must be zero."""

    entries: tuple[Entry, ...]
    gaps: tuple[tuple[int, int], ...]


def read_header(path: StrPath, buffer: Buffer, size: int) -> Header:
    """The checked header.

    Raises:
        InvalidFormat: another format, version, or a flag that this reader cannot honour.
        CorruptFile: cut short, or a checksum or bound does not hold.
    """
    _check_magic(path, bytes(buffer[:64]), size)
    if size < HEADER_SIZE:
        raise CorruptFile(path, f"has {size} bytes, the header alone takes {HEADER_SIZE}", _CUT)
    raw = bytes(buffer[:HEADER_SIZE])
    stored, computed = int.from_bytes(raw[40:44], "little"), header_checksum(raw)
    if stored != computed:
        raise CorruptFile(
            path, f"header checksum is {stored:08x}, its bytes give {computed:08x}", _DAMAGED
        )
    header = Header.unpack(raw)
    if header.version != VERSION:
        major, minor = header.version
        raise InvalidFormat(
            path, f"is APR version {major}.{minor}, this apr reads 2.0", "use a newer apr"
        )
    _check_flags(path, header.flags)
    if any(raw[44:64]):
        raise CorruptFile(path, "the header's reserved bytes (44 to 63) are not zero", _DAMAGED)
    _check_sections(path, header, size)
    return header


def _check_magic(path: StrPath, start: bytes, size: int) -> None:
    if start[:4] == MAGIC:
        return
    for magic, what, hint in _OTHER_MAGICS:
        if start.startswith(magic):
            raise InvalidFormat(path, what, hint)
    if size < 4 and MAGIC.startswith(start):
        raise CorruptFile(path, f"has {size} bytes, the header alone takes {HEADER_SIZE}", _CUT)
    if size > 8 and start[8:9] == b"{" and _U64.unpack(start[:8])[0] < size:
        raise InvalidFormat(
            path, "is a safetensors file, not an .apr file", "open its folder (with config.json)"
        )
    raise InvalidFormat(
        path, f"is not an .apr file: it starts with {start[:4]!r}, not with {MAGIC!r}"
    )


def _check_flags(path: StrPath, flags: int) -> None:
    refused = [flag.name for flag in UNREADABLE if flag & flags]
    if refused:
        raise InvalidFormat(
            path,
            f"has the flag {', '.join(map(str, refused))}, whose layout is not public",
            "write it again without",
        )
    if flags & Flag.COLUMN_MAJOR:
        raise InvalidFormat(
            path,
            "is column-major, its tensors would be read transposed",
            "import the model again from its source",
        )
    if flags & ~KNOWN_FLAGS:
        raise InvalidFormat(
            path, f"has the unknown flags 0x{flags & ~KNOWN_FLAGS:04x}", "use a newer apr"
        )


def _check_sections(path: StrPath, header: Header, size: int) -> None:
    """Order, alignment and room of metadata, index and data."""
    if header.metadata_offset != HEADER_SIZE:
        raise CorruptFile(
            path, f"metadata starts at byte {header.metadata_offset}, not at {HEADER_SIZE}"
        )
    if header.metadata_size > MAX_METADATA:
        raise CorruptFile(
            path, f"metadata of {header.metadata_size} bytes, the format ends at {MAX_METADATA}"
        )
    for what, offset, before in (
        ("tensor index", header.tensor_index_offset, HEADER_SIZE + header.metadata_size),
        ("tensor data", header.data_offset, header.tensor_index_offset),
    ):
        if offset % ALIGNMENT:
            raise CorruptFile(path, f"{what} starts at byte {offset}, no multiple of {ALIGNMENT}")
        if offset < before:
            raise CorruptFile(path, f"{what} starts at byte {offset}, inside what ends at {before}")
    if header.data_offset + FOOTER_SIZE > size:
        raise CorruptFile(
            path,
            f"header, metadata and index end at byte {header.data_offset}, "
            f"with the footer at {header.data_offset + FOOTER_SIZE}; the file has {size}",
            _CUT,
        )
    room = header.data_offset - header.tensor_index_offset
    if header.tensor_count * SMALLEST_ENTRY > room:
        raise CorruptFile(
            path, f"the header counts {header.tensor_count} tensors, the index has {room} bytes"
        )


def read_index(path: StrPath, buffer: Buffer, header: Header, size: int) -> Index:
    """The checked index: bounds, order, overlap, sizes, and that the file ends where it should.

    Raises:
        InvalidFormat: a dtype id that this reader does not know.
        CorruptFile: cut short, or a bound, order or size does not hold.
    """
    raw = bytes(buffer[header.tensor_index_offset : header.data_offset])
    room = size - FOOTER_SIZE - header.data_offset
    entries: list[Entry] = []
    position, previous = 0, b""
    for number in range(header.tensor_count):
        entry, name, position = _read_entry(path, raw, position, number)
        if entries and name <= previous:
            order = "twice" if name == previous else f"after {entries[-1].name!r}: not sorted"
            raise CorruptFile(path, f"tensor {entry.name!r} stands in the index {order}")
        previous = name
        if entry.offset % ALIGNMENT:
            raise CorruptFile(
                path, f"tensor {entry.name!r} starts at {entry.offset}, no multiple of {ALIGNMENT}"
            )
        if entry.offset + entry.size > room:
            raise CorruptFile(
                path,
                f"tensor {entry.name!r} ends at byte "
                f"{header.data_offset + entry.offset + entry.size} of the file, "
                f"which has {size} with a footer of {FOOTER_SIZE}",
                _CUT,
            )
        entries.append(entry)
    gaps = [
        (HEADER_SIZE + header.metadata_size, header.tensor_index_offset),
        (header.tensor_index_offset + position, header.data_offset),
    ]
    gaps += _check_data(path, entries, header.data_offset, size)
    return Index(tuple(entries), tuple(gap for gap in gaps if gap[0] < gap[1]))


def _read_entry(path: StrPath, raw: bytes, at: int, number: int) -> tuple[Entry, bytes, int]:
    """One entry, its name's bytes, and where the next one starts."""

    def need(count: int) -> None:
        if at + count > len(raw):
            raise CorruptFile(
                path,
                f"index entry {number} ends at byte {at + count}, the index has {len(raw)}",
                _DAMAGED,
            )

    need(2)
    length = int.from_bytes(raw[at : at + 2], "little")
    if not 0 < length <= MAX_NAME:
        raise CorruptFile(
            path, f"index entry {number} has a name of {length} bytes, allowed are 1 to {MAX_NAME}"
        )
    at += 2
    need(length + 2)
    name_bytes = raw[at : at + length]
    try:
        name = name_bytes.decode()
    except UnicodeDecodeError:
        raise CorruptFile(path, f"index entry {number} has a name that is not UTF-8") from None
    kind, dims = raw[at + length], raw[at + length + 1]
    at += length + 2
    if dims > MAX_DIMS:
        raise CorruptFile(path, f"tensor {name!r} has {dims} dimensions, allowed are {MAX_DIMS}")
    need(8 * dims + 16)
    *shape, offset, size = struct.unpack_from(f"<{dims}QQQ", raw, at)
    at += 8 * dims + 16
    dtype = BY_APR_ID.get(kind)
    if dtype is None:
        raise InvalidFormat(path, f"tensor {name!r} has the unknown dtype id {kind}")
    if prod(max(dim, 1) for dim in shape) >= 1 << 60:  # numpy counts bytes in a signed 64-bit
        raise CorruptFile(path, f"tensor {name!r} has the impossible shape {shape}", _DAMAGED)
    try:
        expected = dtype.nbytes(tuple(shape))
    except InvalidFormat as error:
        raise CorruptFile(path, f"tensor {name!r}, {dtype.name} {shape}: {error.what}") from None
    if size != expected:
        raise CorruptFile(
            path,
            f"tensor {name!r} is stored in {size} bytes, {dtype.name} {shape} takes {expected}",
        )
    return Entry(name, dtype, tuple(shape), offset, size), name_bytes, at


def _check_data(
    path: StrPath, entries: list[Entry], data_offset: int, size: int
) -> list[tuple[int, int]]:
    """Overlap and the file's end; returns the gaps between tensors, as positions in the file."""
    gaps, end, last = [], 0, ""
    for entry in sorted(entries, key=lambda entry: (entry.offset, entry.size)):
        if entry.offset < end:
            raise CorruptFile(
                path,
                f"tensor {entry.name!r} starts at {entry.offset}, "
                f"inside {last!r}, which ends at {end}",
            )
        gaps.append((data_offset + end, data_offset + entry.offset))
        end, last = entry.offset + entry.size, entry.name
    finish = data_offset + align(end)
    gaps.append((data_offset + end, finish))
    if size < finish + FOOTER_SIZE:
        raise CorruptFile(
            path, f"has {size} bytes, its index accounts for {finish + FOOTER_SIZE}", _CUT
        )
    if size > finish + FOOTER_SIZE:
        raise CorruptFile(
            path,
            f"has {size} bytes, {size - finish - FOOTER_SIZE} more than its index accounts for",
            "something was appended to it; copy it again from where it came",
        )
    return gaps
