"""Tokenizers of two models: what they hold, and the ids that they give for real text."""

from __future__ import annotations

from typing import Any

from apr.diff.difference import FieldDifference, NotCompared, Section
from apr.export.samples import proof_texts
from apr.formats.opened import OpenedModel
from apr.tokenizer import Tokenizer

_IDS = ("bos_token_id", "eos_token_ids", "pad_token_id", "unk_token_id")


def compare_tokenizers(a: OpenedModel, b: OpenedModel) -> Section:
    """Token list, merges, special ids, chat template, pre-tokenizer, and the ids of real text.

    Fillers at the end of the token list are no difference. A tokenizer that only one side has is
    one.

    Raises:
        InvalidFormat: a tokenizer does not fit together.
        FeatureUnavailable: a GGUF's tokenizer is not one that `apr` can rebuild.
    """
    ours, theirs = a.tokenizer, b.tokenizer
    if ours is None and theirs is None:
        return Section(not_compared=(NotCompared("tokenizer", "neither model has one"),))
    if ours is None or theirs is None:
        words = ("none", "present") if ours is None else ("present", "none")
        return Section(different=(FieldDifference("tokenizer", *words),))
    equal: list[str] = []
    different: list[FieldDifference] = []
    unsaid: list[NotCompared] = []

    def judge(name: str, x: Any, y: Any) -> None:
        if x == y:
            equal.append(name)
        else:
            different.append(FieldDifference(name, x, y))

    rows = max(ours.vocab_size, theirs.vocab_size)
    for name, x, y in (
        ("tokens", ours.resized(rows).tokens(), theirs.resized(rows).tokens()),
        ("merges", ours.merges(), theirs.merges()),
    ):
        from_scores = "llama" in (ours.gguf_model, theirs.gguf_model) and a.format != b.format
        if name == "merges" and from_scores and "gguf" in (a.format, b.format):
            unsaid.append(NotCompared(name, "a SentencePiece GGUF states scores, not merges"))
        elif not x and not y:
            unsaid.append(NotCompared(name, "neither has any"))
        else:
            judge(name, *_listed(x, y))
    for name in _IDS:
        x, y = getattr(ours, name), getattr(theirs, name)
        if name in ("bos_token_id", "unk_token_id") and x != y and _named_by_gguf(a, b, x, y):
            # GGUF's readers invent a bos where none is named, so the file names one.
            unsaid.append(NotCompared(name, f"{x} and {y}: a GGUF names one where none is used"))
        elif x == y and x in (None, ()):
            unsaid.append(NotCompared(name, "neither states one"))
        else:
            judge(name, x, y)
    judge("ids around a text", ours.added_around, theirs.added_around)
    for name in ("chat_template", "pre_type"):
        x, y = getattr(ours, name), getattr(theirs, name)
        if x is None and y is None:
            unsaid.append(NotCompared(name, "neither states one"))
        else:
            judge(name, x, y)
    _judge_ids(ours, theirs, equal, different, unsaid)
    return Section(tuple(equal), tuple(different), tuple(unsaid))


def _named_by_gguf(a: OpenedModel, b: OpenedModel, x: object, y: object) -> bool:
    if x is None:
        return b.format == "gguf" and a.format != "gguf"
    return y is None and a.format == "gguf" and b.format != "gguf"


def _listed(x: list[str], y: list[str]) -> tuple[Any, Any]:
    """Two equal values for equal lists, else the first place where they part."""
    if x == y:
        return len(x), len(y)
    place = next(
        (i for i, (p, q) in enumerate(zip(x, y, strict=False)) if p != q), min(len(x), len(y))
    )
    return tuple(
        {"length": len(z), "place": place, "there": z[place] if place < len(z) else None}
        for z in (x, y)
    )  # type: ignore[return-value]


def _judge_ids(
    ours: Tokenizer,
    theirs: Tokenizer,
    equal: list[str],
    different: list[FieldDifference],
    unsaid: list[NotCompared],
) -> None:
    texts = proof_texts()
    pairs = list(zip(texts, ours.encode_batch(texts), theirs.encode_batch(texts), strict=True))
    count = sum(len(x) for _, x, _ in pairs)
    name = f"ids of {len(texts)} texts"
    for text, x, y in pairs:
        if x != y:
            at = next((i for i, (p, q) in enumerate(zip(x, y, strict=False)) if p != q), None)
            place = min(len(x), len(y)) if at is None else at
            found = [
                {"text": text[:40], "place": place, "ids": ids[place : place + 3]} for ids in (x, y)
            ]
            different.append(FieldDifference(name, *found))
            return
    if count:
        equal.append(f"{name} ({count} tokens)")
    else:
        unsaid.append(NotCompared(name, "no text gave a token"))
