"""Tensors of two models by canonical name: bytes first, and figures only where bytes differ.

Memory stays flat: both sides are read in pieces, and their pages are given back on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from apr.diff.difference import Relation, TensorDifference
from apr.export.comparison import deviation, first_difference
from apr.formats.streaming import Sources
from apr.quant import ERROR_BOUNDS, figures_of, iter_float32
from apr.quant.codec import CHUNK
from apr.tensors import Tensor

# float32 does not hold every value of these, so they are compared as float64.
_WIDE = frozenset({"F64", "I32", "I64"})
_RELEASE_EVERY = 256  # chunks


def compare_tensors(
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    on_tensor: Callable[[str], None] | None = None,
) -> tuple[TensorDifference, ...]:
    """Every name of either side, in A's order, then what only B has.

    Raises:
        InvalidFormat: a tensor's bytes are not as many as its shape takes.
        FeatureUnavailable: a block type cannot be decoded here.
    """
    out = []
    for name in (*a, *(name for name in b if name not in a)):
        if on_tensor is not None:
            on_tensor(name)
        out.append(_compare(name, a.get(name), b.get(name)))
    return tuple(out)


def _compare(name: str, a: Tensor | None, b: Tensor | None) -> TensorDifference:
    if a is None or b is None:
        relation: Relation = "only_in_a" if b is None else "only_in_b"
        return TensorDifference(name, relation, *_types(a, b))
    if a.shape != b.shape:
        return TensorDifference(name, "shape", *_types(a, b))
    if a.num_elements == 0:
        return TensorDifference(name, "not_compared", *_types(a, b))
    sources = Sources()
    ours, theirs = sources.watch(a), sources.watch(b)
    try:
        if a.dtype == b.dtype and first_difference(ours.raw(), theirs.raw(), sources) is None:
            return TensorDifference(name, "identical", *_types(a, b))
        figures = figures_of(_chunks(ours, sources), _chunks(theirs, sources))
        # Integers beyond 2^53 look equal as float64; other bytes of one such type are other values.
        unresolved = a.dtype == b.dtype and a.dtype.name == "I64"
        if figures.exact and not unresolved:
            return TensorDifference(name, "same_values", *_types(a, b), figures)
        ratio = _of_bound(ours, theirs, sources)
        return TensorDifference(name, "values", *_types(a, b), figures, ratio)
    finally:
        sources.release(forget=True)


def _types(
    a: Tensor | None, b: Tensor | None
) -> tuple[str | None, str | None, tuple[int, ...] | None, tuple[int, ...] | None]:
    return (
        a.dtype.name if a else None,
        b.dtype.name if b else None,
        a.shape if a else None,
        b.shape if b else None,
    )


def _chunks(tensor: Tensor, sources: Sources) -> Iterator[npt.NDArray[Any]]:
    pieces: Iterator[npt.NDArray[Any]]
    if tensor.dtype.name in _WIDE:
        flat = tensor.numpy().reshape(-1)
        pieces = (flat[i : i + CHUNK].astype(np.float64) for i in range(0, flat.size, CHUNK))
    else:
        pieces = iter_float32(tensor.dtype, tensor.raw(), tensor.shape)
    for number, piece in enumerate(pieces):
        yield piece
        if number % _RELEASE_EVERY == _RELEASE_EVERY - 1:
            sources.release()


def _of_bound(a: Tensor, b: Tensor, sources: Sources) -> float | None:
    """The largest error as a fraction of what the coarser type promises, if it is that type's."""
    bits_a, bits_b = 8 * a.nbytes / a.num_elements, 8 * b.nbytes / b.num_elements
    if bits_a == bits_b:
        return None
    fine, coarse = (a, b) if bits_a > bits_b else (b, a)
    if not ERROR_BOUNDS.get(coarse.dtype.name):
        return None
    return deviation(fine, coarse, sources)[1]
