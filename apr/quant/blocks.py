"""Block types that we pack ourselves: APR_Q4, APR_Q8 and ggml's Q8_0, vectorised.

APR_Q4 and APR_Q8 follow the Rust writer to the byte: the quotient is taken with the scale before
it is rounded to f16, and a half rounds away from zero. Q8_0 follows ggml's reference quantizer
(scale max/127, product with the reciprocal, a half rounds away from zero).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from apr.errors import InvalidFormat

Bytes = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

BLOCK = 32


def round_half_away(values: Float32) -> Float32:
    """Whole numbers next to `values`, a half away from zero (C's roundf); overwrites `values`."""
    rounded = np.trunc(values)
    values -= rounded  # exact, below 1; twice it cuts off to 1 from a half on, with its sign
    values += values
    rounded += np.trunc(values, out=values)
    return rounded


def largest(blocks: Float32, name: str) -> Float32:
    """Largest magnitude of each block, `[blocks, 32]` to `[blocks]`.

    Raises:
        InvalidFormat: a value is NaN or infinite; no scale can stand for it.
    """
    # Folding once and reducing the transposed copy lets numpy work on long runs: 4 times as fast
    # as a reduction over 32 neighbours.
    out = np.abs(blocks)
    out = np.maximum(out[:, : BLOCK // 2], out[:, BLOCK // 2 :])
    found: Float32 = np.ascontiguousarray(out.T).max(axis=0)
    require_finite(found, name)
    return found


def require_finite(values: Float32, name: str) -> None:
    """Refuse what no block can stand for.

    Raises:
        InvalidFormat: a value is NaN or infinite.
    """
    if not np.isfinite(values).all():
        raise InvalidFormat(
            name, "cannot hold NaN or infinite values", "see which with apr qa on the source"
        )


def _half_scales(scale: Float32, name: str) -> npt.NDArray[np.float16]:
    with np.errstate(over="ignore"):
        half = scale.astype("<f2")
    if not np.isfinite(half).all():
        raise InvalidFormat(
            name,
            f"cannot hold a block whose scale is {float(scale.max()):g}: its f16 ends at 65504",
            "choose f32 or bf16",
        )
    return half


def encode_apr_q4(values: Float32) -> Bytes:
    """Float32 `[n]` as blocks: f16 scale, 16 bytes of `q + 8`, even index in the low nibble.

    A partial last block is filled up with zero bits, as the Rust writer leaves it.

    Raises:
        InvalidFormat: NaN, infinity, or a magnitude beyond 7 * 65504.
    """
    count = values.size
    blocks = -(-count // BLOCK)
    padded = np.zeros((blocks, BLOCK), dtype=np.float32)
    padded.reshape(-1)[:count] = values
    scale = largest(padded, "APR_Q4") / np.float32(7)
    scale[scale == 0] = 1
    out = np.empty((blocks, 18), dtype=np.uint8)
    out[:, :2] = _half_scales(scale, "APR_Q4").view(np.uint8).reshape(blocks, 2)
    padded /= scale[:, None]
    quotient = round_half_away(padded)
    np.clip(quotient, -8, 7, out=quotient)
    quotient += 8
    nibbles = quotient.astype(np.uint8)
    nibbles.reshape(-1)[count:] = 0
    out[:, 2:] = nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)
    return out.reshape(-1)


def decode_apr_q4(raw: Bytes, out: Float32) -> None:
    """The first values of APR_Q4 blocks into `out`, `[n]`; only the last block may be partial."""
    whole = out.size // BLOCK
    if out.size % BLOCK:
        last = np.empty(BLOCK, dtype=np.float32)
        decode_apr_q4(raw[whole * 18 :], last)
        out[whole * BLOCK :] = last[: out.size % BLOCK]
    blocks = raw[: whole * 18].reshape(-1, 18)
    scale = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
    # Both codes of a byte as the two bytes of a word, the low one first.
    codes = blocks[:, 2:].astype("<u2")
    codes |= codes << 4
    codes &= 0x0F0F
    values = codes.view(np.int8)
    values -= 8
    rows = out[: whole * BLOCK].reshape(-1, BLOCK)
    np.copyto(rows, values)
    with np.errstate(invalid="ignore"):
        rows *= scale


def apr_q8_scale(largest_magnitude: float) -> np.float32:
    """The one scale of an APR_Q8 tensor: max / 127, and 1 for a tensor of zeros."""
    scale = np.float32(largest_magnitude) / np.float32(127)
    return scale if scale > 0 else np.float32(1)


def encode_apr_q8(values: Float32, scale: np.float32) -> Bytes:
    """Float32 `[n]` as int8 quotients, `[n]`; the tensor's scale stands before them."""
    quotient = round_half_away(values / scale)
    np.clip(quotient, -127, 127, out=quotient)
    return quotient.astype(np.int8).view(np.uint8)


def decode_apr_q8(raw: Bytes, scale: np.float32, out: Float32) -> None:
    """Int8 quotients times the tensor's scale into `out`, `[n]`."""
    np.copyto(out, raw.view(np.int8))
    with np.errstate(all="ignore"):
        out *= scale


def encode_q8_0(values: Float32) -> Bytes:
    """Float32 `[n]`, n a multiple of 32, as ggml's Q8_0: an f16 scale and 32 int8.

    Raises:
        InvalidFormat: NaN, infinity, or a magnitude beyond 127 * 65504.
    """
    blocks = values.reshape(-1, BLOCK)
    scale = largest(blocks, "Q8_0") / np.float32(127)
    out = np.empty((len(blocks), 34), dtype=np.uint8)
    out[:, :2] = _half_scales(scale, "Q8_0").view(np.uint8).reshape(-1, 2)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
    # A scale so small that its reciprocal overflows: such a block is zero in f16 anyway.
    inverse[~np.isfinite(inverse)] = 0
    out[:, 2:] = round_half_away(blocks * inverse[:, None]).astype(np.int8).view(np.uint8)
    return out.reshape(-1)
