"""Kernels with their grids and block shapes: what a product, a norm, attention launches.

Purpose: the one place where sizes are chosen. Promise: the same launches on CPU tensors, through
Triton's interpreter, as on a GPU. The shapes are reasoned, not tuned: no GPU has run them yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from apr.cuda import attention, products, steps
from apr.cuda.pages import PAGE, Pool
from apr.cuda.stored import Planes

FEW = 8  # tokens that one launch of a matrix-vector product takes


@dataclass
class Shapes:
    """Sizes of a product's programs. Tests through the interpreter, which pays by the program, take
    larger ones.

    `rows` of a weight, `tall` where there are `many` of them (two such programs for each of 132
    processors); `plain`, `blocks`: numbers (words) that a program holds at once; `unpacked`: rows
    that one unpacks.
    """

    rows: int = 4
    tall: int = 16
    many: int = 16 * 264
    plain: int = 4096
    blocks: int = 2048
    unpacked: int = 1


SHAPES = Shapes()


@dataclass(frozen=True)
class Norm:
    """A norm of the stream: its weights, and its shift where it is a LayerNorm."""

    gain: Tensor
    shift: Tensor | None
    eps: float
    layer: bool


def power(number: int, least: int = 1) -> int:
    """The next power of two."""
    return max(least, 1 << (number - 1).bit_length())


def _block_shape(weight: Planes, batch: int, *, both: bool) -> tuple[int, int]:
    """Rows and spans of a program's tile for a block type."""
    assert weight.kind is not None
    rows = SHAPES.tall if weight.rows >= SHAPES.many else SHAPES.rows
    most = SHAPES.blocks // (batch * weight.kind.words * (2 if both else 1))
    rows = max(1, min(rows, most))
    spans = max(1, min(64 // rows, most // rows, power(weight.spans)))
    return rows, spans


def _planes(weight: Planes) -> tuple[Tensor, ...]:
    """Pointers for a kernel: a plane that the type has not is never read."""
    first = weight.parts[0]
    assert first is not None
    return tuple(first if part is None else part for part in weight.parts)


def _constants(weight: Planes) -> dict[str, int]:
    kind = weight.kind
    assert kind is not None
    return {
        "SPAN": kind.span, "WORDS": kind.words, "STEPS": kind.span // kind.words, "LOW": kind.low,
        "HIGH": kind.high, "ZERO": kind.zero, "SCALING": kind.scaling, "PER": kind.per,
    }  # fmt: skip


def matvec(
    x: Tensor,
    weight: Planes,
    out: Tensor,
    *,
    norm: Norm | None = None,
    bias: Tensor | None = None,
    add: bool = False,
    up: Planes | None = None,
    up_bias: Tensor | None = None,
    act: int = 0,
) -> None:
    """`out` `[tokens, rows]` = weight times `x` `[tokens, columns]`, after an RMS norm of `x`.

    With `up`, `act(weight x) * (up x)`; both of one type and shape. `add`: onto what is there.
    """
    for start in range(0, x.shape[0], FEW):
        part, target = x[start : start + FEW], out[start : start + FEW]
        count = part.shape[0]
        batch = power(count)
        flags = {
            "BATCH": batch, "NORM": norm is not None, "GATED": up is not None, "ACT": act,
            "BIAS": bias is not None, "ADD": add,
        }  # fmt: skip
        gain, eps = (x, 0.0) if norm is None else (norm.gain, norm.eps)
        biases = (x if bias is None else bias, x if up_bias is None else up_bias)
        other = weight if up is None else up
        if weight.kind is None:
            rows = SHAPES.rows
            most = power(weight.columns)
            columns = max(16, min(most, SHAPES.plain // (batch * rows * (1 if up is None else 2))))
            products.matvec_plain[(-(-weight.rows // rows),)](
                part, part.stride(0), count, gain, eps, weight.matrix, other.matrix, *biases,
                target, target.stride(0), weight.rows, weight.columns,
                ROWS=rows, COLUMNS=columns, **flags, num_warps=4,
            )  # fmt: skip
            continue
        rows, spans = _block_shape(weight, batch, both=up is not None)
        products.matvec_blocks[(-(-weight.rows // rows),)](
            part, part.stride(0), count, gain, eps, *_planes(weight), *_planes(other), *biases,
            target, target.stride(0), weight.rows, weight.columns, weight.spans,
            ROWS=rows, SPANS=spans, **_constants(weight), **flags, num_warps=4,
        )  # fmt: skip


def unpack(
    weight: Planes,
    out: Tensor,
    *,
    ids: Tensor | None = None,
    first: int = 0,
    factor: float = 1.0,
    add: bool = False,
) -> None:
    """Rows of a weight into `out` `[rows, columns]`: those of `ids`, or from `first` on."""
    count = out.shape[0]
    if weight.kind is None:
        assert ids is not None
        width = min(1024, power(weight.columns))
        products.unpack_plain[(count, -(-weight.columns // width))](
            ids, out, out.stride(0), factor, weight.matrix, weight.columns,
            COLUMNS=width, ADD=add, num_warps=4,
        )  # fmt: skip
        return
    spans, rows = min(2048 // weight.kind.span, power(weight.spans)), SHAPES.unpacked
    products.unpack_blocks[(-(-count // rows), -(-weight.spans // spans))](
        out if ids is None else ids, out, out.stride(0), factor, first, count, *_planes(weight),
        weight.columns, weight.spans,
        ROWS=rows, SPANS=spans, CHOSEN=ids is not None, ADD=add, **_constants(weight), num_warps=4,
    )  # fmt: skip


def normalise(x: Tensor, norm: Norm, out: Tensor, *, add: bool = False) -> None:
    """Each row of `x` `[tokens, width]` through a norm, into (or onto) `out`."""
    width = x.shape[1]
    steps.norm[(x.shape[0],)](
        x, x.stride(0), norm.gain, norm.gain if norm.shift is None else norm.shift, norm.eps,
        out, out.stride(0), width, WIDTH=power(width), LAYER=norm.layer,
        SHIFT=norm.shift is not None, ADD=add, num_warps=8 if width > 2048 else 4,
    )  # fmt: skip


def gated(gate: Tensor, up: Tensor | None, out: Tensor, act: int) -> None:
    """`act(gate) * up`, or `act(gate)`, `[tokens, width]`."""
    width = gate.shape[1]
    block = min(1024, power(width))
    other = gate if up is None else up
    steps.gated[(gate.shape[0], -(-width // block))](
        gate, gate.stride(0), other, other.stride(0), out, out.stride(0), width,
        WIDTH=block, ACT=act, UP=up is not None, num_warps=4,
    )  # fmt: skip


@dataclass(frozen=True)
class Heads:
    """What rotation and attention of a layer need to know."""

    heads: int
    layer: int
    pool: Pool
    half: int
    pairs: bool
    q_norm: Tensor | None
    k_norm: Tensor | None
    eps: float
    scale: float
    cap: float
    sinks: Tensor | None

    @property
    def offsets(self) -> tuple[int, int]:
        """Where the layer's keys and values begin in a page."""
        first = 2 * self.pool.layer * self.pool.slots[self.layer]
        return first, first + self.pool.layer


@dataclass
class Places:
    """Where a pass' tokens belong: `per_sequence` of each sequence, one after another.

    `turn`: each token's row of the cosines and sines; `table`: `[sequences, pages]`.
    """

    positions: Tensor
    turn: Tensor
    table: Tensor
    per_sequence: int
    sequences: int
    splits: int


def store(
    q: Tensor, k: Tensor, v: Tensor, at: Heads, places: Places,
    angles: tuple[Tensor, Tensor] | None,
) -> None:  # fmt: skip
    """Norm and rotate queries and keys, in their buffers; keys and values into the cache."""
    pool, base = at.pool, at.pool.base
    assert base is not None
    cos, sin = (q, q) if angles is None else angles
    gains = (q if at.q_norm is None else at.q_norm, k if at.k_norm is None else at.k_norm)
    steps.store[(q.shape[0], at.heads + pool.kv_heads)](
        q, q.stride(0), k, k.stride(0), v, v.stride(0), *gains, at.eps, cos, sin, places.turn,
        places.positions, places.table, places.table.stride(0), places.per_sequence, base,
        *at.offsets, D=pool.head_dim, WIDTH=power(pool.head_dim, 2), HALF=max(1, at.half),
        HEADS=at.heads, PAGE=PAGE, NORM=at.q_norm is not None, TURNS=angles is not None,
        PAIRS=at.pairs, num_warps=1,
    )  # fmt: skip


def attend(q: Tensor, out: Tensor, at: Heads, places: Places) -> None:
    """Attention of the queries `[tokens, heads * head_dim]` over the cache, into `out`."""
    pool, base = at.pool, at.pool.base
    assert base is not None
    size, group, splits = pool.head_dim, at.heads // pool.kv_heads, places.splits
    wide = power(size, 16)
    rows = places.per_sequence * group
    # Wide heads in float32 fill the shared memory.
    tile = 16 if rows <= 16 or base.dtype == torch.float32 else 32 if rows <= 32 else 64
    part = stats = out
    if splits > 1:
        lines = q.shape[0] * at.heads * splits
        part = torch.empty(lines * size, dtype=torch.float32, device=q.device)
        stats = torch.empty(lines * 2, dtype=torch.float32, device=q.device)
    sinks = q if at.sinks is None else at.sinks
    flags: dict[str, Any] = {"D": size, "WIDTH": wide, "SPLITS": splits}
    grid = (-(-rows // tile), pool.kv_heads, places.sequences * splits)
    attention.attend[grid](
        q, q.stride(0), out, out.stride(0), part, stats, sinks, places.positions, places.table,
        places.table.stride(0), base, *at.offsets, places.per_sequence, at.scale, at.cap,
        pool.window or 0, GROUP=group, KV_HEADS=pool.kv_heads, PAGE=PAGE, ROWS=tile,
        CAP=at.cap > 0, SINKS=at.sinks is not None, WINDOW=pool.window is not None, **flags,
        num_warps=4,
    )  # fmt: skip
    if splits > 1:
        attention.combine[(q.shape[0], at.heads)](
            part, stats, sinks, out, out.stride(0), HEADS=at.heads, SINKS=at.sinks is not None,
            **flags, num_warps=2,
        )  # fmt: skip
