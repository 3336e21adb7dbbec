"""A safetensors file, mapped: the JSON header with every bound checked, tensors zero-copy.

Facts: the format's own page (huggingface.co/docs/safetensors): u64 length of the header, JSON
header of at most 100 MB, then one buffer that the tensors fill without holes or overlap.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from apr.dtypes import BY_SAFETENSORS, DType
from apr.errors import CorruptFile, InvalidFormat
from apr.mapped import Mapped
from apr.tensors import Tensor

MAX_HEADER = 100_000_000  # bytes; the limit of the format's own reader
_ADVICE = "the file is damaged or was cut short: fetch it again"


@dataclass(frozen=True)
class SafetensorsFile:
    """A mapped safetensors file; `metadata` is the header's `__metadata__`."""

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    size_bytes: int

    @classmethod
    def open(cls, path: Path) -> SafetensorsFile:
        """Map a file and check its header; no weight is read.

        Raises:
            NotFound: there is no such file.
            InvalidFormat: not safetensors, or a type that is not supported.
            CorruptFile: a length or offset that the file cannot have.
        """
        mapped = Mapped(path)
        header, start = _read_header(mapped)
        metadata = header.pop("__metadata__", None) or {}
        if not isinstance(metadata, dict):
            raise CorruptFile(path, "__metadata__ in its header is no object", _ADVICE)
        length = mapped.size - start
        tensors: dict[str, Tensor] = {}
        extents: list[tuple[int, int, str]] = []
        for name, entry in header.items():
            dtype, shape, begin, end = _read_entry(path, name, entry)
            if end > length:
                raise CorruptFile(
                    path,
                    f"tensor {name!r} ends at byte {start + end}, the file has {mapped.size}",
                    _ADVICE,
                )
            if end - begin != dtype.nbytes(shape):
                raise CorruptFile(
                    path,
                    f"tensor {name!r} has {end - begin} bytes, {dtype.name} {list(shape)} takes "
                    f"{dtype.nbytes(shape)}",
                    _ADVICE,
                )
            extents.append((begin, end, name))
            load = partial(mapped.view, start + begin, end - begin)
            tensors[name] = Tensor(name, dtype, shape, load)
        _check_extents(path, extents, length)
        return cls(path, tensors, metadata, mapped.size)


def _read_header(mapped: Mapped) -> tuple[dict[str, Any], int]:
    """The parsed header, and where the tensors' buffer begins."""
    path = mapped.path
    if mapped.size < 10:
        raise CorruptFile(path, f"has {mapped.size} bytes, too few for a safetensors file", _ADVICE)
    length = int.from_bytes(mapped.buffer[:8], "little")
    if mapped.buffer[8:9] != b"{":
        raise InvalidFormat(path, "is no safetensors file: no JSON header at byte 8")
    if length > MAX_HEADER or 8 + length > mapped.size:
        raise CorruptFile(
            path,
            f"states a header of {length} bytes, the file has {mapped.size} "
            f"(and at most {MAX_HEADER} are allowed)",
            _ADVICE,
        )

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) != len(pairs):
            raise CorruptFile(path, "a key of its header stands there twice", _ADVICE)
        return out

    try:
        header = json.loads(mapped.buffer[8 : 8 + length].decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CorruptFile(path, f"its header is no valid JSON ({error})", _ADVICE) from None
    if not isinstance(header, dict):
        raise CorruptFile(path, "its header is no JSON object", _ADVICE)
    return header, 8 + length


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _read_entry(path: Path, name: str, entry: Any) -> tuple[DType, tuple[int, ...], int, int]:
    def bad(what: str) -> NoReturn:
        raise CorruptFile(path, f"tensor {name!r} {what}", _ADVICE)

    if not isinstance(entry, dict):
        bad("is described by no JSON object")
    kind, shape, offsets = (entry.get(k) for k in ("dtype", "shape", "data_offsets"))
    if kind not in BY_SAFETENSORS:
        raise InvalidFormat(
            path,
            f"tensor {name!r} has dtype {kind!r}, which apr cannot read",
            f"known are {', '.join(BY_SAFETENSORS)}",
        )
    if not isinstance(shape, list) or not all(_is_size(dim) for dim in shape):
        bad(f"has shape {shape!r}")
    if not (
        isinstance(offsets, list)
        and len(offsets) == 2
        and all(_is_size(o) for o in offsets)
        and offsets[0] <= offsets[1]
    ):
        bad(f"has data_offsets {offsets!r}")
    return BY_SAFETENSORS[kind], tuple(shape), offsets[0], offsets[1]


def _check_extents(path: Path, extents: list[tuple[int, int, str]], length: int) -> None:
    """The tensors fill the buffer without holes or overlap, as the format demands."""
    position = 0
    for begin, end, name in sorted(extents):
        if begin != position:
            what = "overlaps the one before" if begin < position else "leaves a hole before it"
            raise CorruptFile(path, f"tensor {name!r} {what} (at byte {position})", _ADVICE)
        position = end
    if position != length:
        raise CorruptFile(
            path,
            f"has {length - position} bytes behind its last tensor that belong to none",
            _ADVICE,
        )
