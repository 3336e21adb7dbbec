"""`decode` and `encode` for every storage type, in chunks.

Our own code where speed or the Rust reader's bytes matter (plain.py, blocks.py); ggml's other block
types through the `gguf` package, whose numpy code llama.cpp's project tests against the C one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from apr.dtypes import DType
from apr.errors import FeatureUnavailable, InvalidFormat
from apr.quant import blocks, plain

if TYPE_CHECKING:
    from types import ModuleType

Bytes = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

# Elements in flight. A multiple of every block size, and small enough (128 KiB of float32) that a
# chunk and its temporaries stay in a core's own cache: rounding is 3 times as fast as with 2^18.
CHUNK = 1 << 15

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

    A chunk of an F32 tensor is a view of `raw`.

    Raises:
        InvalidFormat: `raw` is not as long as a tensor of this type and shape.
        FeatureUnavailable: the installed gguf package does not know the type.
    """
    expected = dtype.nbytes(shape)
    if raw.size != expected:
        raise InvalidFormat(
            dtype.name, f"has {raw.size} bytes, a tensor of shape {list(shape)} takes {expected}"
        )
    if chunk % dtype.block_size:
        raise InvalidFormat(dtype.name, f"a chunk of {chunk} is no multiple of its block")
    count = int(np.prod(shape, dtype=object)) if shape else 1
    decode_chunk = _decoder(dtype, raw)
    body = raw[dtype.header_bytes :]
    per_block, per_chunk = dtype.block_bytes, chunk // dtype.block_size
    for start in range(0, -(-count // dtype.block_size), per_chunk):
        piece = body[start * per_block : (start + per_chunk) * per_block]
        yield decode_chunk(piece, min(chunk, count - start * dtype.block_size))


def decode(dtype: DType, raw: Bytes, shape: tuple[int, ...]) -> Float32:
    """A whole tensor as float32, in its shape. F32 is a view of `raw`, no copy.

    Raises:
        InvalidFormat: `raw` is not as long as a tensor of this type and shape.
        FeatureUnavailable: the installed gguf package does not know the type.
    """
    if dtype.name == "F32" and raw.size == dtype.nbytes(shape):
        return raw.view("<f4").reshape(shape)
    out = np.empty(shape, dtype=np.float32)
    flat, done = out.reshape(-1), 0
    for chunk in iter_float32(dtype, raw, shape):
        flat[done : done + chunk.size] = chunk
        done += chunk.size
    return out


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


def _decoder(dtype: DType, raw: Bytes) -> Callable[[Bytes, int], Float32]:
    name = dtype.name
    if name in plain.DECODABLE:
        return lambda piece, count: plain.decode_plain(name, piece)
    if name == "APR_Q4":
        return blocks.decode_apr_q4
    if name == "APR_Q8":
        scale = raw[:4].copy().view("<f4")[0]
        return lambda piece, count: blocks.decode_apr_q8(piece, scale)
    if name == "Q8_0":
        return lambda piece, count: blocks.decode_q8_0(piece)
    quants, kind = _gguf(dtype)

    def decode_ggml(piece: Bytes, count: int) -> Float32:
        # One long row: gguf then works on the whole chunk at once instead of 16 rows at a time.
        out: Float32 = quants.dequantize(np.ascontiguousarray(piece).reshape(1, -1), kind)
        return out.reshape(-1)

    return decode_ggml


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
