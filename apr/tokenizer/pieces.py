"""A vocabulary of scored pieces (SentencePiece's BPE and unigram) as a tokenizer.json.

The same pieces come from a `tokenizer.model` and from a GGUF's keys; both are built here, so that
one text gives the same ids whichever it came from. What SentencePiece does, and the step for it:

- its normalization rules: `Precompiled`; spaces taken together and cut off at both ends: two
  `Replace` steps; a space put before the text: `Prepend`; spaces written as U+2581: `Replace`;
- pieces joined by score: BPE merges in the order of the scores; the most probable: `Unigram`;
- a character that is no piece: its bytes, where the model has them, else the unknown token.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from apr.tokenizer import sentencepiece as sp
from apr.tokenizer import spec as specs

SPACE = "\u2581"  # SentencePiece's mark for a space


@dataclass(frozen=True)
class Rules:
    """What is done to a text before it is cut into pieces.

    `prefix`: where a space is put: "always" (before each stretch of text between special tokens, as
    llama.cpp does), "first" (before the first alone, if it has none: transformers' `legacy=False`),
    "never".
    """

    prefix: str
    charsmap: bytes = b""
    remove_extra_whitespaces: bool = False


def specification(
    pieces: Sequence[sp.Piece | None],
    rules: Rules,
    *,
    kind: int,
    byte_fallback: bool,
    unk_id: int | None,
) -> specs.Json:
    """The tokenizer.json, without a post-processor.

    Args:
        pieces: by id; None is an id without a meaning.
        rules: see `Rules`.
        kind: `sentencepiece.BPE` or `sentencepiece.UNIGRAM`.
        byte_fallback: whether unknown characters become bytes.
        unk_id: the piece for what is unknown, None where there is none.
    """
    known = {id: piece for id, piece in enumerate(pieces) if piece is not None}
    spec = empty()
    spec["normalizer"], before = _normalization(rules)
    spec["decoder"] = _decoder(rules.prefix != "never")
    if kind == sp.UNIGRAM:
        before = [*before, *guard(known.values())]
        spec["model"] = {
            "type": "Unigram",
            "unk_id": unk_id,
            "vocab": [
                # The list has no gaps; a piece that nothing gives stands where an id means nothing.
                [known[id].text, known[id].score] if id in known else [f"<|filler_{id}|>", 0.0]
                for id in range(max(known, default=-1) + 1)
            ],
            "byte_fallback": byte_fallback,
        }
    else:
        unknown = known.get(-1 if unk_id is None else unk_id)
        joined = {p.text: id for id, p in known.items() if p.type in (sp.NORMAL, sp.UNUSED)}
        spec["model"] |= {
            "unk_token": None if unknown is None else unknown.text,
            "fuse_unk": True,
            "byte_fallback": byte_fallback,
            "vocab": {piece.text: id for id, piece in known.items()},
            "merges": merges(joined, [piece.score if piece else 0.0 for piece in pieces]),
        }
    if before:
        spec["pre_tokenizer"] = (
            before[0] if len(before) == 1 else {"type": "Sequence", "pretokenizers": before}
        )
    spec["added_tokens"] = [
        added_token(id, piece.text, special=piece.type != sp.USER_DEFINED)
        for id, piece in known.items()
        if piece.type in (sp.UNKNOWN, sp.CONTROL, sp.USER_DEFINED)
    ]
    return spec


def guard(pieces: Iterable[sp.Piece]) -> list[specs.Json]:
    """A step that keeps `<s>` and `<0x41>` in a text from being read as those pieces.

    The library's Unigram looks for every entry of its vocabulary, SentencePiece and llama.cpp for
    what is no control and no byte. Cut in two, such a text cannot be found. The cut is made where
    no other piece stands across it, if there is such a place.
    """
    pieces = list(pieces)
    hidden = (sp.CONTROL, sp.UNKNOWN, sp.BYTE)
    taken = {
        piece.text[cut : cut + 2]
        for piece in pieces
        if piece.type not in hidden
        for cut in range(len(piece.text) - 1)
    }
    patterns = []
    if any(piece.type == sp.BYTE for piece in pieces):
        if "<0" in taken and "0x" not in taken:
            patterns.append("(?<=<0)x(?=[0-9A-F]{2}>)")
        else:
            patterns.append("(?<=<)0(?=x[0-9A-F]{2}>)")
    for text in sorted(p.text for p in pieces if p.type in hidden and p.type != sp.BYTE):
        cuts = range(1, len(text))
        free = [cut for cut in cuts if text[cut - 1 : cut + 1] not in taken] or list(cuts)
        for cut in free[:1]:
            before, at, behind = text[:cut], text[cut], text[cut + 1 :]
            ahead = f"(?={re.escape(behind)})" if behind else ""
            patterns.append(f"(?<={re.escape(before)}){re.escape(at)}{ahead}")
    if not patterns:
        return []
    return [
        {
            "type": "Split",
            "pattern": {"Regex": "|".join(patterns)},
            "behavior": "MergedWithNext",
            "invert": False,
        }
    ]


def _normalization(rules: Rules) -> tuple[specs.Json | None, list[specs.Json]]:
    """The normalizer, and the steps of the pre-tokenizer."""
    steps: list[specs.Json] = []
    if rules.charsmap:
        encoded = base64.b64encode(rules.charsmap).decode("ascii")
        steps.append({"type": "Precompiled", "precompiled_charsmap": encoded})
    if rules.remove_extra_whitespaces:
        steps.append(_replace({"Regex": r"\A +| +\z"}, ""))
        steps.append(_replace({"Regex": " {2,}"}, " "))
    before: list[specs.Json] = []
    if rules.prefix == "first":
        before = [
            {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first", "split": False}
        ]
    else:
        if rules.prefix == "always":
            steps.append({"type": "Prepend", "prepend": SPACE})
        steps.append(_replace({"String": " "}, SPACE))
    return ({"type": "Sequence", "normalizers": steps} if steps else None), before


def _decoder(prefix: bool) -> specs.Json:
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    steps = [_replace({"String": SPACE}, " "), {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]
    return {"type": "Sequence", "decoders": steps}


def _replace(pattern: specs.Json, content: str) -> specs.Json:
    return {"type": "Replace", "pattern": pattern, "content": content}


def merges(pieces: Mapping[str, int], scores: Sequence[float]) -> list[list[str]]:
    """Every pair of pieces that makes a piece, the highest score first (SentencePiece's order).

    Of equal scores (runs of spaces often have one) SentencePiece joins the leftmost pair. The
    longest left part first does the same: a run then grows from its left end.
    """
    found: list[tuple[float, int, int, str, str]] = []
    for token, id in pieces.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in pieces and right in pieces:
                found.append((-scores[id], -len(left), -len(right), left, right))
    return [[left, right] for *_, left, right in sorted(found)]


def empty() -> specs.Json:
    """A tokenizer.json of a BPE model without entries."""
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": False,
        },
    }  # fmt: skip


def added_token(id: int, text: str, *, special: bool) -> specs.Json:
    """An entry of `added_tokens` that is matched literally, wherever it stands."""
    return {
        "id": id, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
        "normalized": False, "special": special,
    }  # fmt: skip


def template(before: Sequence[tuple[int, str]], after: Sequence[tuple[int, str]]) -> Any:
    """The post-processor that puts tokens (id, text) around a text; None where there are none."""
    if not before and not after:
        return None

    def one(sequence: str, number: int) -> list[specs.Json]:
        def special(token: tuple[int, str]) -> specs.Json:
            return {"SpecialToken": {"id": token[1], "type_id": number}}

        middle = {"Sequence": {"id": sequence, "type_id": number}}
        return [*map(special, before), middle, *map(special, after)]

    return {
        "type": "TemplateProcessing",
        "single": one("A", 0),
        "pair": one("A", 0) + one("B", 1),
        "special_tokens": {
            text: {"id": text, "ids": [id], "tokens": [text]} for id, text in (*before, *after)
        },
    }
