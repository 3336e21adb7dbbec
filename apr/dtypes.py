"""How numbers are stored: one table for the three formats.

`.apr` ids follow `docs/spec/apr-format.md`: the format's own ids, then ggml's number where it is
free in `.apr`, else 128 + ggml's number. Sizes of ggml's block types are those of ggml-common.h.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from apr.errors import InvalidFormat


@dataclass(frozen=True, slots=True)
class DType:
    """One storage type.

    `block_size` elements along the last dimension take `block_bytes` bytes; a plain type has
    blocks of one element. `header_bytes` come once per tensor (APR_Q8 keeps one scale).
    """

    name: str
    apr_id: int
    ggml_id: int | None = None
    safetensors: str | None = None
    block_size: int = 1
    block_bytes: int = 0
    header_bytes: int = 0
    is_float: bool = False

    @property
    def is_block(self) -> bool:
        """True for quantized types, whose bytes are not elements."""
        return self.block_size > 1 or self.header_bytes > 0

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor of this type and shape, without padding.

        Raises:
            InvalidFormat: the last dimension is no whole number of blocks.
        """
        count = prod(shape)
        if self.block_size > 1 and self.name != "APR_Q4":
            last = shape[-1] if shape else 1
            if last % self.block_size:
                raise InvalidFormat(
                    self.name,
                    f"a last dimension of {last} is no multiple of its {self.block_size} elements",
                )
        blocks = -(-count // self.block_size)
        return self.header_bytes + blocks * self.block_bytes


_PLAIN = [
    DType("F32", 0, 0, "F32", 1, 4, is_float=True),
    DType("F16", 1, 1, "F16", 1, 2, is_float=True),
    DType("BF16", 30, 30, "BF16", 1, 2, is_float=True),
    DType("F64", 3, 28, "F64", 1, 8, is_float=True),
    DType("I32", 4, 26, "I32", 1, 4),
    DType("I64", 5, 27, "I64", 1, 8),
    DType("I8", 6, 24, "I8", 1, 1),
    DType("U8", 7, None, "U8", 1, 1),
    DType("I16", 25, 25, "I16", 1, 2),
]
_BLOCK = [
    DType("Q4_K", 12, 12, None, 256, 144),
    DType("Q6_K", 14, 14, None, 256, 210),
    DType("APR_Q4", 128, None, None, 32, 18),
    DType("APR_Q8", 129, None, None, 1, 1, header_bytes=4),
    # Ours: ggml's number where it is free, else 128 + ggml's number.
    DType("Q4_0", 2, 2, None, 32, 18),
    DType("Q2_K", 10, 10, None, 256, 84),
    DType("Q3_K", 11, 11, None, 256, 110),
    DType("Q5_K", 13, 13, None, 256, 176),
    DType("IQ2_XXS", 16, 16, None, 256, 66),
    DType("IQ2_XS", 17, 17, None, 256, 74),
    DType("IQ3_XXS", 18, 18, None, 256, 98),
    DType("IQ1_S", 19, 19, None, 256, 50),
    DType("IQ4_NL", 20, 20, None, 32, 18),
    DType("IQ3_S", 21, 21, None, 256, 110),
    DType("IQ2_S", 22, 22, None, 256, 82),
    DType("IQ4_XS", 23, 23, None, 256, 136),
    DType("IQ1_M", 29, 29, None, 256, 56),
    DType("TQ1_0", 34, 34, None, 256, 54),
    DType("TQ2_0", 35, 35, None, 256, 66),
    DType("MXFP4", 39, 39, None, 32, 17),
    DType("NVFP4", 40, 40, None, 64, 36),
    DType("Q4_1", 131, 3, None, 32, 20),
    DType("Q5_0", 134, 6, None, 32, 22),
    DType("Q5_1", 135, 7, None, 32, 24),
    DType("Q8_0", 136, 8, None, 32, 34),
]

DTYPES: dict[str, DType] = {d.name: d for d in (*_PLAIN, *_BLOCK)}
BY_APR_ID: dict[int, DType] = {d.apr_id: d for d in DTYPES.values()}
BY_APR_ID[8] = DTYPES["APR_Q4"]  # legacy ids, accepted on reading only
BY_APR_ID[9] = DTYPES["APR_Q8"]
BY_GGML_ID: dict[int, DType] = {d.ggml_id: d for d in DTYPES.values() if d.ggml_id is not None}
BY_SAFETENSORS: dict[str, DType] = {d.safetensors: d for d in DTYPES.values() if d.safetensors}
