"""A GGUF file, mapped: header, key-values and tensors, every bound checked before it is trusted.

Listing is fast on any size: big arrays (a vocabulary of 151,936 strings) are stepped over and only
decoded when asked for, weights are never touched. Facts: the GGUF specification in ggml's
`docs/gguf.md`, versions 2 and 3, little-endian; the limits are those of llama.cpp's own loader.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from apr.dtypes import BY_GGML_ID
from apr.errors import CorruptFile, InvalidFormat, StrPath
from apr.mapped import Mapped
from apr.tensors import Tensor

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4  # GGML_MAX_DIMS
MAX_NAME = 65_535  # the specification's limit for keys
MAX_DEPTH = 4  # arrays of arrays: nobody writes more than two, and recursion needs an end

STRING, ARRAY = 8, 9
# Scalar value types: id -> (name, struct format).
SCALARS: dict[int, tuple[str, str]] = {
    0: ("u8", "B"),
    1: ("i8", "b"),
    2: ("u16", "H"),
    3: ("i16", "h"),
    4: ("u32", "I"),
    5: ("i32", "i"),
    6: ("f32", "f"),
    7: ("bool", "?"),
    10: ("u64", "Q"),
    11: ("i64", "q"),
    12: ("f64", "d"),
}
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Field:
    """One key-value: its type, and for an array the type and number of its elements.

    `offset` is where the value's bytes begin (behind type and count), `type_name` reads like
    `u32`, `string` or `string[151936]`.
    """

    key: str
    value_type: int
    offset: int
    element_type: int = -1
    count: int = 0

    @property
    def is_array(self) -> bool:
        """True for arrays."""
        return self.value_type == ARRAY

    @property
    def type_name(self) -> str:
        """The type, readable."""
        if self.is_array:
            return f"{_type_name(self.element_type)}[{self.count}]"
        return _type_name(self.value_type)


def _type_name(value_type: int) -> str:
    return {STRING: "string", ARRAY: "array"}.get(value_type) or SCALARS[value_type][0]


class Fields(Mapping[str, Any]):
    """The key-values of a file; a value is decoded when it is asked for, and kept."""

    def __init__(self, cursor: _Cursor, entries: dict[str, Field]) -> None:
        self._cursor = cursor
        self._entries = entries
        self._values: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        if key not in self._values:
            field = self._entries[key]
            self._values[key] = self._cursor.value(field)
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def field(self, key: str) -> Field:
        """Type and size of a value, without decoding it."""
        return self._entries[key]


class _Cursor:
    """Reads values at a position, and refuses whatever would run over the end of the file."""

    def __init__(self, mapped: Mapped) -> None:
        self.buffer, self.size, self.path = mapped.buffer, mapped.size, mapped.path
        self.position = 0

    def fail(self, what: str) -> NoReturn:
        raise CorruptFile(self.path, what, "the file is damaged or was cut short: fetch it again")

    def need(self, count: int, what: str) -> None:
        if count > self.size - self.position:
            self.fail(
                f"{what} at byte {self.position} needs {count} bytes, "
                f"the file has {self.size - self.position} left"
            )

    def u32(self, what: str) -> int:
        self.need(4, what)
        (value,) = _U32.unpack_from(self.buffer, self.position)
        self.position += 4
        return int(value)

    def u64(self, what: str) -> int:
        self.need(8, what)
        (value,) = _U64.unpack_from(self.buffer, self.position)
        self.position += 8
        return int(value)

    def name(self, what: str) -> str:
        """A key or a tensor's name: short, and valid UTF-8."""
        length = self.u64(what)
        if not 0 < length <= MAX_NAME:
            self.fail(f"{what} has a length of {length} bytes, allowed are 1 to {MAX_NAME}")
        self.need(length, what)
        data = self.buffer[self.position : self.position + length]
        self.position += length
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"{what} at byte {self.position - length} is not UTF-8")

    def skip_value(self, value_type: int, what: str, depth: int = 0) -> None:
        """Step over a value without making anything of it."""
        if value_type == STRING:
            self._skip_strings(1, what)
        elif value_type == ARRAY:
            if depth >= MAX_DEPTH:
                self.fail(f"{what} nests arrays more than {MAX_DEPTH} deep")
            element, count = self.array_head(what)
            self.skip_elements(element, count, what, depth)
        else:
            self._skip(struct.calcsize("<" + SCALARS[value_type][1]), what)

    def array_head(self, what: str) -> tuple[int, int]:
        element = self.value_type(f"the element type of {what}")
        return element, self.u64(f"the length of {what}")

    def value_type(self, what: str) -> int:
        value = self.u32(what)
        if value not in SCALARS and value not in (STRING, ARRAY):
            self.fail(f"{what} is {value}, which is no GGUF value type")
        return value

    def skip_elements(self, element: int, count: int, what: str, depth: int) -> None:
        if element == STRING:
            self._skip_strings(count, what)
        elif element == ARRAY:
            self.need(12 * count, what)
            for _ in range(count):
                self.skip_value(ARRAY, what, depth + 1)
        else:
            self._skip(count * struct.calcsize("<" + SCALARS[element][1]), what)

    def _skip(self, count: int, what: str) -> None:
        self.need(count, what)
        self.position += count

    def _skip_strings(self, count: int, what: str) -> None:
        # The hot loop of listing: a vocabulary has some 300,000 strings.
        self.need(8 * count, what)
        buffer, position, unpack = self.buffer, self.position, _U64.unpack_from
        try:
            for _ in range(count):
                position += 8 + unpack(buffer, position)[0]
        except (struct.error, OverflowError):
            position = self.size + 1
        if position > self.size:
            self.fail(f"{what} runs over the end of the file ({self.size} bytes)")
        self.position = position

    def value(self, field: Field) -> Any:
        """Decode a value whose extent was checked when it was stepped over."""
        if field.is_array:
            return self._elements(field.element_type, field.count, field.offset)[0]
        return self._elements(field.value_type, 1, field.offset)[0][0]

    def _elements(self, element: int, count: int, position: int) -> tuple[list[Any], int]:
        buffer = self.buffer
        if element == STRING:
            unpack, strings = _U64.unpack_from, []
            for _ in range(count):
                start = position + 8
                position = start + unpack(buffer, position)[0]
                # A vocabulary may hold pieces that are not UTF-8; llama.cpp reads them as well.
                strings.append(buffer[start:position].decode("utf-8", "replace"))
            return strings, position
        if element == ARRAY:
            arrays = []
            for _ in range(count):
                kind = _U32.unpack_from(buffer, position)[0]
                length = _U64.unpack_from(buffer, position + 4)[0]
                values, position = self._elements(kind, length, position + 12)
                arrays.append(values)
            return arrays, position
        layout = struct.Struct(f"<{count}{SCALARS[element][1]}")
        return list(layout.unpack_from(buffer, position)), position + layout.size


@dataclass(frozen=True)
class GgufFile:
    """A mapped GGUF file.

    `tensors` are under GGUF's own names, shapes row-major `[out, in]`; `offsets` says at which byte
    of the file each begins.
    """

    path: StrPath
    version: int
    alignment: int
    fields: Fields
    tensors: Mapping[str, Tensor]
    offsets: Mapping[str, int]
    size_bytes: int

    @classmethod
    def open(cls, path: StrPath) -> GgufFile:
        """Map a file and check its header, key-values and tensor table; no weight is read.

        Raises:
            NotFound: there is no such file.
            InvalidFormat: not GGUF, or a version or byte order that is not supported.
            CorruptFile: a count, length, offset or type that the file cannot have.
        """
        mapped = Mapped(path)
        cursor = _Cursor(mapped)
        version = _read_version(cursor)
        tensor_count = cursor.u64("the tensor count")
        field_count = cursor.u64("the key-value count")
        # Smallest entries: an empty key-value takes 13 bytes, a tensor 33.
        if 13 * field_count + 33 * tensor_count > cursor.size - cursor.position:
            cursor.fail(
                f"{field_count} key-values and {tensor_count} tensors cannot fit "
                f"into {cursor.size} bytes"
            )
        entries: dict[str, Field] = {}
        for i in range(field_count):
            field = _read_field(cursor, i)
            if field.key in entries:
                cursor.fail(f"key {field.key!r} stands there twice")
            entries[field.key] = field
        fields = Fields(cursor, entries)
        alignment = _alignment(cursor, fields)
        infos = [_read_info(cursor, i) for i in range(tensor_count)]
        data_offset = -(-cursor.position // alignment) * alignment
        _check_extents(cursor, infos, data_offset, alignment)
        tensors: dict[str, Tensor] = {}
        offsets = {info.name: data_offset + info.offset for info in infos}
        for info in infos:
            if info.name in tensors:
                cursor.fail(f"tensor {info.name!r} stands there twice")
            tensors[info.name] = info.tensor(mapped.view, data_offset)
        return cls(mapped.path, version, alignment, fields, tensors, offsets, mapped.size)

    @property
    def architecture(self) -> object:
        """`general.architecture`, or None where it is missing."""
        return self.fields.get("general.architecture")


@dataclass(frozen=True, slots=True)
class _Info:
    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int

    def tensor(self, view: Callable[[int, int], Any], data_offset: int) -> Tensor:
        dtype = BY_GGML_ID[self.type_id]
        load = partial(view, data_offset + self.offset, dtype.nbytes(self.shape))
        return Tensor(self.name, dtype, self.shape, load)


def _read_version(cursor: _Cursor) -> int:
    magic = bytes(cursor.buffer[:4])
    if magic != MAGIC:
        raise InvalidFormat(cursor.path, f"is no GGUF file: it begins with {magic!r}, not 'GGUF'")
    cursor.position = 4
    version = cursor.u32("the version")
    if version in (2, 3):
        return version
    if version == 1:
        raise InvalidFormat(
            cursor.path,
            "is GGUF version 1 (32-bit counts), supported are 2 and 3",
            "convert it again with a current llama.cpp",
        )
    if int.from_bytes(version.to_bytes(4, "little"), "big") in (1, 2, 3):
        raise InvalidFormat(
            cursor.path,
            "is a big-endian GGUF file, supported is little-endian",
            "convert it with gguf-convert-endian FILE little",
        )
    raise InvalidFormat(cursor.path, f"is GGUF version {version}, supported are 2 and 3")


def _read_field(cursor: _Cursor, index: int) -> Field:
    key = cursor.name(f"key {index}")
    what = f"the value of {key!r}"
    value_type = cursor.value_type(f"the type of {key!r}")
    if value_type != ARRAY:
        offset = cursor.position
        cursor.skip_value(value_type, what)
        return Field(key, value_type, offset)
    element, count = cursor.array_head(what)
    offset = cursor.position
    cursor.skip_elements(element, count, what, 1)
    return Field(key, value_type, offset, element, count)


def _alignment(cursor: _Cursor, fields: Fields) -> int:
    value = fields.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(value, int) or not 8 <= value <= 1 << 20 or value & (value - 1):
        cursor.fail(f"general.alignment is {value!r}, not a power of two of at least 8")
    return value


def _read_info(cursor: _Cursor, index: int) -> _Info:
    name = cursor.name(f"the name of tensor {index}")
    count = cursor.u32(f"the number of dimensions of {name!r}")
    if not 1 <= count <= MAX_DIMS:
        cursor.fail(f"tensor {name!r} has {count} dimensions, allowed are 1 to {MAX_DIMS}")
    dims = [cursor.u64(f"a dimension of {name!r}") for _ in range(count)]
    total = 1
    for dim in dims:
        total *= dim
    if not 0 < total < 1 << 62:
        cursor.fail(f"tensor {name!r} has dimensions {dims}, which no tensor can have")
    type_id = cursor.u32(f"the type of {name!r}")
    if type_id not in BY_GGML_ID:
        raise InvalidFormat(
            cursor.path,
            f"tensor {name!r} has type {type_id} ({_foreign_type(type_id)}), which apr cannot read",
            f"known are {', '.join(d.name for d in BY_GGML_ID.values())}",
        )
    offset = cursor.u64(f"the offset of {name!r}")
    return _Info(name, tuple(reversed(dims)), type_id, offset)


def _foreign_type(type_id: int) -> str:
    """The name that ggml has for a type that we do not read."""
    try:
        from gguf import GGMLQuantizationType

        return str(GGMLQuantizationType(type_id).name)
    except (ImportError, ValueError):
        return "unknown to ggml as well"


def _check_extents(cursor: _Cursor, infos: list[_Info], data_offset: int, alignment: int) -> None:
    """Every tensor aligned, inside the file, and overlapping no other."""
    end_before, name_before = 0, ""
    for info in sorted(infos, key=lambda i: i.offset):
        dtype = BY_GGML_ID[info.type_id]
        if info.shape[-1] % dtype.block_size:
            cursor.fail(
                f"tensor {info.name!r} is {dtype.name} with a last dimension of "
                f"{info.shape[-1]}, no multiple of {dtype.block_size}"
            )
        if info.offset % alignment:
            cursor.fail(f"tensor {info.name!r} begins at {info.offset}, no multiple of {alignment}")
        end = info.offset + dtype.nbytes(info.shape)
        if data_offset + end > cursor.size:
            cursor.fail(
                f"tensor {info.name!r} ends at byte {data_offset + end}, the file has {cursor.size}"
            )
        if info.offset < end_before:
            cursor.fail(f"tensors {name_before!r} and {info.name!r} overlap")
        end_before, name_before = end, info.name
