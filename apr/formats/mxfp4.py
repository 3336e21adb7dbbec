"""Experts that a Hugging Face folder holds as MXFP4 (OCP Microscaling formats 1.0), as our blocks.

There a tensor `X` becomes `X_blocks`, `[experts, out, in / 32, 16]` bytes of two 4-bit numbers
each, and `X_scales`, `[experts, out, in / 32]` exponents; rows run along `in`, as ours do, though
`X` itself is stored transposed. Ours and ggml's block is the exponent and then the 16 bytes, whose
nibbles are in another order: there neighbours share a byte, here elements 16 apart.
Reference: transformers' `integrations/mxfp4.py`, ggml's `ggml-common.h`.
"""

from __future__ import annotations

import numpy as np

from apr.dtypes import DTYPES
from apr.mapped import release
from apr.tensors import Bytes, Tensor

METHOD = "mxfp4"  # quantization_config.quant_method
_ELEMENTS, _BYTES = 32, 16  # of a block


def names(stored: str) -> tuple[str, str]:
    """What the two tensors are called that stand for one."""
    return f"{stored}_blocks", f"{stored}_scales"


def expert(
    name: str,
    shape: tuple[int, ...],
    blocks: Tensor,
    scales: Tensor,
    index: int,
    part: int | None = None,
) -> Tensor:
    """One expert's matrix as an MXFP4 tensor, lazily; block by block the numbers stored.

    Args:
        name: of the result.
        shape: of the result, `[out, in]`.
        blocks: `[experts, out, in / 32, 16]`, or `out` twice as long where two matrices take turns.
        scales: `[experts, out, in / 32]`.
        index: the expert.
        part: which of two that take turns; None: one alone.

    Tensors of unfit shapes are handed on as they are, for `check_tensors` to report.
    """
    rows, width = shape
    stored = rows if part is None else 2 * rows
    expected = (stored, width // _ELEMENTS)
    if width % _ELEMENTS or blocks.shape[1:] != (*expected, _BYTES) or scales.shape[1:] != expected:
        return Tensor(name, blocks.dtype, blocks.shape, blocks.load)

    def load() -> Bytes:
        exponents, pairs = scales.numpy(), blocks.numpy()
        mine = slice(None) if part is None else slice(part, None, 2)
        out = np.empty((rows, width // _ELEMENTS, 1 + _BYTES), dtype=np.uint8)
        out[..., 0] = exponents[index, mine]
        out[..., 1:] = reordered(pairs[index, mine])
        release(scales.raw())
        release(blocks.raw())
        return out.reshape(-1)

    return Tensor(name, DTYPES["MXFP4"], shape, load)


def reordered(pairs: Bytes) -> Bytes:
    """Blocks `[..., 16]` whose bytes hold elements 2j, 2j + 1, as such that hold j and j + 16."""
    first, second = pairs[..., : _BYTES // 2], pairs[..., _BYTES // 2 :]
    out = np.empty_like(pairs)
    out[..., 0::2] = (first & 0x0F) | (second << 4)
    out[..., 1::2] = (first >> 4) | (second & 0xF0)
    return out
