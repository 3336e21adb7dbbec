"""The small operations between the products: norms, rotation with the cache's write, gated units.

Purpose: one launch for what PyTorch would do in several. Promise: all is computed in float32,
whatever the buffers hold; a token's place in the cache comes from device memory, so that a graph
of these launches stays right for every later token.
"""
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from apr.cuda.products import _activated


@triton.jit
def norm(
    x, x_stride, gain, shift, eps, out, out_stride, width, WIDTH: tl.constexpr,
    LAYER: tl.constexpr, SHIFT: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """A program normalises one token's row of `width` <= WIDTH; ADD: into what is there."""
    token = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, WIDTH)
    mask = i < width
    value = tl.load(x + token * x_stride + i, mask=mask, other=0.0).to(tl.float32)
    if LAYER:
        value = tl.where(mask, value - tl.sum(value, axis=0) / width, 0.0)
    value = value * tl.rsqrt(tl.sum(value * value, axis=0) / width + eps)
    value = value * tl.load(gain + i, mask=mask, other=0.0)
    if SHIFT:
        value = value + tl.load(shift + i, mask=mask, other=0.0)
    place = out + token * out_stride + i
    if ADD:
        value = value + tl.load(place, mask=mask, other=0.0).to(tl.float32)
    tl.store(place, value, mask=mask)


@triton.jit
def _turned(
    x, gain, eps, cos, sin, row, D: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr,
    NORM: tl.constexpr, TURNS: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """One head at `x`, normed and rotated, written over; also the result, `[WIDTH]`."""
    i = tl.arange(0, WIDTH)
    mask = i < D
    value = tl.load(x + i, mask=mask, other=0.0).to(tl.float32)
    # The partner that each element turns with.
    if PAIRS:
        partner = i ^ 1
        pair = i // 2
        sign = tl.where(i % 2 == 0, -1.0, 1.0)
    else:
        partner = tl.where(i < HALF, i + HALF, i - HALF)
        pair = tl.where(i < HALF, i, i - HALF)
        sign = tl.where(i < HALF, -1.0, 1.0)
    turning = i < 2 * HALF
    factor = 1.0
    if NORM:
        factor = tl.rsqrt(tl.sum(value * value, axis=0) / D + eps)
        value = value * factor * tl.load(gain + i, mask=mask, other=0.0)
    if TURNS:
        other = tl.load(x + partner, mask=turning, other=0.0).to(tl.float32)
        if NORM:
            other = other * factor * tl.load(gain + partner, mask=turning, other=0.0)
        c = tl.load(cos + row + pair, mask=turning, other=1.0)
        s = tl.load(sin + row + pair, mask=turning, other=0.0)
        value = tl.where(turning, value * c + sign * other * s, value)
        # Every element has been read by all threads before one is written over.
        tl.debug_barrier()
    tl.store(x + i, value, mask=mask)
    return value


@triton.jit
def store(
    q, q_stride, k, k_stride, v, v_stride, q_gain, k_gain, eps, cos, sin, turn, positions,
    table, table_stride, per_sequence, base, key_offset, value_offset,
    D: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr, HEADS: tl.constexpr,
    PAGE: tl.constexpr, NORM: tl.constexpr, TURNS: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """One head of one token: its norm, its rotation; a query stays in its buffer, a key goes there
    too, and with its value into the cache.

    A page of the cache holds PAGE positions of all its layers; `table` has a sequence's pages, as
    distances from `base` in elements. TURNS: False without a rotation; PAIRS: neighbours turn
    together. `turn`: each token's row of the cosines and sines.
    """
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    row = tl.load(turn + token).to(tl.int64) * HALF
    if head < HEADS:
        _turned(q + token * q_stride + head * D, q_gain, eps, cos, sin, row, D, WIDTH, HALF, NORM,
                TURNS, PAIRS)  # fmt: skip
    else:
        kv = head - HEADS
        value = _turned(k + token * k_stride + kv * D, k_gain, eps, cos, sin, row, D, WIDTH, HALF,
                        NORM, TURNS, PAIRS)  # fmt: skip
        i = tl.arange(0, WIDTH)
        position = tl.load(positions + token)
        sequence = token // per_sequence
        page = tl.load(table + sequence * table_stride + position // PAGE)
        place = base + page + (kv * PAGE + position % PAGE) * D + i
        tl.store(place + key_offset, value, mask=i < D)
        held = tl.load(v + token * v_stride + kv * D + i, mask=i < D, other=0.0).to(tl.float32)
        tl.store(place + value_offset, held, mask=i < D)


@triton.jit
def gated(
    gate, gate_stride, up, up_stride, out, out_stride, width, WIDTH: tl.constexpr,
    ACT: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    """Out = act(gate) * up, or act(gate) alone."""
    token = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    mask = i < width
    y = tl.load(gate + token * gate_stride + i, mask=mask, other=0.0).to(tl.float32)
    y = _activated(y, ACT)
    if UP:
        y = y * tl.load(up + token * up_stride + i, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + token * out_stride + i, y, mask=mask)
