"""Products with the stored weights, for a few tokens at once: each weight is read once.

Purpose: the Triton kernels that decoding stands on, and the one that unpacks rows (for embeddings,
and for prompts, whose products are cuBLAS'). Promise: codes and scales are put together in float32,
sums are float32; what is decoded is what the gguf package decodes. An RMS norm of the activation, a
bias, the gated unit and the addition to the stream happen on the way.

Written for what the compiler takes as well as the interpreter: block shapes are powers of two, all
loads are masked, offsets of rows are 64-bit.
"""
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _activated(y, ACT: tl.constexpr):
    """silu, gelu, its tanh form, relu, relu squared: numbered as apr/native/program.py does."""
    if ACT == 0:
        out = y / (1.0 + tl.exp(-y))
    elif ACT == 1:
        out = 0.5 * y * (1.0 + tl.erf(y * 0.7071067811865476))
    elif ACT == 2:
        u = 0.7978845608028654 * (y + 0.044715 * y * y * y)
        out = 0.5 * y * (2.0 - 2.0 / (tl.exp(2.0 * u) + 1.0))
    elif ACT == 3:
        out = tl.maximum(y, 0.0)
    else:
        positive = tl.maximum(y, 0.0)
        out = positive * positive
    return out


@triton.jit
def _codes(words, upper, i: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
           ZERO: tl.constexpr, SCALING: tl.constexpr):  # fmt: skip
    """The numbers that the i-th codes of these words stand for, before scaling, float32."""
    if LOW == 8:
        q = words.to(tl.float32)
    elif LOW == 2:
        q = ((words.to(tl.int32) >> (2 * i)) & 3).to(tl.float32) - ZERO
    elif SCALING == 4:
        code = (words >> (4 * i)) & 15
        size = code & 7
        big = (2 + (size & 1)) << tl.maximum((size >> 1) - 1, 0)
        value = tl.where(size < 2, size, big)
        q = tl.where(code >= 8, -value, value).to(tl.float32)
    elif HIGH == 0:
        # A code in the mantissa of a power of two is a number at once: no shift, no conversion.
        if i < 5:
            bits = (words & (15 << (4 * i))) | ((150 - 4 * i) << 23)
            q = bits.to(tl.float32, bitcast=True) - ((1 << (23 - 4 * i)) + ZERO)
        else:
            bits = ((words >> 12) & (15 << (4 * i - 12))) | ((162 - 4 * i) << 23)
            q = bits.to(tl.float32, bitcast=True) - ((1 << (35 - 4 * i)) + ZERO)
    else:
        more = (upper.to(tl.int32) >> (HIGH * i)) & ((1 << HIGH) - 1)
        q = (((words >> (4 * i)) & 15) | (more << 4)).to(tl.float32) - ZERO
    return q


@triton.jit
def _scaled(q, scales, minima, supers, at, spans, span, inside, i: tl.constexpr,
            STEPS: tl.constexpr, PER: tl.constexpr, SCALING: tl.constexpr):  # fmt: skip
    """Weights out of numbers. `at` [ROWS, 1] is the row, `span` [1, SPANS], `inside` both.

    SCALING: 0 a float16 scale; 1 with a float16 minimum, added; 2 six-bit scales and minima under
    two float16 of 256 elements; 3 eight-bit scales under one; 4 a power of two; 5 one of 256.
    """
    if SCALING == 5:
        d = tl.load(supers + at * (spans // 2) + span // 2, mask=inside, other=0.0).to(tl.float32)
        w = q * d[:, :, None]
    else:
        index = at * (spans * PER) + span * PER + (i * PER) // STEPS
        if SCALING == 0:
            d = tl.load(scales + index, mask=inside, other=0.0).to(tl.float32)
            w = q * d[:, :, None]
        elif SCALING == 1:
            d = tl.load(scales + index, mask=inside, other=0.0).to(tl.float32)
            m = tl.load(minima + index, mask=inside, other=0.0).to(tl.float32)
            w = q * d[:, :, None] + m[:, :, None]
        elif SCALING == 2:
            pair = at * spans + (span // 2) * 2
            d = tl.load(supers + pair, mask=inside, other=0.0).to(tl.float32)
            m = tl.load(supers + pair + 1, mask=inside, other=0.0).to(tl.float32)
            d = d * tl.load(scales + index, mask=inside, other=0).to(tl.float32)
            m = m * tl.load(minima + index, mask=inside, other=0).to(tl.float32)
            w = q * d[:, :, None] - m[:, :, None]
        elif SCALING == 3:
            d = tl.load(supers + at * (spans // 2) + span // 2, mask=inside, other=0.0)
            d = d.to(tl.float32) * tl.load(scales + index, mask=inside, other=0).to(tl.float32)
            w = q * d[:, :, None]
        else:
            e = tl.load(scales + index, mask=inside, other=0).to(tl.int32)
            d = (tl.maximum(e - 1, 0) << 23).to(tl.float32, bitcast=True)  # 2 ** (e - 128)
            w = q * d[:, :, None]
    return w


@triton.jit
def matvec_blocks(
    x, x_stride, count, gain, eps,
    low, high, scales, minima, supers,
    low2, high2, scales2, minima2, supers2,
    bias, bias2, out, out_stride, rows, columns, spans,
    BATCH: tl.constexpr, ROWS: tl.constexpr, SPANS: tl.constexpr,
    SPAN: tl.constexpr, WORDS: tl.constexpr, STEPS: tl.constexpr,
    LOW: tl.constexpr, HIGH: tl.constexpr, ZERO: tl.constexpr, SCALING: tl.constexpr,
    PER: tl.constexpr, NORM: tl.constexpr, GATED: tl.constexpr, ACT: tl.constexpr,
    BIAS: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """Out = weights of a block type times `count` <= BATCH activations, after a norm of these.

    One program: ROWS rows of the weight, all of their spans, SPANS at a time.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = row < rows
    at = row.to(tl.int64)[:, None]
    token = tl.arange(0, BATCH)
    word = tl.arange(0, WORDS)
    acc = tl.zeros((BATCH, ROWS, SPANS, WORDS), dtype=tl.float32)
    acc2 = tl.zeros((BATCH, ROWS, SPANS, WORDS), dtype=tl.float32)
    squares = tl.zeros((BATCH, SPANS, WORDS), dtype=tl.float32)
    for start in range(0, spans, SPANS):
        span = start + tl.arange(0, SPANS)
        inside = there[:, None] & (span < spans)[None, :]
        place = at[:, :, None] * (spans * WORDS) + (span[:, None] * WORDS + word[None, :])[None]
        words = tl.load(low + place, mask=inside[:, :, None], other=0)
        upper = words
        if HIGH > 0:
            upper = tl.load(high + place, mask=inside[:, :, None], other=0)
        words2 = words
        upper2 = words
        if GATED:
            words2 = tl.load(low2 + place, mask=inside[:, :, None], other=0)
            upper2 = words2
            if HIGH > 0:
                upper2 = tl.load(high2 + place, mask=inside[:, :, None], other=0)
        for i in tl.static_range(STEPS):
            k = span[:, None] * SPAN + i * WORDS + word[None, :]
            value = tl.load(
                x + token[:, None, None] * x_stride + k[None],
                mask=(token < count)[:, None, None] & (k < columns)[None], other=0.0,
            ).to(tl.float32)  # fmt: skip
            if NORM:
                squares += value * value
                value = value * tl.load(gain + k, mask=k < columns, other=0.0)[None]
            q = _codes(words, upper, i, LOW, HIGH, ZERO, SCALING)
            w = _scaled(q, scales, minima, supers, at, spans, span[None, :], inside, i, STEPS,
                        PER, SCALING)  # fmt: skip
            acc += w[None] * value[:, None]
            if GATED:
                q2 = _codes(words2, upper2, i, LOW, HIGH, ZERO, SCALING)
                w2 = _scaled(q2, scales2, minima2, supers2, at, spans, span[None, :], inside, i,
                             STEPS, PER, SCALING)  # fmt: skip
                acc2 += w2[None] * value[:, None]
    y = tl.sum(tl.sum(acc, axis=3), axis=2)
    factor = tl.full((BATCH,), 1.0, dtype=tl.float32)
    if NORM:
        factor = tl.rsqrt(tl.sum(tl.sum(squares, axis=2), axis=1) / columns + eps)
    y = y * factor[:, None]
    y2 = y
    if GATED:
        y2 = tl.sum(tl.sum(acc2, axis=3), axis=2) * factor[:, None]
    _finish(y, y2, bias, bias2, out, out_stride, row, there, token, count, GATED, ACT, BIAS, ADD)


@triton.jit
def matvec_plain(
    x, x_stride, count, gain, eps, weight, weight2, bias, bias2, out, out_stride, rows, columns,
    BATCH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, NORM: tl.constexpr,
    GATED: tl.constexpr, ACT: tl.constexpr, BIAS: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """The same with a plain matrix `[rows, columns]` of float32, float16 or bfloat16."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = row < rows
    at = row.to(tl.int64)[:, None] * columns
    token = tl.arange(0, BATCH)
    acc = tl.zeros((BATCH, ROWS, COLUMNS), dtype=tl.float32)
    acc2 = tl.zeros((BATCH, ROWS, COLUMNS), dtype=tl.float32)
    squares = tl.zeros((BATCH, COLUMNS), dtype=tl.float32)
    for start in range(0, columns, COLUMNS):
        k = start + tl.arange(0, COLUMNS)
        mask = there[:, None] & (k < columns)[None, :]
        w = tl.load(weight + at + k[None, :], mask=mask, other=0.0).to(tl.float32)
        value = tl.load(
            x + token[:, None] * x_stride + k[None, :],
            mask=(token < count)[:, None] & (k < columns)[None, :], other=0.0,
        ).to(tl.float32)  # fmt: skip
        if NORM:
            squares += value * value
            value = value * tl.load(gain + k, mask=k < columns, other=0.0)[None, :]
        acc += w[None] * value[:, None]
        if GATED:
            w2 = tl.load(weight2 + at + k[None, :], mask=mask, other=0.0).to(tl.float32)
            acc2 += w2[None] * value[:, None]
    y = tl.sum(acc, axis=2)
    factor = tl.full((BATCH,), 1.0, dtype=tl.float32)
    if NORM:
        factor = tl.rsqrt(tl.sum(squares, axis=1) / columns + eps)
    y = y * factor[:, None]
    y2 = y
    if GATED:
        y2 = tl.sum(acc2, axis=2) * factor[:, None]
    _finish(y, y2, bias, bias2, out, out_stride, row, there, token, count, GATED, ACT, BIAS, ADD)


@triton.jit
def _finish(y, y2, bias, bias2, out, out_stride, row, there, token, count, GATED: tl.constexpr,
            ACT: tl.constexpr, BIAS: tl.constexpr, ADD: tl.constexpr):  # fmt: skip
    """Bias, gated unit, addition, store; `y` is [BATCH, ROWS]."""
    if BIAS:
        y = y + tl.load(bias + row, mask=there, other=0.0)[None, :]
    if GATED:
        if BIAS:
            y2 = y2 + tl.load(bias2 + row, mask=there, other=0.0)[None, :]
        y = _activated(y, ACT) * y2
    mask = (token < count)[:, None] & there[None, :]
    place = out + token[:, None].to(tl.int64) * out_stride + row[None, :]
    if ADD:
        y = y + tl.load(place, mask=mask, other=0.0)
    tl.store(place, y, mask=mask)


@triton.jit
def unpack_blocks(
    ids, out, out_stride, factor, first, count, low, high, scales, minima, supers, columns, spans,
    ROWS: tl.constexpr, SPANS: tl.constexpr, SPAN: tl.constexpr, WORDS: tl.constexpr,
    STEPS: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, ZERO: tl.constexpr,
    SCALING: tl.constexpr, PER: tl.constexpr, CHOSEN: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """`count` rows of a block type, times a factor: those of `ids` (CHOSEN), else from `first`."""
    number = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = number < count
    source = number + first
    if CHOSEN:
        source = tl.load(ids + number, mask=there, other=0)
    at = source.to(tl.int64)[:, None]
    span = tl.program_id(1) * SPANS + tl.arange(0, SPANS)
    word = tl.arange(0, WORDS)
    inside = there[:, None] & (span < spans)[None, :]
    place = at[:, :, None] * (spans * WORDS) + (span[:, None] * WORDS + word[None, :])[None]
    words = tl.load(low + place, mask=inside[:, :, None], other=0)
    upper = words
    if HIGH > 0:
        upper = tl.load(high + place, mask=inside[:, :, None], other=0)
    target = out + number.to(tl.int64)[:, None, None] * out_stride
    for i in tl.static_range(STEPS):
        k = (span[:, None] * SPAN + i * WORDS + word[None, :])[None]
        mask = there[:, None, None] & (k < columns)
        q = _codes(words, upper, i, LOW, HIGH, ZERO, SCALING)
        w = _scaled(q, scales, minima, supers, at, spans, span[None, :], inside, i, STEPS, PER,
                    SCALING)  # fmt: skip
        w = w * factor
        if ADD:
            w = w + tl.load(target + k, mask=mask, other=0.0).to(tl.float32)
        tl.store(target + k, w, mask=mask)


@triton.jit
def unpack_plain(
    ids, out, out_stride, factor, weight, columns, COLUMNS: tl.constexpr, ADD: tl.constexpr
):
    """Rows of a plain matrix by their numbers, times a factor."""
    number = tl.program_id(0)
    source = tl.load(ids + number).to(tl.int64)
    k = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    w = tl.load(weight + source * columns + k, mask=k < columns, other=0.0).to(tl.float32) * factor
    target = out + number.to(tl.int64) * out_stride + k
    if ADD:
        w = w + tl.load(target, mask=k < columns, other=0.0)
    tl.store(target, w, mask=k < columns)
