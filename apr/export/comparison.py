"""Comparing the written model with its source: tensors, architecture, tokenizer, logits.

Every function gives an `Outcome` with the figures it judged by; the bounds are those of
`contracts/export.yaml` and, for a tensor, what its storage type promises.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt

from apr import contracts
from apr.architecture import Architecture
from apr.dtypes import DType
from apr.export.report import Outcome, failed, passed
from apr.formats.opened import OpenedModel
from apr.formats.streaming import Sources
from apr.quant import ERROR_BOUNDS, iter_float32
from apr.tensors import Bytes, Tensor

Float32 = npt.NDArray[np.float32]
_STEP = 8 << 20  # bytes compared at once; a multiple of every element's size
# Largest error where a type's numbers lose precision near zero (half of its smallest step), and
# for Q8_0 127 times that of the f16 scale.
_SMALLEST = {"F16": 2.0**-25, "BF16": 2.0**-134, "Q8_0": 127 * 2.0**-25}
# What an import states itself: name, provenance, and what follows from the architecture.
_NEW_IN_APR = {"name", "source", "created_at", "import", "hf_architecture", "hf_model_type"}


def tensors(source: OpenedModel, written: OpenedModel) -> Outcome:
    """Every tensor: equal bytes for the same type, else within the bound of the new one."""
    missing = sorted(source.tensors.keys() ^ written.tensors.keys())
    if missing:
        return failed(f"tensors differ: {', '.join(missing[:10])}")
    exact = within = 0
    largest = worst = 0.0
    worst_name = ""
    for name in source.tensors:
        sources = Sources()
        ours, theirs = sources.watch(source.tensors[name]), sources.watch(written.tensors[name])
        if ours.shape != theirs.shape:
            return failed(f"{name} is {list(theirs.shape)}, the source {list(ours.shape)}")
        if ours.dtype == theirs.dtype:
            place = first_difference(ours.raw(), theirs.raw(), sources)
            if place is not None:
                return failed(f"{name} ({ours.dtype.name}) differs from byte {place} on")
            exact += 1
        else:
            difference, ratio = deviation(ours, theirs, sources)
            within += 1
            largest = max(largest, difference)
            if not ratio <= 1:
                return failed(
                    f"{name} ({ours.dtype.name} to {theirs.dtype.name}) differs by {difference:g}, "
                    f"{ratio:g} times the bound of {theirs.dtype.name}",
                    tensor=name,
                    max_abs=difference,
                    of_bound=ratio,
                )
            if ratio > worst:
                worst, worst_name = ratio, name
        sources.release(forget=True)
    message = f"{exact} of {exact + within} equal to the bit"
    if within:
        message += f", {within} within the bound of their type (worst {worst:.2f} of it)"
    return passed(
        message, exact=exact, within=within, max_abs=largest, of_bound=worst, worst=worst_name
    )


def first_difference(first: Bytes, second: Bytes, sources: Sources) -> int | None:
    """The first byte at which two arrays differ, or None; pages that were read are given back."""
    if first.size != second.size:
        return min(first.size, second.size)
    for start in range(0, first.size, _STEP):
        a, b = first[start : start + _STEP], second[start : start + _STEP]
        if not np.array_equal(_wide(a), _wide(b)):
            return start + int((a != b).argmax())
        sources.release()
    return None


def _wide(data: Bytes) -> npt.NDArray[Any]:
    return data.view(np.uint64) if data.size % 8 == 0 else data


def deviation(source: Tensor, written: Tensor, sources: Sources) -> tuple[float, float]:
    """Largest difference, and the largest as a multiple of what the written type allows.

    Chunk by chunk; NaN and infinity where one of the two is not finite and the other differs.
    """
    largest = ratio = 0.0
    pairs = zip(
        iter_float32(source.dtype, source.raw(), source.shape),
        iter_float32(written.dtype, written.raw(), written.shape),
        strict=True,
    )
    for number, (a, b) in enumerate(pairs):
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            difference = np.abs(a.astype(np.float64) - b)
            difference[np.isnan(a) & np.isnan(b) | (a == b)] = 0.0
            allowed = _allowed(a, written.dtype)
            of_bound = np.where(difference == 0, 0.0, difference / allowed)
        if np.isnan(of_bound).any():
            return float("nan"), float("inf")
        largest = max(largest, float(difference.max(initial=0.0)))
        ratio = max(ratio, float(of_bound.max(initial=0.0)))
        if number % 64 == 63:
            sources.release()
    return largest, ratio


def _allowed(values: Float32, dtype: DType) -> npt.NDArray[np.float64]:
    """The largest error of each value; a relative one, of the largest in its block."""
    bound = ERROR_BOUNDS.get(dtype.name, 0.0)
    magnitude = np.abs(values.astype(np.float64))
    if dtype.block_size > 1:
        blocks = magnitude.reshape(-1, dtype.block_size).max(axis=1)
        magnitude = np.repeat(blocks, dtype.block_size)
    return magnitude * bound + _SMALLEST.get(dtype.name, 0.0)


def metadata(source: OpenedModel, written: OpenedModel) -> Outcome:
    """Architecture, licence, training record and the like, as the written file states them."""
    differences = architecture_differences(source.architecture, written.architecture)
    # An .apr file keeps all that its source says, apart from what is new about it.
    keys = (
        source.metadata.keys() - _NEW_IN_APR
        if written.format == "apr"
        else ("license", "author", "description", "training")
    )
    for key in sorted(keys):
        ours, theirs = source.metadata.get(key), written.metadata.get(key)
        if ours is not None and ours != theirs:
            differences.append(f"{key} is {_short(theirs)}, the source's {_short(ours)}")
    if differences:
        return failed("; ".join(differences))
    compared = len(fields(Architecture))
    record = ", training record equal" if source.training is not None else ""
    kept = len([k for k in keys if source.metadata.get(k) is not None])
    return passed(f"architecture equal ({compared} values), further entries: {kept}{record}")


def architecture_differences(source: Architecture, written: Architecture) -> list[str]:
    """Values that differ, a line each; floats are compared as the float32 that GGUF keeps."""
    out = []
    for field in fields(Architecture):
        ours, theirs = getattr(source, field.name), getattr(written, field.name)
        if not _same(ours, theirs):
            out.append(f"{field.name} is {theirs!r}, the source's {ours!r}")
    return out


def _same(ours: object, theirs: object) -> bool:
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        return ours.keys() == theirs.keys() and all(_same(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, float) and isinstance(theirs, float):
        return bool(np.float32(ours) == np.float32(theirs))
    return bool(ours == theirs)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 80 else text[:77] + "..."


def tokenizers(source: OpenedModel, written: OpenedModel, texts: list[str]) -> Outcome:
    """Special ids, chat template, token list, and the ids of every text."""
    ours, theirs = source.require_tokenizer(), written.require_tokenizer()
    for name in ("bos_token_id", "eos_token_ids", "pad_token_id", "chat_template"):
        a, b = getattr(ours, name), getattr(theirs, name)
        if name == "bos_token_id" and a is None and written.format == "gguf":
            # GGUF's readers invent a bos where none is named, so one is named; it is not added.
            if theirs.added_around != ours.added_around:
                return failed(f"bos {b} is put before every text, the source has none")
        elif a != b:
            return failed(f"{name} is {_short(b)}, the source's {_short(a)}")
    rows = source.architecture.vocab_size
    a_tokens, b_tokens = ours.resized(rows).tokens(), theirs.resized(rows).tokens()
    if a_tokens != b_tokens:
        place = next(i for i, (a, b) in enumerate(zip(a_tokens, b_tokens, strict=True)) if a != b)
        return failed(f"token {place} is {b_tokens[place]!r}, the source's {a_tokens[place]!r}")
    return same_ids(texts, ours.encode_batch(texts), theirs.encode_batch(texts))


def same_ids(texts: list[str], ours: list[list[int]], theirs: list[list[int]]) -> Outcome:
    """Token ids of the same texts, from two tokenizers."""
    if len(ours) != len(texts) or len(theirs) != len(texts):
        return failed(f"{len(theirs)} of {len(texts)} texts came back")
    for text, a, b in zip(texts, ours, theirs, strict=True):
        if a != b:
            at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
            place = min(len(a), len(b)) if at is None else at
            return failed(
                f"token {place} of {text[:40]!r} is {b[place : place + 3]}, "
                f"the source's {a[place : place + 3]}"
            )
    count = sum(map(len, ours))
    if not count:
        return failed("no text gave a token, so nothing was compared")
    letters = sum(map(len, texts))
    return passed(f"{count:,} ids of {letters:,} characters equal", texts=len(texts), tokens=count)


def logits(source: Float32, written: Float32, bound: Mapping[str, float]) -> Outcome:
    """Logits `[tokens, vocab]` of both, judged by `max_abs` or `relative_rms` of the bound."""
    if source.shape != written.shape:
        return failed(f"logits are {list(written.shape)}, expected {list(source.shape)}")
    if not np.isfinite(source).all() or not np.isfinite(written).all():
        return failed("logits are not finite, so they cannot be compared")
    difference = source.astype(np.float64) - written
    largest = float(np.abs(difference).max())
    scale = float(np.sqrt(np.mean(np.square(source, dtype=np.float64))))
    error = float(np.sqrt(np.mean(np.square(difference))))
    relative = error / scale if scale else (0.0 if error == 0 else float("inf"))
    top = int((source.argmax(-1) == written.argmax(-1)).sum())
    message = (
        f"largest difference {largest:.2e}, relative rms {relative:.2e} "
        f"over {len(source)} positions, top-1 equal at {top}"
    )
    judge = passed if largest <= bound["max_abs"] or relative <= bound["relative_rms"] else failed
    if judge is failed:
        message += f"; allowed {bound['max_abs']:g} or relative {bound['relative_rms']:g}"
    return judge(
        message,
        max_abs=largest,
        relative_rms=relative,
        top1=top,
        positions=len(source),
        bound=dict(bound),
    )


def rules() -> dict[str, Any]:
    """The bounds of the proof."""
    return contracts.load("export")
