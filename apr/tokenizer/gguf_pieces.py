"""Scored pieces as GGUF keys: `llama` (SentencePiece's BPE) and `t5` (unigram), both ways.

What a tokenizer.json does before it cuts pieces is found by what it does to the probe texts, since
the same is written in many ways (`Prepend` and `Replace`, `Metaspace`, ...). llama.cpp's `llama`
can put a space before a text and write spaces as U+2581; its `t5` also applies SentencePiece's
compiled rules and takes spaces together. Scores are float32 there.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from apr.errors import InvalidFormat
from apr.tokenizer import ggufown, pieces, probe
from apr.tokenizer import sentencepiece as sp
from apr.tokenizer import spec as specs
from apr.tokenizer.library import build
from apr.tokenizer.pieces import SPACE, Rules
from apr.tokenizer.recognition import Difference
from apr.tokenizer.tokenizer import Tokenizer, byte_token

NEVER = -1e9  # the score of a piece that no merge makes
ADDED = -1000.0  # the score of an added token, as llama.cpp's converter writes it


@dataclass(frozen=True)
class Normalization:
    """What is done to a text before it is cut, as near as GGUF can say it.

    Attributes:
        rules: what the keys state.
        difference: the first probe text that llama.cpp's reading of them changes otherwise.
        leading_space: the only difference is that no space is put before a text that has one.
    """

    rules: Rules
    difference: Difference | None
    leading_space: bool = False


def normalization(tokenizer: Tokenizer) -> Normalization:
    """What the normalizer and the pre-tokenizer do to the probe texts."""
    spec = tokenizer.spec
    charsmap = base64.b64decode(ggufown.charsmap(spec.get("normalizer")))
    guard = pieces.guard(_pieces(tokenizer))
    own = _applied(spec, guard)
    texts = ("", " ", "   ", " a", "  a b ", *probe.texts())
    done = [own(text) for text in texts]
    mapped = _mapped(charsmap)
    candidates = [
        Rules(prefix, charsmap, spaces)
        for spaces in (False, True)
        for prefix in ("always", "never")
    ]
    split = _crosses(tokenizer) if any(len(found) > 1 for found in done) else None
    best: tuple[int, Normalization] | None = None
    for rules in candidates:
        for leading in (False, True) if rules.prefix == "always" else (False,):
            expected = [_expected(mapped(text), rules, keep_space=leading) for text in texts]
            wrong = [
                Difference(text, tuple(a), (b,))
                for text, a, b in zip(texts, done, expected, strict=True)
                if "".join(a) != b or (split is not None and not _at_spaces(a))
            ]
            first = wrong[0] if wrong else split
            found = Normalization(rules, first, leading and first is None)
            if best is None or len(wrong) < best[0]:
                best = (len(wrong), found)
            if not wrong:
                return found
    assert best is not None
    return best[1]


def _expected(text: str, rules: Rules, *, keep_space: bool) -> str:
    if rules.remove_extra_whitespaces:
        text = " ".join(part for part in text.split(" ") if part)
    if rules.prefix == "always" and text and not (keep_space and text.startswith((" ", SPACE))):
        text = " " + text
    return text.replace(" ", SPACE)


def _applied(spec: Mapping[str, Any], guard: Sequence[specs.Json]) -> Callable[[str], list[str]]:
    """A function that gives the pieces of text that the model gets."""
    section = spec.get("pre_tokenizer") or {}
    steps = section["pretokenizers"] if section.get("type") == "Sequence" else [section]
    steps = [step for step in steps if step and step not in guard]
    backend: Any = build(
        {
            "version": "1.0", "added_tokens": [], "post_processor": None, "decoder": None,
            "normalizer": spec.get("normalizer"),
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps} if steps else None,
            "model": {"type": "BPE", "vocab": {}, "merges": []},
        },
        "tokenizer.json",
    )  # fmt: skip

    def apply(text: str) -> list[str]:
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        if backend.pre_tokenizer is None:
            return [text]
        return [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)]

    return apply


def _mapped(charsmap: bytes) -> Callable[[str], str]:
    if not charsmap:
        return lambda text: text
    from tokenizers import normalizers

    step: Any = normalizers.Precompiled(charsmap)
    return lambda text: str(step.normalize_str(text))


def _at_spaces(found: Sequence[str]) -> bool:
    return all(piece.startswith(SPACE) for piece in found[1:])


def _crosses(tokenizer: Tokenizer) -> Difference | None:
    """A vocabulary entry that stands across the border of two words."""
    for text, id in specs.model_entries(tokenizer.spec):
        if SPACE in text[1:] and id not in tokenizer.added:
            cut = text.index(SPACE, 1)
            return Difference(text, (text[:cut], text[cut:]), (text,))
    return None


def _pieces(tokenizer: Tokenizer) -> list[sp.Piece]:
    """The pieces with the types that a GGUF states, scores left out."""
    out = []
    for id, text in enumerate(tokenizer.tokens()):
        kind = sp.NORMAL
        if id in tokenizer.added:
            kind = sp.CONTROL if tokenizer.is_special(id) else sp.USER_DEFINED
        elif id == tokenizer.unk_token_id:
            kind = sp.UNKNOWN
        elif byte_token(text) is not None:
            kind = sp.BYTE
        out.append(sp.Piece(text, 0.0, kind))
    return out


# -- writing ----------------------------------------------------------------------------------


def keys(tokenizer: Tokenizer, tokens: list[str], rules: Rules) -> dict[str, Any]:
    """The keys that only these models have, without their prefix."""
    out: dict[str, Any] = {
        "scores": [_float32(score) for score in _scores(tokenizer, tokens)],
        "add_space_prefix": rules.prefix != "never",
    }
    if tokenizer.gguf_model == "t5":
        out["remove_extra_whitespaces"] = rules.remove_extra_whitespaces
        out["precompiled_charsmap"] = rules.charsmap or None
    return out


def _scores(tokenizer: Tokenizer, tokens: list[str]) -> list[float]:
    if specs.is_unigram(tokenizer.spec):
        scores = [float(score) for _, score in tokenizer.spec["model"]["vocab"]]
    elif tokenizer.scores is not None:
        scores = list(tokenizer.scores)
    else:
        return _ranks(tokenizer, tokens)
    # llama.cpp finds unused pieces too, by their score.
    return [
        scores[id] if id < len(scores) else (NEVER if tokenizer.is_filler(id) else ADDED)
        for id in range(len(tokens))
    ]


def _ranks(tokenizer: Tokenizer, tokens: list[str]) -> list[float]:
    """Scores that give the order of the merges: the earlier pieces are joined, the higher.

    Pieces whose merges stand among each other (runs of spaces, in files made from equal scores) get
    the same one.
    """
    texts = ["".join(pair) for pair in specs.merge_pairs(tokenizer.spec)]
    last = {text: number for number, text in enumerate(texts)}
    rank: dict[str, int] = {}
    group, end = 0, -1
    for number, text in enumerate(texts):
        if number > end:
            group = number
        rank.setdefault(text, group)
        end = max(end, last[text])
    out = []
    for id, text in enumerate(tokens):
        if text in rank and not tokenizer.is_filler(id):
            out.append(-float(rank[text] + 1))
        elif tokenizer.is_filler(id) or id in tokenizer.added:
            out.append(ADDED)
        else:
            out.append(0.0 if byte_token(text) is not None else NEVER)
    return out


def _float32(score: float) -> float:
    found: float = struct.unpack("<f", struct.pack("<f", score))[0]
    return found


def unlike_scores(tokenizer: Tokenizer, scores: Sequence[float]) -> str | None:
    """How merges differ from what scores give: a sentence; None where they do not.

    llama.cpp joins any two pieces that make a piece, the best score first. Merges say the same if
    every such pair is one of them, in the order of the scores.
    """
    if specs.is_unigram(tokenizer.spec):
        return None
    own = specs.merge_pairs(tokenizer.spec)
    made = {left + right for left, right in own}
    usable = {
        text: id
        for text, id in specs.model_entries(tokenizer.spec)
        if byte_token(text) is None and (id not in tokenizer.added or text in made)
    }
    theirs = [(left, right) for left, right in pieces.merges(usable, list(scores))]
    for left, right in sorted(set(theirs) - set(own)):
        return f"llama.cpp joins {left!r} and {right!r}, no merge here does"
    for left, right in sorted(set(own) - set(theirs)):
        return f"a merge joins {left!r} and {right!r}, llama.cpp does not"
    for (a, b), (c, d) in zip(own, theirs, strict=True):
        # Which of the pairs that make one piece goes first does not matter.
        if a + b != c + d:
            return f"{a!r} and {b!r} are joined before {c!r} and {d!r}, llama.cpp joins these first"
    return None


# -- reading ----------------------------------------------------------------------------------


def specification(
    kv: Mapping[str, Any], prefix: str, tokens: list[str], types: list[int], unk: int | None
) -> specs.Json:
    """The tokenizer.json of a GGUF's keys, without its post-processor.

    Raises:
        InvalidFormat: the keys do not fit together.
    """
    unigram = kv.get(prefix + "model") == "t5"
    stated = kv.get(prefix + "scores")
    scores = [] if stated is None else [float(score) for score in stated]
    if len(scores) != len(tokens):
        raise InvalidFormat(
            prefix + "scores", f"there are {len(scores)} scores for {len(tokens)} tokens"
        )
    found = [
        None if type == sp.UNUSED else sp.Piece(text, score, type)
        for text, score, type in zip(tokens, scores, types, strict=True)
    ]
    rules = Rules("always" if kv.get(prefix + "add_space_prefix", not unigram) else "never")
    if unigram:
        rules = replace(
            rules,
            charsmap=_bytes(kv.get(prefix + "precompiled_charsmap")),
            remove_extra_whitespaces=bool(kv.get(prefix + "remove_extra_whitespaces", False)),
        )
        last = max((id for id, piece in enumerate(found) if piece is not None), default=-1)
        found = [
            piece or sp.Piece(tokens[id], scores[id], sp.UNUSED)
            for id, piece in enumerate(found[: last + 1])
        ]
    return pieces.specification(
        found,
        rules,
        kind=sp.UNIGRAM if unigram else sp.BPE,
        # llama.cpp's unigram gives the unknown token where SentencePiece would give bytes.
        byte_fallback=not unigram,
        unk_id=unk,
    )


def _bytes(value: Any) -> bytes:
    """An array of int8 or uint8 as bytes."""
    if value is None:
        return b""
    return value if isinstance(value, bytes) else bytes(int(byte) & 0xFF for byte in value)
