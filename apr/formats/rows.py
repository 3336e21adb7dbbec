"""Tensors whose whole rows or matrices stand elsewhere in another world: moved as stored bytes.

So blocks of quantized types stay as they are, and nothing is decoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from apr.errors import InvalidFormat
from apr.mapped import release
from apr.tensors import Bytes, Tensor


def row_order(rows: int, heads: int, width: int = 0, *, to_gguf: bool) -> npt.NDArray[np.int64]:
    """Where each row of the result comes from, `[rows]`.

    Hugging Face turns the two halves of a head against each other (row i with row i + d/2), GGUF's
    `llama` and `deepseek2` turn neighbours (row 2i with 2i + 1). Where only the last `width` rows
    of each head turn, the others stay.
    """
    index = np.arange(rows, dtype=np.int64).reshape(heads, -1)
    turning = index[:, -width:]  # all for a width of 0
    pairs = turning.reshape((heads, 2, -1) if to_gguf else (heads, -1, 2))
    index[:, -width:] = pairs.swapaxes(1, 2).reshape(heads, -1)
    return index.reshape(-1)


def permuted(tensor: Tensor, heads: int, width: int = 0, *, to_gguf: bool) -> Tensor:
    """The tensor with its rows reordered when it is loaded (a copy of this one tensor).

    Raises:
        InvalidFormat: the rows are not two halves for each head, or the type has no rows.
    """
    rows = tensor.shape[0]
    if heads < 1 or rows % heads or (width or rows // heads) % 2:
        raise InvalidFormat(
            tensor.name, f"has {rows} rows, which are not {heads} heads of an even width"
        )

    def load() -> Bytes:
        stored = tensor.raw()
        order = row_order(rows, heads, width, to_gguf=to_gguf)
        reordered = stored.reshape(rows, -1)[order].reshape(-1)
        release(stored)
        return reordered

    if tensor.dtype.header_bytes or (tensor.dtype.name == "APR_Q4" and tensor.shape[-1] % 32):
        raise InvalidFormat(tensor.name, f"{tensor.dtype.name} rows cannot be reordered as bytes")
    return Tensor(tensor.name, tensor.dtype, tensor.shape, load)


def element(tensor: Tensor, index: int) -> Tensor:
    """One element along the first dimension: a view of the stored bytes."""
    size = tensor.nbytes // tensor.shape[0]

    def load() -> Bytes:
        return tensor.raw()[index * size : (index + 1) * size]

    return Tensor(tensor.name, tensor.dtype, tensor.shape[1:], load)


def stacked(members: Sequence[Tensor]) -> Tensor:
    """Equal tensors after each other along a new first dimension."""
    kinds = {member.dtype.name for member in members}
    if len(kinds) > 1:
        raise InvalidFormat(
            members[0].name,
            f"and its fellow experts are stored as {' and '.join(sorted(kinds))}, but share one "
            "tensor of one type there",
            "say one type for all with --quantize",
        )
    first = members[0]

    def stream() -> Iterator[Bytes]:
        for member in members:
            yield from member.chunks()

    def load() -> Bytes:
        return np.concatenate([member.raw() for member in members])

    return Tensor(first.name, first.dtype, (len(members), *first.shape), load, stream)
