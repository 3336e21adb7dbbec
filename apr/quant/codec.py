"""`decode` and `encode` for every storage type, in chunks.

Our own code where speed or the Rust reader's bytes matter (plain.py, blocks.py, and ggml.py for
reading); ggml's other block types through the `gguf` package, whose numpy code llama.cpp's project
tests against the C one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from apr.dtypes import DType
from apr.errors import FeatureUnavailable, InvalidFormat
from apr.quant import blocks, ggml, plain

if TYPE_CHECKING:
    from types import ModuleType

Bytes = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

# Elements in flight. A multiple of every block size, and small enough (128 KiB of float32) that a
# chunk and its temporaries stay in a core's own cache: rounding is 3 times as fast as with 2^18.
CHUNK = 1 << 15
# Elements that are decoded at once: 512 KiB of float32 still fit into the second cache, and the
# cost of calling numpy some twenty times a piece is spread over more (Q4_K: 0.41 GB/s stored with
# 2^15, 0.59 with 2^17).
PIECE = 1 << 17
GGUF_PIECE = 1 << 15  # the same for the gguf package's code, which makes more temporaries

_GGUF_ENCODABLE = frozenset({"Q4_0", "Q4_1", "Q5_0", "Q5_1", "TQ1_0", "TQ2_0", "MXFP4"})
_OWN_BLOCKS = frozenset({"APR_Q4", "APR_Q8", "Q8_0"})


def encodable(dtype: DType) -> bool:
    """Whether `encode` can write the type. The others (Q4_K, Q6_K, ...) are passed through only."""
    return dtype.name in plain.ENCODABLE | _OWN_BLOCKS | _GGUF_ENCODABLE


def require_encodable(dtype: DType) -> None:
    """Refuse a type that can only be passed through.

    Raises:
        FeatureUnavailable: naming the types that can be written.
    """
    if not encodable(dtype):
        known = ", ".join(sorted(plain.ENCODABLE | _OWN_BLOCKS | _GGUF_ENCODABLE))
        raise FeatureUnavailable(
            dtype.name, "can be read and passed on, but not made from floats", f"choose of {known}"
        )


def iter_float32(
    dtype: DType, raw: Bytes, shape: tuple[int, ...], chunk: int = CHUNK
) -> Iterator[Float32]:
    """The elements in storage order as float32 chunks `[<= chunk]`.

    A chunk of an F32 tensor is a view of `raw`; others are parts of a piece that is no longer held
    here once it was given out, so whoever asks may keep or overwrite them.

    Raises:
        InvalidFormat: `raw` is not as long as a tensor of this type and shape.
        FeatureUnavailable: the installed gguf package does not know the type.
    """
    count = _count(dtype, raw, shape)
    if chunk % dtype.block_size:
        raise InvalidFormat(dtype.name, f"a chunk of {chunk} is no multiple of its block")
    fill = _filler(dtype, raw)
    step = chunk * max(1, PIECE // chunk)
    for start in range(0, count, step):
        stored = _slice(dtype, raw, start, step)
        if dtype.name == "F32":
            piece: Float32 = stored.view("<f4")
        else:
            piece = np.empty(min(step, count - start), dtype=np.float32)
            fill(stored, piece)
        for at in range(0, piece.size, chunk):
            yield piece[at : at + chunk]


def decode(dtype: DType, raw: Bytes, shape: tuple[int, ...]) -> Float32:
    """A whole tensor as float32, in its shape. F32 is a view of `raw`, no copy.

    Raises:
        InvalidFormat: `raw` is not as long as a tensor of this type and shape.
        FeatureUnavailable: the installed gguf package does not know the type.
    """
    count = _count(dtype, raw, shape)
    if dtype.name == "F32":
        return raw.view("<f4").reshape(shape)
    out = np.empty(shape, dtype=np.float32)
    flat, fill = out.reshape(-1), _filler(dtype, raw)
    for start in range(0, count, PIECE):
        fill(_slice(dtype, raw, start, PIECE), flat[start : start + PIECE])
    return out


def _count(dtype: DType, raw: Bytes, shape: tuple[int, ...]) -> int:
    """Elements of a tensor, its bytes being as many as they must."""
    expected = dtype.nbytes(shape)
    if raw.size != expected:
        raise InvalidFormat(
            dtype.name, f"has {raw.size} bytes, a tensor of shape {list(shape)} takes {expected}"
        )
    return prod(shape)


def _slice(dtype: DType, raw: Bytes, start: int, count: int) -> Bytes:
    """The blocks of `count` elements from `start` on, or of those that are left."""
    blocks = slice(start // dtype.block_size, -(-(start + count) // dtype.block_size))
    body = raw[dtype.header_bytes :]
    return body[blocks.start * dtype.block_bytes : blocks.stop * dtype.block_bytes]


def encode(dtype: DType, values: npt.NDArray[Any]) -> Bytes:
    """A float array as the stored bytes of a type, `[nbytes]`.

    Raises:
        InvalidFormat: the shape has no whole number of blocks, or a value is beyond the type.
        FeatureUnavailable: the type can only be passed through.
    """
    require_encodable(dtype)
    out = np.empty(dtype.nbytes(values.shape), dtype=np.uint8)
    flat = np.ascontiguousarray(values).reshape(-1)
    largest = 0.0
    if dtype.name == "APR_Q8":
        largest = max((largest_of(c) for c in _split(flat)), default=0.0)
    done = 0
    for piece in encode_chunks(dtype, _split(flat), largest):
        out[done : done + piece.size] = piece
        done += piece.size
    return out


def _split(flat: npt.NDArray[Any]) -> Iterator[Float32]:
    for start in range(0, flat.size, CHUNK):
        yield flat[start : start + CHUNK].astype(np.float32, copy=False)


def largest_of(chunk: Float32) -> float:
    """Largest magnitude of a chunk.

    Raises:
        InvalidFormat: NaN or infinity.
    """
    found = np.abs(chunk).max(initial=0.0)
    blocks.require_finite(found, "APR_Q8")
    return float(found)


def encode_chunks(dtype: DType, chunks: Iterator[Float32], largest: float) -> Iterator[Bytes]:
    """Encode chunks whose sizes are multiples of the block, except the last.

    Args:
        dtype: the type to write.
        chunks: the tensor's elements in storage order.
        largest: the tensor's largest magnitude; only APR_Q8 looks at it.

    Raises:
        InvalidFormat: a value is beyond the type.
    """
    scale = blocks.apr_q8_scale(largest)
    if dtype.name == "APR_Q8":
        yield np.array([scale], dtype="<f4").view(np.uint8)
    encode_chunk = _encoder(dtype, scale)
    for chunk in chunks:
        yield encode_chunk(np.ascontiguousarray(chunk))


def _filler(dtype: DType, raw: Bytes) -> Callable[[Bytes, Float32], None]:
    """What turns blocks of a tensor into `out`, float32 `[n]`."""
    name = dtype.name
    if name in plain.DECODABLE:
        return lambda piece, out: plain.decode_plain(name, piece, out)
    if name == "APR_Q4":
        return blocks.decode_apr_q4
    if name == "APR_Q8":
        scale = raw[:4].copy().view("<f4")[0]
        return lambda piece, out: blocks.decode_apr_q8(piece, scale, out)
    if name in ggml.DECODABLE:
        return lambda piece, out: ggml.fill(name, np.ascontiguousarray(piece), out)
    quants, kind = _gguf(dtype)

    def fill(piece: Bytes, out: Float32) -> None:
        # A few hundred blocks as one row: its temporaries are many times the result.
        step = GGUF_PIECE // dtype.block_size
        rows, values = piece.reshape(-1, dtype.block_bytes), out.reshape(-1, dtype.block_size)
        with np.errstate(all="ignore"):  # scales of infinity or NaN are values like others
            for start in range(0, len(rows), step):
                row = np.ascontiguousarray(rows[start : start + step]).reshape(1, -1)
                values[start : start + step] = quants.dequantize(row, kind).reshape(
                    -1, dtype.block_size
                )

    return fill


def _encoder(dtype: DType, scale: np.float32) -> Callable[[Float32], Bytes]:
    name = dtype.name
    if name in plain.ENCODABLE:
        return lambda values: plain.encode_plain(name, values)
    if name == "APR_Q4":
        return blocks.encode_apr_q4
    if name == "APR_Q8":
        return lambda values: blocks.encode_apr_q8(values, scale)
    if name == "Q8_0":
        return blocks.encode_q8_0
    quants, kind = _gguf(dtype)

    def encode_ggml(values: Float32) -> Bytes:
        blocks.require_finite(values, name)  # gguf would pack NaN and infinity as garbage
        out: Bytes = quants.quantize(values.reshape(1, -1), kind)
        return out.reshape(-1)

    return encode_ggml


def _gguf(dtype: DType) -> tuple[ModuleType, Any]:
    """The codecs of the gguf package, and its name for the type."""
    import gguf
    from gguf import quants

    kind = getattr(gguf.GGMLQuantizationType, dtype.name, None)
    if kind is None:
        raise FeatureUnavailable(
            dtype.name, "is not known to the installed gguf package", "pip install -U gguf"
        )
    return quants, kind
