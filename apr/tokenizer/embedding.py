"""The tokenizer inside `.apr` metadata: flat keys for every reader, and the rest of it beside them.

`tokenizer.vocabulary`, `tokenizer.merges` and the ids stand where the Rust implementation reads
them; `tokenizer.spec` (tokenizer.json without its vocabulary and merges) and `tokenizer.layout`
(how the lists go back into it) are ours. docs/spec/tokenizer.md describes each key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr.errors import InvalidFormat
from apr.tokenizer import ggufkeys
from apr.tokenizer import spec as specs
from apr.tokenizer.tokenizer import Tokenizer

# The Rust struct's special_tokens has exactly these; the chat tokens count if the list has them.
_CHAT_TOKENS = {"im_start_token": "<|im_start|>", "im_end_token": "<|im_end|>"}


def write(tokenizer: Tokenizer) -> dict[str, Any]:
    """All keys; what is unset is left out.

    Raises:
        InvalidFormat: the spec could not be given back exactly (a defect, never seen).
    """
    parts = specs.split(tokenizer.spec, tokenizer.vocab_size)
    if tokenizer.scores is not None and "scores" not in parts.layout:
        parts.layout["bpe_scores"] = list(tokenizer.scores)
    if specs.join(parts) != tokenizer.spec:
        raise InvalidFormat("tokenizer", "cannot be embedded: it would not come out as it went in")
    tokens = parts.vocabulary
    eos = tokenizer.eos_token_ids
    keys: dict[str, Any] = {
        "tokenizer.vocabulary": tokens,
        "tokenizer.merges": parts.merges,
        "tokenizer.vocab_size": tokenizer.vocab_size,
        "tokenizer.model_type": tokenizer.gguf_model,
        "tokenizer.model": tokenizer.gguf_model,
        "tokenizer.pre_type": tokenizer.pre_type,
        "tokenizer.bos_token_id": tokenizer.bos_token_id,
        "tokenizer.eos_token_id": eos[0] if eos else None,
        "tokenizer.eos_token_ids": list(eos) or None,
        "tokenizer.pad_token_id": tokenizer.pad_token_id,
        "tokenizer.unk_token_id": tokenizer.unk_token_id,
        "tokenizer.spec": parts.rest,
        "tokenizer.layout": parts.layout,
        "tokenizer.config": dict(tokenizer.config) or None,
        "tokenizer.record": dict(tokenizer.record) or None,
        "special_tokens": _special_tokens(tokenizer, tokens) or None,
        "chat_template": tokenizer.chat_template,
    }
    return {key: value for key, value in keys.items() if value is not None}


def _special_tokens(tokenizer: Tokenizer, tokens: list[str]) -> dict[str, str]:
    ids = {
        "bos_token": tokenizer.bos_token_id,
        "eos_token": tokenizer.eos_token_ids[0] if tokenizer.eos_token_ids else None,
        "unk_token": tokenizer.unk_token_id,
        "pad_token": tokenizer.pad_token_id,
    }
    out = {name: tokens[id] for name, id in ids.items() if id is not None}
    present = {token["content"] for token in tokenizer.spec.get("added_tokens") or []}
    return out | {name: text for name, text in _CHAT_TOKENS.items() if text in present}


def read(metadata: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer; from the flat keys alone where a file of another writer has no spec.

    Raises:
        InvalidFormat: a key has the wrong type, or the parts do not fit together.
        FeatureUnavailable: without a spec, and of a kind that cannot be rebuilt.
    """
    vocabulary = metadata.get("tokenizer.vocabulary")
    if vocabulary is None:
        return None
    merges = metadata.get("tokenizer.merges", [])
    if not _is_strings(vocabulary) or not _is_strings(merges):
        raise InvalidFormat(
            "tokenizer.vocabulary", "vocabulary and merges are not lists of strings"
        )
    stated = metadata.get("tokenizer.vocab_size", len(vocabulary))
    if stated != len(vocabulary):
        raise InvalidFormat(
            "tokenizer.vocab_size", f"says {stated!r}, the vocabulary has {len(vocabulary)} tokens"
        )
    rest = metadata.get("tokenizer.spec")
    if rest is None:
        return _from_flat_keys(metadata, vocabulary, merges)
    layout = metadata.get("tokenizer.layout")
    if not isinstance(rest, dict) or not isinstance(layout, dict):
        raise InvalidFormat("tokenizer.spec", "stands there without a sound tokenizer.layout")
    try:
        joined = specs.join(specs.Parts(vocabulary, merges, rest, layout))
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise InvalidFormat("tokenizer.layout", f"does not fit the vocabulary ({error})") from error
    stated_pre = metadata.get("tokenizer.pre_type")
    tokenizer = Tokenizer(
        spec=specs.check(joined, "tokenizer.spec"),
        vocab_size=len(vocabulary),
        bos_token_id=_id(metadata, "tokenizer.bos_token_id"),
        eos_token_ids=_eos(metadata),
        pad_token_id=_id(metadata, "tokenizer.pad_token_id"),
        unk_token_id=_id(metadata, "tokenizer.unk_token_id"),
        chat_template=metadata.get("chat_template"),
        config=metadata.get("tokenizer.config") or {},
        record=metadata.get("tokenizer.record") or {},
        scores=_scores(layout),
        stated_pre=stated_pre if isinstance(stated_pre, str) else None,
    )
    if stated_pre is not None and not tokenizer.may_be_called(stated_pre):
        raise InvalidFormat(
            "tokenizer.pre_type", f"says {stated_pre!r}, the spec is {tokenizer.pre_type!r}"
        )
    return tokenizer


def _from_flat_keys(
    metadata: Mapping[str, Any], vocabulary: list[str], merges: list[str]
) -> Tokenizer | None:
    """A file of the Rust writer: the same facts as a GGUF's keys, under other names."""
    kv = {
        "tokenizer.ggml.tokens": vocabulary,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.model": metadata.get("tokenizer.model", "gpt2"),
        "tokenizer.ggml.pre": metadata.get("tokenizer.pre_type"),
        "tokenizer.ggml.bos_token_id": metadata.get("tokenizer.bos_token_id"),
        "tokenizer.ggml.eos_token_id": metadata.get("tokenizer.eos_token_id"),
        "tokenizer.chat_template": metadata.get("chat_template"),
    }
    return ggufkeys.read({key: value for key, value in kv.items() if value is not None})


def _scores(layout: Mapping[str, Any]) -> tuple[float, ...] | None:
    scores = layout.get("bpe_scores")
    if scores is None:
        return None
    if not isinstance(scores, list) or not all(type(s) in (int, float) for s in scores):
        raise InvalidFormat("tokenizer.layout", "its scores are no list of numbers")
    return tuple(float(score) for score in scores)


def _eos(metadata: Mapping[str, Any]) -> tuple[int, ...]:
    several = metadata.get("tokenizer.eos_token_ids")
    if several is None:
        one = _id(metadata, "tokenizer.eos_token_id")
        return () if one is None else (one,)
    if not isinstance(several, list) or not all(type(id) is int for id in several):
        raise InvalidFormat("tokenizer.eos_token_ids", f"is no list of ids: {several!r}")
    return tuple(several)


def _id(metadata: Mapping[str, Any], key: str) -> int | None:
    value = metadata.get(key)
    if value is not None and type(value) is not int:
        raise InvalidFormat(key, f"is {value!r}, not a token id")
    return value


def _is_strings(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is str for item in value)
