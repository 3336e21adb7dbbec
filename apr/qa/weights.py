"""The tensor gate: every element read once, in chunks, tensors shared out over threads.

Memory stays flat: a chunk a thread, and the file's pages are given back after each tensor.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from apr import families
from apr.errors import AprError
from apr.families import TensorSpec
from apr.formats.opened import OpenedModel
from apr.mapped import release
from apr.qa.report import Finding
from apr.qa.subject import Subject
from apr.quant.codec import iter_float32
from apr.tensors import Tensor

_CHUNK = 1 << 15  # elements in flight a thread: stays in a core's cache


@dataclass(frozen=True)
class TensorFigures:
    """What was counted in one tensor. Rows are counted where the tensor was asked for by rows."""

    elements: int
    zeros: int
    not_finite: int
    l2: float
    constant: float | None
    rows: int = 0
    dead_rows: int = 0


def measure(
    tensor: Tensor, *, skip_rows: Collection[int] = (), dead_row_l2: float | None = None
) -> TensorFigures:
    """Count through a tensor.

    Args:
        tensor: of any storage type.
        skip_rows: rows left out of every figure (fillers of an embedding); only with `dead_row_l2`.
        dead_row_l2: count rows of a matrix whose L2 norm is below this as dead.
    """
    width = tensor.shape[-1] if dead_row_l2 is not None and len(tensor.shape) > 1 else 0
    chunk = _row_chunk(width, tensor.dtype.block_size) if width else _CHUNK
    skipped = np.array(sorted(skip_rows), dtype=np.int64)
    elements = zeros = not_finite = dead = rows = position = 0
    squares = 0.0
    first: float | None = None
    constant = True
    raw = tensor.raw()
    for values in iter_float32(tensor.dtype, raw, tensor.shape, chunk):
        if width:
            matrix = values.reshape(-1, width)
            here = np.arange(position, position + len(matrix))
            position += len(matrix)
            if skipped.size:
                matrix = matrix[~np.isin(here, skipped)]
            rows += len(matrix)
            norms = np.einsum("ij,ij->i", matrix, matrix)
            dead += int(np.count_nonzero(norms < float(dead_row_l2 or 0.0) ** 2))
            values = matrix.reshape(-1)
        if not values.size:
            continue
        elements += values.size
        zeros += values.size - int(np.count_nonzero(values))
        square = float(np.dot(values, values))
        if not math.isfinite(square):  # not a number, or too large for a float32 sum
            not_finite += values.size - int(np.count_nonzero(np.isfinite(values)))
            wide = values[np.isfinite(values)].astype(np.float64)
            square = float(np.dot(wide, wide))
        squares += square
        first = float(values[0]) if first is None else first
        constant = constant and bool((values == first).all())
    release(raw)
    return TensorFigures(
        elements,
        zeros,
        not_finite,
        math.sqrt(squares),
        first if constant and first is not None else None,
        rows,
        dead,
    )


def tensor_contract(subject: Subject, limits: Mapping[str, Any]) -> Finding:
    """The family's tensors, each finite and alive.

    What fresh initialisation makes is not dead: norms whose factor is all 1, biases that are all 0.
    Filler rows of the embedding (ids that no text gives) are left out of its figures.
    """
    model = subject.require_model()
    problems = families.tensor_problems(model.architecture, model.tensors)
    specs = {s.name: s for s in families.tensor_specs(model.architecture)}
    fillers = _filler_ids(subject)
    known = [(specs[name], t) for name, t in model.tensors.items() if name in specs]
    known.sort(key=lambda pair: -pair[1].nbytes)

    def judge(pair: tuple[TensorSpec, Tensor]) -> list[str]:
        spec, tensor = pair
        rows = spec.role == "embedding"
        try:
            figures = measure(
                tensor,
                skip_rows=fillers if rows else (),
                dead_row_l2=float(limits["dead_row_l2"]) if rows else None,
            )
        except AprError as error:
            return [f"{spec.name}: {error.what}"]
        return [f"{spec.name} {text}" for text in verdicts(spec, figures, limits)]

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for found in pool.map(judge, known):
            problems += found
    shown = "; ".join(problems[:8])
    more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
    return Finding(
        not problems,
        shown + more
        if problems
        else f"{len(known)} tensors, {_count(model):,} elements: as the family requires, finite, "
        f"none dead" + (f" ({len(fillers)} filler rows left out)" if fillers else ""),
        len(problems),
        0,
        {"problems": problems},
    )


def verdicts(spec: TensorSpec, figures: TensorFigures, limits: Mapping[str, Any]) -> list[str]:
    """What is wrong with a tensor by its figures, a phrase each."""
    if figures.not_finite:
        return [f"holds {figures.not_finite} values that are not finite"]
    if spec.name.endswith(".bias") or not figures.elements:
        return []  # a bias may be zero: it starts so, and some models leave it there
    # Neutral is a weight of 1, or of 0 where the factor is 1 + weight.
    sums = spec.gguf.recipe == "plus_one"
    if spec.role == "norm" and figures.constant == limits["constant_norm"] - sums:
        return []  # as initialised; in bfloat16 small updates round away
    if figures.l2 < limits["min_l2"]:
        return [f"is dead: L2 norm {figures.l2:.3g} is below {limits['min_l2']:g}"]
    if figures.constant is not None and figures.elements > 1:
        return [f"is constant: every element is {figures.constant:g}"]
    out = []
    embedding = spec.role == "embedding"
    share, limit = figures.zeros / figures.elements, limits["other_zeros"]
    if embedding:
        limit = limits["embedding_zeros"]
    if share > limit and not sums:
        out.append(f"is {share:.1%} zeros, at most {limit:.0%} may be")
    if embedding and figures.rows and figures.dead_rows / figures.rows >= limits["dead_rows"]:
        out.append(
            f"has {figures.dead_rows} dead rows of {figures.rows}, below "
            f"{limits['dead_rows']:.0%} may be"
        )
    return out


def _row_chunk(width: int, block: int) -> int:
    rows = max(1, _CHUNK // width)
    while (rows * width) % block:
        rows += 1
    return rows * width


def _filler_ids(subject: Subject) -> list[int]:
    try:
        tokenizer = subject.tokenizer()
    except AprError:
        return []  # the tokenizer gate says so; every row is judged
    return [id for id in range(tokenizer.vocab_size) if tokenizer.is_filler(id)]


def _count(model: OpenedModel) -> int:
    return sum(t.num_elements for t in model.tensors.values())
