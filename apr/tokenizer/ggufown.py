"""What no GGUF key can state about a tokenizer, in one of our own: `apr.tokenizer`, a JSON text.

The true bos (llama.cpp must be given one), every end token, the flags of added tokens, normalizer,
post-processor and decoder, and the order of merges that scores leave open. Token texts, merges and
scores stand in the file once, under GGUF's own keys. The key counts only while it agrees with them:
what it gives must be written as exactly the keys that the file has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from apr.errors import AprError
from apr.tokenizer import spec as specs
from apr.tokenizer.tokenizer import Tokenizer

KEY = "apr.tokenizer"
_ELSEWHERE = "tokenizer.ggml.precompiled_charsmap"
_TOKENS = "tokenizer.ggml.tokens"


def write(tokenizer: Tokenizer, plain: Tokenizer) -> str | None:
    """The key's text; None where the other keys alone (they give `plain`) say everything."""
    # A float32 score that is written comes back; scores that were derived are not the source's.
    if replace(plain, scores=None, stated_pre=None) == replace(
        tokenizer, scores=None, stated_pre=None
    ):
        return None
    parts = specs.split(tokenizer.spec, tokenizer.vocab_size)
    layout = dict(parts.layout)
    out: dict[str, Any] = {
        "version": 1,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_ids": list(tokenizer.eos_token_ids),
        "config": dict(tokenizer.config),
        "record": dict(tokenizer.record),
        "spec": parts.rest,
        "layout": layout,
    }
    if specs.is_unigram(tokenizer.spec):
        same = plain.spec["model"]["vocab"]
        if [score for _, score in same] == layout["scores"]:
            layout["scores"] = len(layout["scores"])  # as many as there are, under GGUF's key
    elif tokenizer.gguf_model == "llama":
        out["scores"] = tokenizer.scores is not None
        if specs.merge_pairs(plain.spec) != specs.merge_pairs(tokenizer.spec):
            out["cuts"] = _cuts(tokenizer.spec, plain.spec)
    if plain.spec["normalizer"] is not None:
        out["spec"] = _with_charsmap(parts.rest, charsmap(plain.spec["normalizer"]), _ELSEWHERE)
    return json.dumps(out, ensure_ascii=False, separators=(",", ":"))


def read(kv: Mapping[str, Any], plain: Tokenizer) -> Tokenizer | None:
    """The tokenizer that the key states, with the lists that the others have; None without one."""
    text = kv.get(KEY)
    if text is None:
        return None
    try:
        own = json.loads(str(text))
        layout = dict(own["layout"])
        if isinstance(layout.get("scores"), int):
            entries = plain.spec["model"]["vocab"][: layout["scores"]]
            layout["scores"] = [score for _, score in entries]
        spec = specs.join(
            specs.Parts(
                [str(token) for token in kv[_TOKENS]],
                _merges(kv, plain, own.get("cuts")),
                _with_charsmap(own["spec"], _ELSEWHERE, charsmap(plain.spec["normalizer"])),
                layout,
            )
        )
        return Tokenizer(
            spec=specs.check(spec, KEY),
            vocab_size=plain.vocab_size,
            bos_token_id=own["bos_token_id"],
            eos_token_ids=tuple(own["eos_token_ids"]),
            pad_token_id=plain.pad_token_id,
            unk_token_id=plain.unk_token_id,
            chat_template=plain.chat_template,
            config=own["config"],
            record=own["record"],
            scores=plain.scores if own.get("scores") else None,
            stated_pre=plain.stated_pre,
        )
    except (AprError, KeyError, TypeError, ValueError, IndexError, AttributeError):
        return None  # of another version, or damaged: the standard keys are what counts


def charsmap(normalizer: Any) -> str:
    """SentencePiece's compiled rules (base64), where a step of a normalizer has them."""
    for step in (normalizer or {}).get("normalizers") or [normalizer or {}]:
        if step.get("type") == "Precompiled":
            return str(step.get("precompiled_charsmap") or "")
    return ""


def _with_charsmap(spec: specs.Json, old: str, new: str) -> specs.Json:
    """The spec with other compiled rules: they are big, and GGUF has a key for them."""
    normalizer = spec.get("normalizer")
    if not old or charsmap(normalizer) != old:
        return spec
    text = json.dumps(normalizer)
    return {**spec, "normalizer": json.loads(text.replace(json.dumps(old), json.dumps(new)))}


def agrees(keys: Mapping[str, Any], kv: Mapping[str, Any]) -> bool:
    """Whether a file has exactly these `tokenizer.*` keys, with these values."""
    stated = {key: value for key, value in kv.items() if key.startswith("tokenizer.")}
    if set(keys) != set(stated):
        return False
    return all(_plain(keys[key]) == _plain(stated[key]) for key in keys)


def _plain(value: Any) -> Any:
    """A value as plain Python, whichever reader gave it; bytes may come as int8."""
    if isinstance(value, (str, bool, int, float)):
        return value
    found = [item.item() if hasattr(item, "item") else item for item in value]
    if found and type(found[0]) is int and min(found) < 0:
        return [item & 0xFF for item in found]
    return found


def _merges(kv: Mapping[str, Any], plain: Tokenizer, cuts: Any) -> list[str]:
    stated = kv.get("tokenizer.ggml.merges")
    if stated is not None:
        return [str(merge) for merge in stated]
    pairs = specs.merge_pairs(plain.spec)
    if cuts is None:
        return [" ".join(pair) for pair in pairs]
    if len(cuts) != len(pairs):
        raise ValueError("as many cuts as merges")
    texts = ["".join(pair) for pair in pairs]
    return [f"{text[:cut]} {text[cut:]}" for text, cut in zip(texts, cuts, strict=True)]


def _cuts(spec: specs.Json, plain: specs.Json) -> list[int] | None:
    """Where each merge's text is cut, in the order of the source; None where that says nothing."""
    ours = specs.merge_pairs(spec)
    theirs = specs.merge_pairs(plain)
    if ["".join(pair) for pair in ours] != ["".join(pair) for pair in theirs]:
        return None
    return [len(left) for left, _ in ours]
