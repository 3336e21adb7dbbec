"""Rows of q and k between Hugging Face's order and GGUF's, on stored bytes.

Hugging Face turns the two halves of a head against each other (row i with row i + d/2), GGUF's
`llama` turns neighbours (row 2i with 2i + 1). Reordering whole rows is enough, and since blocks of
quantized types run along a row, it works on their bytes without decoding.
Source: llama.cpp's convert_hf_to_gguf.py (`LlamaModel.permute`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from apr.errors import InvalidFormat
from apr.mapped import release
from apr.tensors import Bytes, Tensor


def row_order(rows: int, heads: int, *, to_gguf: bool) -> npt.NDArray[np.int64]:
    """Where each row of the result comes from, `[rows]`."""
    index = np.arange(rows, dtype=np.int64)
    if to_gguf:
        return index.reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)
    return index.reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)


def permuted(tensor: Tensor, heads: int, *, to_gguf: bool) -> Tensor:
    """The tensor with its rows reordered when it is loaded (a copy of this one tensor).

    Raises:
        InvalidFormat: the rows are not two halves for each head, or the type has no rows.
    """
    rows = tensor.shape[0]
    if heads < 1 or rows % (2 * heads):
        raise InvalidFormat(
            tensor.name, f"has {rows} rows, which are not {heads} heads of an even width"
        )

    def load() -> Bytes:
        stored = tensor.raw()
        order = row_order(rows, heads, to_gguf=to_gguf)
        reordered = stored.reshape(rows, -1)[order].reshape(-1)
        release(stored)
        return reordered

    if tensor.dtype.header_bytes or (tensor.dtype.name == "APR_Q4" and tensor.shape[-1] % 32):
        raise InvalidFormat(tensor.name, f"{tensor.dtype.name} rows cannot be reordered as bytes")
    return Tensor(tensor.name, tensor.dtype, tensor.shape, load)
