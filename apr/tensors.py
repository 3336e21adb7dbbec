"""Lazy tensors: a name, a type, a shape and bytes that are read only when asked for.

The three formats hand out `Tensor`s over their memory map, under canonical (Hugging Face) names
and row-major shapes `[out, in]`, so that no verb ever sees which format a model came in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from apr.dtypes import DTYPES, DType

if TYPE_CHECKING:
    import torch

Bytes = npt.NDArray[np.uint8]

_NUMPY: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F64": np.dtype("<f8"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of an opened file; `load` returns its bytes, zero-copy where the file allows.

    `stream`, where given, makes the same bytes piece by piece (a tensor that is converted while it
    is written); writers go through `chunks`.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    load: Callable[[], Bytes]
    stream: Callable[[], Iterator[Bytes]] | None = None

    @property
    def nbytes(self) -> int:
        """Stored bytes, without padding."""
        return self.dtype.nbytes(self.shape)

    @property
    def num_elements(self) -> int:
        """Number of elements."""
        count = 1
        for dim in self.shape:
            count *= dim
        return count

    def raw(self) -> Bytes:
        """The stored bytes, `[nbytes]`."""
        return self.load()

    def chunks(self, size: int = 4 << 20) -> Iterator[Bytes]:
        """The stored bytes in order, in pieces of `size` bytes or as the stream makes them."""
        if self.stream is not None:
            yield from self.stream()
            return
        raw = self.raw()
        for start in range(0, raw.size, size):
            yield raw[start : start + size]

    def numpy(self) -> npt.NDArray[Any]:
        """The elements in their stored type, zero-copy; BF16 comes as its uint16 bit patterns.

        Block types come as their bytes `[nbytes]`; `float32()` decodes them.
        """
        if self.dtype.is_block:
            return self.raw()
        return self.raw().view(_NUMPY[self.dtype.name]).reshape(self.shape)

    def float32(self) -> npt.NDArray[np.float32]:
        """The elements as float32, decoded where the type is quantized; shape as stored."""
        from apr.quant import decode

        return decode(self.dtype, self.raw(), self.shape)

    def torch(self) -> torch.Tensor:
        """The elements as a torch tensor in their stored type (block types: float32, decoded).

        Plain types are zero-copy: the tensor shares the file's read-only pages, so it must not be
        written to.
        """
        import warnings

        import torch

        if self.dtype.is_block:
            return torch.from_numpy(self.float32())
        kinds = {
            "F32": torch.float32,
            "F16": torch.float16,
            "BF16": torch.bfloat16,
            "F64": torch.float64,
            "I32": torch.int32,
            "I64": torch.int64,
            "I16": torch.int16,
            "I8": torch.int8,
            "U8": torch.uint8,
        }
        with warnings.catch_warnings():  # torch warns that the pages are read-only; they stay so
            warnings.simplefilter("ignore")
            flat = torch.frombuffer(self.raw().data, dtype=kinds[self.dtype.name])
        return flat.reshape(self.shape)


def from_array(name: str, array: npt.NDArray[Any], dtype: str | None = None) -> Tensor:
    """A tensor over an array in memory; `dtype` names the type where numpy has none (BF16)."""
    kind = (
        DTYPES[dtype]
        if dtype
        else next(DTYPES[k] for k, v in _NUMPY.items() if v == array.dtype and k != "BF16")
    )
    contiguous = np.ascontiguousarray(array)
    return Tensor(name, kind, array.shape, lambda: contiguous.reshape(-1).view(np.uint8))


def from_torch(name: str, tensor: torch.Tensor) -> Tensor:
    """A tensor over a torch tensor; copied to the CPU when `load` is called, not before."""
    import torch

    kinds = {
        torch.float32: "F32",
        torch.float16: "F16",
        torch.bfloat16: "BF16",
        torch.float64: "F64",
        torch.int32: "I32",
        torch.int64: "I64",
        torch.int16: "I16",
        torch.int8: "I8",
        torch.uint8: "U8",
    }

    def load() -> Bytes:
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        return flat.view(torch.uint8).numpy()

    return Tensor(name, DTYPES[kinds[tensor.dtype]], tuple(tensor.shape), load)
