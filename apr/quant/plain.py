"""Types whose elements stand for themselves: floats of any width, and integers.

Rounding is to nearest, ties to even, as the processors and torch do it. A finite value that would
become infinite in the narrower type is refused: it would silently poison every later product.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from apr.errors import InvalidFormat

Bytes = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

_NUMPY: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "F64": np.dtype("<f8"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
}
DECODABLE = frozenset(_NUMPY) | {"BF16"}
ENCODABLE = frozenset({"F32", "F16", "BF16", "F64"})


def decode_plain(name: str, raw: Bytes, out: Float32) -> None:
    """The elements as float32 into `out`, `[n]`."""
    if name == "BF16":
        bits = out.view(np.uint32)
        np.copyto(bits, raw.view("<u2"))
        bits <<= 16
        return
    with np.errstate(over="ignore", invalid="ignore"):
        np.copyto(out, raw.view(_NUMPY[name]), casting="same_kind")


def encode_plain(name: str, values: Float32) -> Bytes:
    """Float32 `[n]` as the bytes of a plain float type.

    Raises:
        InvalidFormat: a finite value is beyond the type's range.
    """
    if name == "BF16":
        return _encode_bf16(values)
    with np.errstate(over="ignore"):
        narrow = values.astype(_NUMPY[name], copy=False)
    if name == "F16" and not np.isfinite(narrow).all():
        _refuse_overflow(name, values, np.isinf(narrow))
    return narrow.view(np.uint8)


def _encode_bf16(values: Float32) -> Bytes:
    bits = values.view(np.uint32)
    # Adding half of the last kept place, less one unless that place is odd, and cutting off is
    # round to nearest even. It may carry into the exponent, which is what rounding up means there.
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    out = rounded.astype("<u2")
    special = (out & 0x7F80) == 0x7F80
    # A NaN's payload may carry as far as the sign, so `out` alone does not show every one.
    nan = np.isnan(values)
    if nan.any():
        out[nan] = ((bits[nan] >> 16) | 0x40).astype("<u2")
        special &= ~nan
    if special.any():
        _refuse_overflow("BF16", values, special)
    return out.view(np.uint8)


def _refuse_overflow(name: str, values: Float32, infinite: npt.NDArray[np.bool_]) -> None:
    lost = infinite & np.isfinite(values)
    if lost.any():
        worst = float(np.abs(values[lost]).max())
        raise InvalidFormat(
            name, f"cannot hold the value {worst:g}", "choose a type with a wider range, e.g. bf16"
        )
