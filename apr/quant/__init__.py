"""Block formats and plain number types: pack, unpack, and how far a copy is from its source.

Everything works on flat little-endian bytes in storage order, so a block may be anywhere in the
tensor as long as the last dimension is a whole number of blocks (`DType.nbytes` refuses the rest).
Nothing here ever holds more than one chunk beside its input and its result. Sources: the table in
docs/spec/apr-format.md for APR_Q4 and APR_Q8, ggml-common.h for ggml's types.
"""

from __future__ import annotations

from apr.quant.codec import decode, encodable, encode, iter_float32
from apr.quant.errors import ERROR_BOUNDS, ErrorFigures, compare, error_figures, figures_of
from apr.quant.recode import recoded

__all__ = [
    "ERROR_BOUNDS",
    "ErrorFigures",
    "compare",
    "decode",
    "encodable",
    "encode",
    "error_figures",
    "figures_of",
    "iter_float32",
    "recoded",
]
