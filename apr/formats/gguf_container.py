"""The bare GGUF format, version 3, streaming: key-values and tensors, whatever they mean.

Own writer, because gguf's drops empty lists (a tokenizer without merges is legal) and takes seconds
for a large vocabulary. Source: ggml's `docs/gguf.md`; value types: `gguf_reader`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, BinaryIO

from apr.errors import AprError
from apr.formats.gguf_reader import ARRAY, DEFAULT_ALIGNMENT, SCALARS, STRING
from apr.formats.streaming import Progress, Sources, write_tensor
from apr.tensors import Tensor

_TYPE_IDS = {name: type_id for type_id, (name, _) in SCALARS.items()}


def write_container(
    file: BinaryIO,
    fields: Mapping[str, Any],
    tensors: Sequence[Tensor],
    sources: Sources | None = None,
    progress: Progress | None = None,
) -> None:
    """The bare format: header, key-values, tensor table, tensors. Empty values are written too."""
    head = bytearray(struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(fields)))
    for key, value in fields.items():
        head += _string(key)
        head += _value(key, value)
    offset = 0
    for tensor in tensors:
        assert tensor.dtype.ggml_id is not None  # chosen_dtype gives no other
        head += _string(tensor.name)
        head += struct.pack("<I", len(tensor.shape))
        head += struct.pack(f"<{len(tensor.shape)}Q", *reversed(tensor.shape))
        head += struct.pack("<IQ", tensor.dtype.ggml_id, offset)
        offset += _aligned(tensor.nbytes)
    head += bytes(_aligned(len(head)) - len(head))
    file.write(head)
    for tensor in tensors:
        write_tensor(file, tensor, sources or Sources(), progress)
        file.write(bytes(_aligned(tensor.nbytes) - tensor.nbytes))


def _aligned(count: int) -> int:
    return -(-count // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def _string(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(data)) + data


def _value(key: str, value: Any) -> bytes:
    """A value with its type in front: numbers are u32, i32 or f32 unless they do not fit."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    if isinstance(value, bytes):  # an array of bytes
        return struct.pack("<IIQ", ARRAY, _TYPE_IDS["u8"], len(value)) + value
    if isinstance(value, (list, tuple)):
        return struct.pack("<I", ARRAY) + _array(key, value)
    kind = _scalar_type(key, [value])
    return struct.pack("<I" + SCALARS[kind][1], kind, value)


def _array(key: str, values: Sequence[Any]) -> bytes:
    if not values or isinstance(values[0], str):
        return struct.pack("<IQ", STRING, len(values)) + b"".join(map(_string, values))
    kind = _scalar_type(key, values, signed=True)
    layout = f"<IQ{len(values)}{SCALARS[kind][1]}"
    return struct.pack(layout, kind, len(values), *values)


def _scalar_type(key: str, values: Iterable[Any], *, signed: bool = False) -> int:
    values = list(values)
    if all(isinstance(v, bool) for v in values):
        return _TYPE_IDS["bool"]
    if all(isinstance(v, int) and not isinstance(v, bool) for v in values):
        low, high = min(values), max(values)
        if low >= 0 and high < 1 << 32 and not signed:
            return _TYPE_IDS["u32"]
        if low >= -(1 << 31) and high < 1 << 31:
            return _TYPE_IDS["i32"]
        return _TYPE_IDS["i64" if low < 0 else "u64"]
    if all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        return _TYPE_IDS["f32"]
    kinds = ", ".join(sorted({type(v).__name__ for v in values}))
    raise AprError(key, f"GGUF has no type for a value of {kinds}")
