"""A stored tensor in another type, lazily: nothing is computed until somebody writes it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from apr.dtypes import DType
from apr.quant.codec import encode_chunks, iter_float32, largest_of, require_encodable
from apr.tensors import Tensor

Bytes = npt.NDArray[np.uint8]


def recoded(tensor: Tensor, dtype: DType) -> Tensor:
    """The same tensor stored as `dtype`; the same object if it already is.

    Its `chunks()` never hold more than a piece of it (APR_Q8 reads the source twice, because the
    scale comes first); `raw()` builds the whole.

    Raises:
        FeatureUnavailable: the type can only be passed through.
        InvalidFormat: the shape has no whole number of blocks; while reading, a value is beyond
            the type.
    """
    if tensor.dtype == dtype:
        return tensor
    require_encodable(dtype)
    nbytes = dtype.nbytes(tensor.shape)

    def stream() -> Iterator[Bytes]:
        raw = tensor.raw()
        largest = 0.0
        if dtype.name == "APR_Q8":
            chunks = iter_float32(tensor.dtype, raw, tensor.shape)
            largest = max((largest_of(chunk) for chunk in chunks), default=0.0)
        return encode_chunks(dtype, iter_float32(tensor.dtype, raw, tensor.shape), largest)

    def load() -> Bytes:
        out = np.empty(nbytes, dtype=np.uint8)
        done = 0
        for piece in stream():
            out[done : done + piece.size] = piece
            done += piece.size
        return out

    return replace(tensor, dtype=dtype, load=load, stream=stream)
