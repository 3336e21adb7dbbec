"""How far a stored tensor is from its source: figures, and the bound that each type promises."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf, isfinite, isnan, nan, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from apr.dtypes import DType
from apr.errors import InvalidFormat
from apr.quant.codec import CHUNK, iter_float32

if TYPE_CHECKING:
    from apr.tensors import Tensor

Bytes = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

_HALF = 2.0**-11  # unit roundoff of f16, in which block scales are kept
# Largest error as a fraction of the largest magnitude in the block (in the tensor for APR_Q8; of
# the element itself for the plain types), as long as no f16 scale is subnormal. Half a step of the
# grid, plus what rounding the scale (and the offset) to f16 moves the outermost value. Q4_0 and
# Q5_0 have one step less on one side. A type that is not listed promises nothing (ternary).
ERROR_BOUNDS: dict[str, float] = {
    "F32": 0.0,
    "F64": 0.0,
    "F16": _HALF,
    "BF16": 2.0**-8,
    "APR_Q8": 0.5 / 127 + 2.0**-22,
    "Q8_0": 0.5 / 127 + _HALF,
    "APR_Q4": 0.5 / 7 + _HALF,
    "Q4_0": 1 / 8 + _HALF,
    "Q4_1": 1 / 15 + 3 * _HALF,
    "Q5_0": 1 / 16 + _HALF,
    "Q5_1": 1 / 31 + 3 * _HALF,
}


@dataclass(frozen=True, slots=True)
class ErrorFigures:
    """Differences of two tensors over all elements.

    `max_abs` and `rms` are in the weights' own unit; `relative_rms` is rms over the rms of the
    first tensor (0 for equal ones). Two NaNs or equal infinities differ by nothing; one NaN
    against a number makes the figures NaN, which no threshold accepts. `cosine` is NaN where one
    tensor is all zero, or not finite.
    """

    elements: int
    differing: int
    max_abs: float
    rms: float
    relative_rms: float
    cosine: float

    @property
    def exact(self) -> bool:
        """Every element has the same value."""
        return self.differing == 0


def error_figures(values: npt.NDArray[Any], dtype: DType, raw: Bytes) -> ErrorFigures:
    """Compare an array with its encoded form.

    Raises:
        InvalidFormat: `raw` is not as long as a tensor of this type and the array's shape.
    """
    flat = np.ascontiguousarray(values).reshape(-1)
    first = (flat[i : i + CHUNK].astype(np.float32) for i in range(0, flat.size, CHUNK))
    return figures_of(first, iter_float32(dtype, raw, values.shape))


def compare(first: Tensor, second: Tensor) -> ErrorFigures:
    """Compare two stored tensors of any types, chunk by chunk.

    Raises:
        InvalidFormat: their shapes differ.
    """
    if first.shape != second.shape:
        raise InvalidFormat(
            second.name, f"has shape {list(second.shape)}, compared with {list(first.shape)}"
        )
    return figures_of(
        iter_float32(first.dtype, first.raw(), first.shape),
        iter_float32(second.dtype, second.raw(), second.shape),
    )


def figures_of(
    first: Iterable[npt.NDArray[Any]], second: Iterable[npt.NDArray[Any]]
) -> ErrorFigures:
    """Compare two series of float chunks `[n]` of equal sizes, without keeping any.

    Raises:
        ValueError: the series are not equally long.
    """
    elements = differing = 0
    largest = squares = source = other = product = 0.0
    for a, b in zip(first, second, strict=True):
        elements += a.size
        unequal = a != b
        unequal &= ~(np.isnan(a) & np.isnan(b))
        differing += int(np.count_nonzero(unequal))
        with np.errstate(invalid="ignore", over="ignore"):
            wide = a.astype(np.float64)
            error = np.where(unequal, wide - b, 0.0)
            magnitude = float(np.abs(error).max(initial=0.0))
            largest = nan if isnan(magnitude) or isnan(largest) else max(largest, magnitude)
            squares += float(error @ error)
            source += float(wide @ wide)
            wide_b = b.astype(np.float64)
            other += float(wide_b @ wide_b)
            product += float(wide @ wide_b)
    count = max(elements, 1)
    relative = 0.0 if squares == 0 else sqrt(squares / source) if source else inf
    lengths = sqrt(source) * sqrt(other)
    cosine = max(-1.0, min(1.0, product / lengths)) if lengths and isfinite(product) else nan
    if not differing and lengths:
        cosine = 1.0  # not what is left of it after rounding
    return ErrorFigures(elements, differing, largest, sqrt(squares / count), relative, cosine)
