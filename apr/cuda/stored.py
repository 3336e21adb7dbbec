"""From a weight's stored bytes to the planes that the kernels read, on the device, rows at a time.

Purpose: the one place that knows how each block type is laid out in a file and on the GPU. Promise:
packing loses nothing (scales keep their stored type, codes their bits), and takes the file's bytes
but for Q4_K (+2.8 %), Q5_K (+2.3 %), TQ1_0 (kept as TQ2_0, +22 %) and rows that are filled up to
128 elements. Layouts of the files: ggml-common.h; what they mean: ggml-quants.c.

On the GPU a row is cut into spans of 128 elements. Word j of the 16 of a span holds, in its i-th
bits, the code of element 16 i + j: so all threads do the same thing at step i, read weights in 16
bytes and activations side by side, and no code is ever moved between them. Scales lie apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apr.dtypes import DType
from apr.tensors import Tensor as Stored

_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_CHUNK = 1 << 24  # elements that are unpacked at once


@dataclass(frozen=True)
class Kind:
    """How the kernels read a block type: arguments that they are compiled for.

    `low`: bits of the main code (8, 4 or 2); `high`: further bits in a plane of their own; `zero`:
    subtracted from a code; `scaling`: see `products.py`; `per`: scales of a span; `span`: elements,
    `words` of them beside each other.
    """

    low: int
    high: int
    zero: int
    scaling: int
    per: int
    span: int = 128
    words: int = 16
    # Elements of a plane's row, a span: of the low codes, the high ones, scales, minima, supers.
    widths: tuple[float, float, float, float, float] = (16, 0, 4, 0, 0)
    types: tuple[torch.dtype | None, ...] = (torch.int32, None, torch.float16, None, None)


_I32, _I16, _I8, _U8, _F16 = torch.int32, torch.int16, torch.int8, torch.uint8, torch.float16
KINDS: dict[str, Kind] = {
    "Q8_0": Kind(8, 0, 0, 0, 1, 32, 32, (32, 0, 1, 0, 0), (_I8, None, _F16, None, None)),
    "Q4_0": Kind(4, 0, 8, 0, 4),
    "Q4_1": Kind(4, 0, 0, 1, 4, widths=(16, 0, 4, 4, 0), types=(_I32, None, _F16, _F16, None)),
    "Q5_0": Kind(4, 1, 16, 0, 4, widths=(16, 16, 4, 0, 0), types=(_I32, _U8, _F16, None, None)),
    "Q5_1": Kind(4, 1, 0, 1, 4, widths=(16, 16, 4, 4, 0), types=(_I32, _U8, _F16, _F16, None)),
    "Q4_K": Kind(4, 0, 0, 2, 4, widths=(16, 0, 4, 4, 1), types=(_I32, None, _U8, _U8, _F16)),
    "Q5_K": Kind(4, 1, 0, 2, 4, widths=(16, 16, 4, 4, 1), types=(_I32, _U8, _U8, _U8, _F16)),
    "Q6_K": Kind(4, 2, 32, 3, 8, widths=(16, 16, 8, 0, 0.5), types=(_I32, _I16, _I8, None, _F16)),
    "MXFP4": Kind(4, 0, 0, 4, 4, types=(_I32, None, _U8, None, None)),
    "TQ2_0": Kind(2, 0, 1, 5, 0, widths=(16, 0, 0, 0, 0.5), types=(_I16, None, None, None, _F16)),
}
KINDS["TQ1_0"] = KINDS["TQ2_0"]


@dataclass
class Planes:
    """A weight on the device, `[rows, columns]`: a plain matrix, or the planes of a block type."""

    rows: int
    columns: int
    kind: Kind | None
    parts: tuple[Tensor | None, ...]

    @property
    def spans(self) -> int:
        """Spans of a row."""
        return 0 if self.kind is None else -(-self.columns // self.kind.span)

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return sum(p.numel() * p.element_size() for p in self.parts if p is not None)

    @property
    def matrix(self) -> Tensor:
        """The matrix of a plain type."""
        assert self.kind is None and self.parts[0] is not None
        return self.parts[0]

    def cut(self, first: int, rows: int) -> Planes:
        """Some of its rows, in the same memory."""
        parts = tuple(None if p is None else p[first : first + rows] for p in self.parts)
        return Planes(rows, self.columns, self.kind, parts)


def known(dtype: DType, columns: int) -> bool:
    """Whether there are kernels for matrices of this type with rows of this length."""
    return dtype.name in _FLOATS or (dtype.name in KINDS and columns % dtype.block_size == 0)


def nbytes(dtype: DType, rows: int, columns: int) -> int:
    """Bytes that a matrix takes on the device."""
    if dtype.name in _FLOATS:
        return rows * columns * _FLOATS[dtype.name].itemsize
    kind = KINDS[dtype.name]
    spans = -(-columns // kind.span)
    return sum(
        rows * int(spans * width) * t.itemsize
        for width, t in zip(kind.widths, kind.types, strict=True)
        if t is not None
    )


def empty(dtype: DType, rows: int, columns: int, device: torch.device) -> Planes:
    """Room for a matrix."""
    if dtype.name in _FLOATS:
        plain = torch.empty((rows, columns), dtype=_FLOATS[dtype.name], device=device)
        return Planes(rows, columns, None, (plain,))
    kind = KINDS[dtype.name]
    spans = -(-columns // kind.span)
    parts = tuple(
        None if t is None else torch.empty((rows, int(spans * width)), dtype=t, device=device)
        for width, t in zip(kind.widths, kind.types, strict=True)
    )
    return Planes(rows, columns, kind, parts)


def fill(target: Planes, tensor: Stored, first: int) -> None:
    """Copy rows of a stored tensor, from the `first` on, into their room, a piece at a time."""
    row = tensor.nbytes // tensor.shape[0]
    at_once = max(1, _CHUNK // target.columns)
    raw = tensor.raw()
    for start in range(0, target.rows, at_once):
        count = min(at_once, target.rows - start)
        piece = raw[(first + start) * row : (first + start + count) * row]
        place = target.cut(start, count)
        device = target.parts[0].device  # type: ignore[union-attr]
        found = torch.from_numpy(np.array(piece)).to(device)  # a copy: mapped pages are read-only
        if target.kind is None:
            place.matrix.copy_(found.view(place.matrix.dtype).view(count, target.columns))
            continue
        _pack(tensor.dtype, found.view(count, -1, tensor.dtype.block_bytes), place)


def _pack(dtype: DType, blocks: Tensor, place: Planes) -> None:
    """Blocks `[rows, blocks, bytes]` into planes."""
    assert place.kind is not None
    kind, spans = place.kind, place.spans
    codes, scales, minima, supers = _READERS[dtype.name](blocks)
    rows = codes.shape[0]
    missing = spans * kind.span - codes.shape[1]
    if missing:  # scales of zero make nothing of what is beyond the row
        codes = torch.nn.functional.pad(codes, (0, missing))
    low, high, *others = place.parts
    assert low is not None
    if kind.low == 8:
        low.copy_(codes)
    else:
        steps = codes.view(rows, spans, 8, 16)
        low.copy_(_joined(steps, kind.low, 0))
        if high is not None:
            high.copy_(_joined(steps >> 4, kind.high, 0))
    for part, found in zip(others, (scales, minima, supers), strict=True):
        if part is not None:
            assert found is not None
            part[:, : found.shape[1]].copy_(found)
            part[:, found.shape[1] :].zero_()


def _joined(steps: Tensor, bits: int, start: int) -> Tensor:
    """The i-th code `[rows, spans, 8, 16]` in the i-th `bits` of each word, `[rows, words]`."""
    mask, out = (1 << bits) - 1, None
    for i in range(8):
        part = (steps[:, :, i].to(torch.int64) & mask) << (bits * i + start)
        out = part if out is None else out | part
    assert out is not None
    words = out.flatten(1)
    kind = {4: torch.int32, 2: torch.int16, 1: torch.uint8}[bits]
    # Wrapped by hand: what a cast does with numbers out of range is nobody's promise.
    top = 1 << (8 * kind.itemsize)
    return (
        words.to(kind) if bits == 1 else torch.where(words >= top // 2, words - top, words).to(kind)
    )


_Read = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]


def _half(blocks: Tensor, start: int, count: int = 1) -> Tensor:
    """float16 numbers of each block, `[rows, blocks * count]`."""
    found = blocks[..., start : start + 2 * count].contiguous().view(torch.float16)
    return found.flatten(1)


def _nibbles(found: Tensor, width: int) -> Tensor:
    """Low halves of each `width` bytes, then their high ones; `[..., 2 * bytes]`."""
    groups = found.reshape(*found.shape[:-1], -1, width)
    return torch.stack((groups & 15, groups >> 4), dim=-2).flatten(-3)


def _bits(found: Tensor, bits: int, shifts: range) -> Tensor:
    """`[..., shifts, bytes]`: the bits of every byte from each shift on."""
    mask = (1 << bits) - 1
    return torch.stack([(found >> shift) & mask for shift in shifts], dim=-2)


def _halves(found: Tensor) -> Tensor:
    """64 bytes of each block as `[..., 2, 32]`."""
    return found.reshape(*found.shape[:-1], 2, 32)


def _fifth(blocks: Tensor, start: int) -> Tensor:
    """32 single bits of each block as 16 or 0."""
    found = _bits(blocks[..., start : start + 4], 1, range(8))
    return found.transpose(-1, -2).flatten(-2) << 4


def _simple(low: int, *, high: int | None, minimum: bool) -> Callable[[Tensor], _Read]:
    def read(blocks: Tensor) -> _Read:
        codes = _nibbles(blocks[..., low : low + 16], 16)
        if high is not None:
            codes = codes | _fifth(blocks, high)
        scales = _half(blocks, 0, 2 if minimum else 1)
        if minimum:
            return codes.flatten(1), scales[:, 0::2], scales[:, 1::2], None
        return codes.flatten(1), scales, None, None

    return read


def _eight(blocks: Tensor) -> _Read:
    return blocks[..., 2:].contiguous().view(torch.int8).flatten(1), _half(blocks, 0), None, None


def _six_bit(found: Tensor) -> tuple[Tensor, Tensor]:
    """8 scales and 8 minima out of 12 bytes."""
    first, second, third = found[..., 0:4], found[..., 4:8], found[..., 8:12]
    scales = torch.cat((first & 63, (third & 15) | ((first >> 6) << 4)), dim=-1)
    minima = torch.cat((second & 63, (third >> 4) | ((second >> 6) << 4)), dim=-1)
    return scales.flatten(1), minima.flatten(1)


def _four_k(blocks: Tensor) -> _Read:
    return (
        _nibbles(blocks[..., 16:144], 32).flatten(1),
        *_six_bit(blocks[..., 4:16]),
        _half(blocks, 0, 2),
    )


def _five_k(blocks: Tensor) -> _Read:
    codes = _nibbles(blocks[..., 48:176], 32)
    codes = codes | (_bits(blocks[..., 16:48], 1, range(8)).flatten(-2) << 4)
    return codes.flatten(1), *_six_bit(blocks[..., 4:16]), _half(blocks, 0, 2)


def _six_k(blocks: Tensor) -> _Read:
    low = _nibbles(blocks[..., 0:128], 64)
    high = _bits(_halves(blocks[..., 128:192]), 2, range(0, 8, 2)).flatten(-3)
    scales = blocks[..., 192:208].contiguous().view(torch.int8).flatten(1)
    return (low | (high << 4)).flatten(1), scales, None, _half(blocks, 208)


def _mxfp4(blocks: Tensor) -> _Read:
    return _nibbles(blocks[..., 1:17], 16).flatten(1), blocks[..., 0].contiguous(), None, None


def _two(blocks: Tensor) -> _Read:
    codes = _bits(_halves(blocks[..., 0:64]), 2, range(0, 8, 2))
    return codes.flatten(1), None, None, _half(blocks, 64)


def _ternary(blocks: Tensor) -> _Read:
    """Five digits of base three in a byte, from the highest: byte = digits * 256 / 243, up."""

    def digits(found: Tensor, count: int) -> Tensor:
        parts = [((found.to(torch.int32) * 3**n & 255) * 3 >> 8).to(_U8) for n in range(count)]
        return torch.stack(parts, dim=-2).flatten(-2)

    codes = torch.cat(
        (
            digits(blocks[..., 0:32], 5),
            digits(blocks[..., 32:48], 5),
            digits(blocks[..., 48:52], 4),
        ),
        dim=-1,
    )
    return codes.flatten(1), None, None, _half(blocks, 52)


_READERS: dict[str, Callable[[Tensor], Any]] = {
    "Q8_0": _eight,
    "Q4_0": _simple(2, high=None, minimum=False),
    "Q4_1": _simple(4, high=None, minimum=True),
    "Q5_0": _simple(6, high=2, minimum=False),
    "Q5_1": _simple(8, high=4, minimum=True),
    "Q4_K": _four_k,
    "Q5_K": _five_k,
    "Q6_K": _six_k,
    "MXFP4": _mxfp4,
    "TQ2_0": _two,
    "TQ1_0": _ternary,
}
