"""Attention over the paged cache: queries that share a key/value head together, the context in
splits that are put together afterwards (Dao et al. 2023, "Flash-Decoding").

Purpose: one kernel for a decode step, a batch of them, and a prompt that goes on. Promise: lengths
are read from device memory; softmax in float32; a window, a soft cap and sinks as
apr/model/attention.py has them.
"""
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def attend(
    q, q_stride, out, out_stride, part, stats, sinks, positions, table, table_stride,
    base, key_offset, value_offset, per_sequence, scale, cap, window,
    D: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr, KV_HEADS: tl.constexpr,
    PAGE: tl.constexpr, ROWS: tl.constexpr, SPLITS: tl.constexpr, CAP: tl.constexpr,
    SINKS: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """ROWS (query, head of the group) of one sequence and one key/value head, over one split.

    Grid: tiles of rows, key/value heads, sequences * SPLITS. With more than one split, sums go to
    `part` [queries, heads, SPLITS, D] and `stats` [queries, heads, SPLITS, 2] (largest score, sum).
    """
    kv = tl.program_id(1)
    sequence = tl.program_id(2) // SPLITS
    split = tl.program_id(2) % SPLITS
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    query = r // GROUP
    head = kv * GROUP + r % GROUP
    there = query < per_sequence
    token = (sequence * per_sequence + query).to(tl.int64)
    d = tl.arange(0, WIDTH)
    wide = d < D
    past = tl.load(positions + sequence * per_sequence)
    position = past + query
    first_query = (tl.program_id(0) * ROWS) // GROUP
    last_query = tl.minimum((tl.program_id(0) * ROWS + ROWS - 1) // GROUP, per_sequence - 1)
    end = past + last_query + 1
    begin = 0
    if WINDOW:
        begin = tl.maximum(past + first_query - window + 1, 0)
    first_page = begin // PAGE
    pages = (end + PAGE - 1) // PAGE - first_page
    share = (pages + SPLITS - 1) // SPLITS
    from_page = first_page + split * share
    to_page = tl.minimum(from_page + share, first_page + pages)

    place = token[:, None] * q_stride + head[:, None] * D + d[None, :]
    both = there[:, None] & wide[None, :]
    # The queries in the cache's type: the products then run on the tensor cores.
    queries = tl.load(q + place, mask=both, other=0.0).to(base.dtype.element_ty)
    top = tl.full((ROWS,), -1.0e30, dtype=tl.float32)
    total = tl.zeros((ROWS,), dtype=tl.float32)
    acc = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
    slot = tl.arange(0, PAGE)
    for number in range(from_page, to_page):
        page = tl.load(table + sequence * table_stride + number)
        page = tl.multiple_of(page, 16)
        at = number * PAGE + slot
        held = base + page + kv * (PAGE * D) + slot[:, None] * D + d[None, :]
        # What lies beyond the end was never written: it must not even be multiplied by zero.
        known = (at < end)[:, None] & wide[None, :]
        keys = tl.load(held + key_offset, mask=known, other=0.0)
        scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
        if CAP:
            # tanh by exp: 1 - 2 / (exp(2 u) + 1)
            scores = cap * (1.0 - 2.0 / (tl.exp(2.0 * scores / cap) + 1.0))
        seen = at[None, :] <= position[:, None]
        if WINDOW:
            seen = seen & (at[None, :] > position[:, None] - window)
        scores = tl.where(seen, scores, -1.0e30)
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        weights = tl.where(seen, tl.exp(scores - new_top[:, None]), 0.0)
        shrink = tl.exp(top - new_top)
        total = total * shrink + tl.sum(weights, axis=1)
        values = tl.load(held + value_offset, mask=known, other=0.0)
        acc = acc * shrink[:, None]
        acc += tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        top = new_top
    if SPLITS == 1:
        if SINKS:
            sink = tl.load(sinks + head, mask=there, other=0.0)
            new_top = tl.maximum(top, sink)
            shrink = tl.exp(top - new_top)
            total = total * shrink + tl.exp(sink - new_top)
            acc = acc * shrink[:, None]
        acc = acc / tl.where(there, total, 1.0)[:, None]
        tl.store(out + token[:, None] * out_stride + head[:, None] * D + d[None, :], acc, mask=both)
    else:
        line = (token * (KV_HEADS * GROUP) + head) * SPLITS + split
        tl.store(part + line[:, None] * D + d[None, :], acc, mask=both)
        tl.store(stats + line * 2, top, mask=there)
        tl.store(stats + line * 2 + 1, total, mask=there)


@triton.jit
def combine(
    part, stats, sinks, out, out_stride, D: tl.constexpr, WIDTH: tl.constexpr,
    HEADS: tl.constexpr, SPLITS: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    """Put the splits of one head of one query together. Splits without positions weigh nothing."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    split = tl.arange(0, SPLITS)
    d = tl.arange(0, WIDTH)
    line = (token * HEADS + head) * SPLITS + split
    tops = tl.load(stats + line * 2)
    sums = tl.load(stats + line * 2 + 1)
    top = tl.max(tops, axis=0)
    if SINKS:
        top = tl.maximum(top, tl.load(sinks + head))
    weights = tl.exp(tops - top)
    total = tl.sum(sums * weights, axis=0)
    if SINKS:
        total = total + tl.exp(tl.load(sinks + head) - top)
    wide = d < D
    values = tl.load(part + line[:, None] * D + d[None, :], mask=wide[None, :], other=0.0)
    acc = tl.sum(values * weights[:, None], axis=0) / total
    tl.store(out + token * out_stride + head * D + d, acc, mask=wide)
