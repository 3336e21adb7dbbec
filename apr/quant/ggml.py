"""ggml's common block types to float32: vectorised, in few passes over contiguous memory.

Every function fills `out` (float32 `[n]`) from whole blocks and gives the very bits that the gguf
package gives. That is no accident of rounding: an f16 scale has 11 significant bits, a sub-scale at
most 8 and a code at most 8, so every product is exact in float32 in whichever order it is taken,
and only the offset's subtraction rounds. Layouts: ggml-common.h; what they mean: ggml-quants.c.

Two habits make the speed. Codes are masked and shifted 8 at a time as uint64, on compacted bytes;
and where ggml keeps codes in another order than values, 16 of them are moved as one number (PIECE).
What is left is mostly the product by rows of 32, of which numpy needs four parts in five to begin
a row. Repeating the scales to full length instead saves nothing: writing them takes as long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
Words = npt.NDArray[np.uint64]

PIECE = np.dtype("c16")  # 16 bytes that numpy moves with one instruction; never computed with


def _layout(size: int, **fields: tuple[int, Any]) -> np.dtype[Any]:
    """A block of `size` bytes; each field is its offset and its type."""
    return np.dtype(
        {
            "names": list(fields),
            "offsets": [offset for offset, _ in fields.values()],
            "formats": [kind for _, kind in fields.values()],
            "itemsize": size,
        }
    )


_HALF, _HALVES = "<f2", ("<f2", (2,))
_LAYOUTS = {
    "Q4_0": _layout(18, scale=(0, _HALF), low=(2, (PIECE, 1))),
    "Q4_1": _layout(20, scales=(0, _HALVES), low=(4, (PIECE, 1))),
    "Q5_0": _layout(22, scale=(0, _HALF), high=(2, ("u1", 4)), low=(6, (PIECE, 1))),
    "Q5_1": _layout(24, scales=(0, _HALVES), high=(4, ("u1", 4)), low=(8, (PIECE, 1))),
    "Q8_0": _layout(34, scale=(0, _HALF), codes=(2, (PIECE, 2))),
    "Q2_K": _layout(84, sub=(0, ("u1", 16)), low=(16, (PIECE, 4)), scales=(80, _HALVES)),
    "Q3_K": _layout(110, high=(0, (PIECE, 2)), low=(32, (PIECE, 4)), four=(96, "<u8"),
                    two=(104, "<u4"), scale=(108, _HALF)),
    "Q4_K": _layout(144, scales=(0, _HALVES), six=(4, "<u8"), four=(12, "<u4"),
                    low=(16, (PIECE, 8))),
    "Q5_K": _layout(176, scales=(0, _HALVES), six=(4, "<u8"), four=(12, "<u4"),
                    high=(16, (PIECE, 2)), low=(48, (PIECE, 8))),
    "Q6_K": _layout(210, low=(0, (PIECE, 8)), high=(128, (PIECE, 4)), sub=(192, ("i1", 16)),
                    scale=(208, _HALF)),
    "IQ4_NL": _layout(18, scale=(0, _HALF), low=(2, (PIECE, 1))),
    "IQ4_XS": _layout(136, scale=(0, _HALF), two=(2, "<u2"), four=(4, "<u4"),
                      low=(8, (PIECE, 8))),
    "MXFP4": _layout(17, scale=(0, "u1"), low=(1, (PIECE, 1))),
}  # fmt: skip

# What the 16 codes stand for in the types whose steps are not even.
_IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_FP4_VALUES = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # twice e2m1


def _bytes(value: int) -> np.uint64:
    """A word of eight equal bytes."""
    return np.uint64(value * 0x0101_0101_0101_0101)


def _shifted(words: Words, places: int, kept: int) -> Words:
    """Every byte's bits moved right (left where negative), and only those of `kept` left."""
    out = words >> np.uint64(places) if places >= 0 else words << np.uint64(-places)
    out &= _bytes(kept)  # also drops what came over from the next byte
    return out


def _words(field: npt.NDArray[Any]) -> Words:
    """A field of pieces, compacted."""
    return np.ascontiguousarray(field).reshape(-1).view(np.uint64)


def _woven(planes: Sequence[Words], width: int) -> Bytes:
    """`width` pieces of the first plane, then of the second, ..., then on; as bytes `[n]`."""
    groups = planes[0].size // (2 * width)
    out = np.empty((groups, len(planes), width), dtype=PIECE)
    for i, plane in enumerate(planes):
        pieces = plane.view(PIECE)
        for j in range(width):
            out[:, i, j] = pieces[j::width]
    return out.reshape(-1).view(np.uint8)


def _nibbles(field: npt.NDArray[Any], width: int) -> Bytes:
    """4-bit codes: the low halves of `width` pieces, then their high ones; bytes `[n]`."""
    words = _words(field)
    return _woven([_shifted(words, 0, 0x0F), _shifted(words, 4, 0x0F)], width)


def _merge(codes: Bytes, high: Bytes) -> None:
    """Add the bits that ggml keeps elsewhere."""
    words = codes.view(np.uint64)
    words |= high.view(np.uint64)


def _signed(codes: Bytes, zero: int) -> npt.NDArray[np.int8]:
    """Codes as numbers around zero."""
    out = codes.view(np.int8)
    out -= np.int8(zero)
    return out


def _scaled(
    codes: npt.NDArray[Any], scales: Float32, out: Float32, offsets: Float32 | None = None
) -> None:
    """`out = codes * scales`, less `offsets` where given; each scale is for the next few codes."""
    np.copyto(out, codes)
    rows = out.reshape(scales.size, -1)
    rows *= scales[:, None]
    if offsets is not None:
        rows -= offsets[:, None]


def _q4_0(blocks: Any, out: Float32) -> None:
    codes = _signed(_nibbles(blocks["low"], 1), 8)
    _scaled(codes, blocks["scale"].astype(np.float32), out)


def _q4_1(blocks: Any, out: Float32) -> None:
    _with_minimum(_nibbles(blocks["low"], 1), blocks, out)


def _with_minimum(codes: Bytes, blocks: Any, out: Float32) -> None:
    scales = blocks["scales"].astype(np.float32)
    np.copyto(out, codes)
    rows = out.reshape(-1, 32)
    rows *= scales[:, :1]
    rows += scales[:, 1:]


@cache
def _bit_table() -> Words:
    """For each byte, its eight bits as eight bytes, each the fifth bit of a code."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return np.ascontiguousarray(bits * np.uint8(0x10)).view(np.uint64).reshape(-1)


def _five_bits(blocks: Any) -> Bytes:
    codes = _nibbles(blocks["low"], 1)
    high = np.take(_bit_table(), np.ascontiguousarray(blocks["high"]).reshape(-1))
    _merge(codes, high.view(np.uint8))
    return codes


def _q5_0(blocks: Any, out: Float32) -> None:
    _scaled(_signed(_five_bits(blocks), 16), blocks["scale"].astype(np.float32), out)


def _q5_1(blocks: Any, out: Float32) -> None:
    _with_minimum(_five_bits(blocks), blocks, out)


def _q8_0(blocks: Any, out: Float32) -> None:
    codes = np.ascontiguousarray(blocks["codes"]).reshape(-1).view(np.int8)
    _scaled(codes, blocks["scale"].astype(np.float32), out)


def _two_bits(field: npt.NDArray[Any]) -> Bytes:
    words = _words(field)
    return _woven([_shifted(words, places, 3) for places in (0, 2, 4, 6)], 2)


def _q2_k(blocks: Any, out: Float32) -> None:
    sub = np.ascontiguousarray(blocks["sub"])
    scales = blocks["scales"].astype(np.float32)
    steps = (sub & 0x0F) * scales[:, :1]
    minima = (sub >> 4) * scales[:, 1:]
    _scaled(_two_bits(blocks["low"]), steps.reshape(-1), out, minima.reshape(-1))


def _q3_k(blocks: Any, out: Float32) -> None:
    codes = _two_bits(blocks["low"])
    mask = _words(blocks["high"])
    _merge(codes, _woven([_shifted(mask, k - 2, 4) for k in range(8)], 2))
    # 16 sub-scales of 6 bits: 8 bytes hold the low nibbles of 0-7 and, above, of 8-15; 4 bytes the
    # high pairs of 0-3, 4-7, 8-11 and 12-15, from the lowest bits up.
    four, two = blocks["four"].copy(), blocks["two"].astype(np.uint64)
    two |= two << np.uint64(30)  # bytes 4-7 now hold, two bits lower, what 4-7 need
    sub = np.empty((len(blocks), 2), dtype=np.uint64)
    sub[:, 0] = _shifted(four, 0, 0x0F) | _shifted(two, -4, 0x30)
    sub[:, 1] = _shifted(four, 4, 0x0F) | _shifted(two, 0, 0x30)
    steps = _signed(sub.reshape(-1).view(np.uint8), 32).reshape(-1, 16)
    scales = steps * blocks["scale"].astype(np.float32)[:, None]
    _scaled(_signed(codes, 4), scales.reshape(-1), out)


def _six_bit_scales(blocks: Any) -> tuple[Float32, Float32]:
    """Scales and minima of the 8 sub-blocks of Q4_K and Q5_K, `[8 n]` each.

    8 bytes hold six bits of scales 0-3, then of minima 0-3, and above them the upper two of 4-7; 4
    bytes hold the lower four of scales 4-7 and, above, of minima 4-7.
    """
    six, four = blocks["six"].copy(), blocks["four"].astype(np.uint64)
    four |= four << np.uint64(28)  # the minima's nibbles, in bytes 4-7
    four &= _bytes(0x0F)
    four |= _shifted(six, 2, 0x30)
    six &= _bytes(0x3F)
    both = np.empty((2, len(blocks), 2), dtype=np.uint32)
    both[:, :, 0] = six.view(np.uint32).reshape(-1, 2).T
    both[:, :, 1] = four.view(np.uint32).reshape(-1, 2).T
    out = both.view(np.uint8).reshape(2, -1).astype(np.float32)
    out *= np.repeat(blocks["scales"].astype(np.float32).T, 8, axis=1)
    return out[0], out[1]


def _q4_k(blocks: Any, out: Float32) -> None:
    scales, minima = _six_bit_scales(blocks)
    _scaled(_nibbles(blocks["low"], 2), scales, out, minima)


def _q5_k(blocks: Any, out: Float32) -> None:
    codes = _nibbles(blocks["low"], 2)
    high = _words(blocks["high"])
    _merge(codes, _woven([_shifted(high, k - 4, 0x10) for k in range(8)], 2))
    scales, minima = _six_bit_scales(blocks)
    _scaled(codes, scales, out, minima)


def _q6_k(blocks: Any, out: Float32) -> None:
    codes = _nibbles(blocks["low"], 4)
    high = _words(blocks["high"])
    _merge(codes, _woven([_shifted(high, places, 0x30) for places in (-4, -2, 0, 2)], 2))
    scales = np.ascontiguousarray(blocks["sub"]).astype(np.float32)
    scales *= blocks["scale"].astype(np.float32)[:, None]
    _scaled(_signed(codes, 32), scales.reshape(-1), out)


@cache
def _pair_table(values: tuple[int, ...]) -> npt.NDArray[np.uint16]:
    """For two codes next to each other (a uint16), the two int8 that they stand for."""
    codes = np.arange(0x1000, dtype=np.uint16).view(np.uint8) & 0x0F
    table: npt.NDArray[np.uint16] = np.array(values, dtype=np.int8)[codes].view(np.uint16)
    return table


def _looked_up(codes: Bytes, values: tuple[int, ...]) -> npt.NDArray[np.int8]:
    return np.take(_pair_table(values), codes.view(np.uint16)).view(np.int8)


def _iq4_nl(blocks: Any, out: Float32) -> None:
    codes = _looked_up(_nibbles(blocks["low"], 1), _IQ4_VALUES)
    _scaled(codes, blocks["scale"].astype(np.float32), out)


def _iq4_xs(blocks: Any, out: Float32) -> None:
    nibble = np.arange(0, 32, 4, dtype=np.uint32)
    pair = np.arange(0, 16, 2, dtype=np.uint32)
    sub = (blocks["four"][:, None] >> nibble) & np.uint32(0x0F)
    sub |= ((blocks["two"].astype(np.uint32)[:, None] >> pair) & np.uint32(3)) << np.uint32(4)
    scales = sub.astype(np.float32)
    scales -= 32
    scales *= blocks["scale"].astype(np.float32)[:, None]
    codes = _looked_up(_nibbles(blocks["low"], 1), _IQ4_VALUES)
    _scaled(codes, scales.reshape(-1), out)


@cache
def _half_powers() -> Float32:
    """Half of what each e8m0 byte stands for, 2^(e - 128), down into the subnormal numbers."""
    exponents = np.arange(256, dtype=np.uint32)
    normal = (np.maximum(exponents, 1) - 1) << 23
    return np.where(exponents < 2, 0x0020_0000 << exponents, normal).astype("<u4").view(np.float32)


def _mxfp4(blocks: Any, out: Float32) -> None:
    codes = _looked_up(_nibbles(blocks["low"], 1), _FP4_VALUES)
    _scaled(codes, np.take(_half_powers(), blocks["scale"]), out)


_FILL: dict[str, Callable[[Any, Float32], None]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
    "MXFP4": _mxfp4,
}
DECODABLE = frozenset(_FILL)


def fill(name: str, raw: Bytes, out: Float32) -> None:
    """Decode whole blocks `raw` (bytes `[n]`, contiguous) of a type of DECODABLE into `out`.

    What a scale of infinity or NaN makes is stored like any other value, without a warning.
    """
    with np.errstate(all="ignore"):
        _FILL[name](raw.view(_LAYOUTS[name]), out)
