"""The tokenizer as GGUF keys (`tokenizer.ggml.*`), and rebuilt from them.

Byte-level BPE (`gpt2`) goes both ways for every pre-tokenizer in `contracts/pre-tokenizers.yaml`.
SentencePiece's BPE (`llama`) goes both ways too: merges and scores say the same thing, the order in
which pieces join. Key names are those of the `gguf` package.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from apr.errors import FeatureUnavailable, InvalidFormat
from apr.tokenizer import alphabet, pretokenizers
from apr.tokenizer import spec as specs
from apr.tokenizer.tokenizer import Tokenizer, byte_token

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_PREFIX = "tokenizer.ggml."
_SPACE = "\u2581"  # SentencePiece's mark for a space
# GGUF has one eos; llama.cpp also ends a generation at these two.
_MORE_EOS = ("eot_token_id", "eom_token_id")


def write(tokenizer: Tokenizer) -> dict[str, Any]:
    """The keys, their values plain Python; see `Tokenizer.to_gguf`."""
    model = tokenizer.gguf_model
    if model == "gpt2" and tokenizer.pre_type is None:
        raise FeatureUnavailable(
            "tokenizer",
            "llama.cpp has no name for this pre-tokenizer, it would tokenize otherwise",
            f"known here: {', '.join(pretokenizers.names())}",
        )
    if model == "llama" and not _is_sentencepiece(tokenizer.spec):
        raise FeatureUnavailable(
            "tokenizer", "is neither byte-level BPE nor SentencePiece BPE with byte fallback"
        )
    tokens = tokenizer.tokens()
    repeated = len(tokens) - len(set(tokens))
    if repeated:
        raise InvalidFormat(
            "tokenizer", f"{repeated} token texts occur twice; llama.cpp refuses such a list"
        )
    before, after = tokenizer.added_around
    eos = tokenizer.eos_token_ids
    keys: dict[str, Any] = {
        "model": model,
        "pre": tokenizer.pre_type if model == "gpt2" else "default",
        "tokens": tokens,
        "token_type": [_type(tokenizer, id, text) for id, text in enumerate(tokens)],
    }
    if model == "gpt2":
        keys["merges"] = _written_merges(tokenizer)
    else:
        keys["scores"] = _scores(tokenizer, tokens)
        keys["add_space_prefix"] = _adds_space(tokenizer.spec)
    # Without bos or eos the reader falls back to ids of its own (11 for gpt2), which mean nothing
    # here. A model without bos gets its padding or end token named, and add_bos_token is false.
    fallback = (tokenizer.bos_token_id, tokenizer.pad_token_id, eos[0] if eos else None)
    keys |= {
        "bos_token_id": next((id for id in fallback if id is not None), None),
        "eos_token_id": eos[0] if eos else None,
        "unknown_token_id": tokenizer.unk_token_id,
        "padding_token_id": tokenizer.pad_token_id,
        "add_bos_token": bool(before),
        "add_eos_token": bool(after),
        **dict(zip(_MORE_EOS, eos[1:], strict=False)),
    }
    out = {_PREFIX + key: value for key, value in keys.items() if value is not None}
    if tokenizer.chat_template is not None:
        out["tokenizer.chat_template"] = tokenizer.chat_template
    return out


def _type(tokenizer: Tokenizer, id: int, text: str) -> int:
    if tokenizer.is_filler(id):
        return UNUSED
    if tokenizer.is_special(id):
        return CONTROL
    if id in tokenizer.added:
        return USER_DEFINED
    if tokenizer.gguf_model == "llama" and byte_token(text) is not None:
        return BYTE
    return NORMAL


def _written_merges(tokenizer: Tokenizer) -> list[str]:
    pairs = specs.merge_pairs(tokenizer.spec)
    for left, right in pairs:
        if " " in left or " " in right:
            raise FeatureUnavailable("tokenizer", "a merge holds a space, GGUF cannot state it")
    return [f"{left} {right}" for left, right in pairs]


def _is_sentencepiece(spec: Mapping[str, Any]) -> bool:
    return bool(spec["model"].get("byte_fallback")) and not spec.get("pre_tokenizer")


def _adds_space(spec: Mapping[str, Any]) -> bool:
    normalizer = spec.get("normalizer") or {}
    steps = normalizer.get("normalizers") or [normalizer]
    return any(s.get("type") == "Prepend" and s.get("prepend") == _SPACE for s in steps)


def _scores(tokenizer: Tokenizer, tokens: list[str]) -> list[float]:
    """A piece joins the earlier the higher its score: minus the rank of the merge that makes it."""
    rank: dict[str, int] = {}
    for number, (left, right) in enumerate(specs.merge_pairs(tokenizer.spec)):
        rank.setdefault(left + right, number)
    never = -1e9
    out = []
    for id, text in enumerate(tokens):
        if tokenizer.is_filler(id) or id in tokenizer.added:
            out.append(-1000.0)
        elif byte_token(text) is not None:
            out.append(0.0)
        else:
            out.append(-float(rank[text] + 1) if text in rank else never)
    return out


def read(kv: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer; see `Tokenizer.from_gguf`."""
    if _PREFIX + "tokens" not in kv:
        return None
    tokens = [str(token) for token in kv[_PREFIX + "tokens"]]
    model = str(kv.get(_PREFIX + "model", ""))
    if model not in ("gpt2", "llama"):
        raise FeatureUnavailable(
            _PREFIX + "model",
            f"is {model!r}; apr rebuilds gpt2 and llama",
            "use the original model",
        )
    types = _types(kv, tokens)
    spec = _byte_level_spec(kv, tokens, types) if model == "gpt2" else _spm_spec(kv, tokens, types)
    ids = {name: _id(kv, name) for name in ("bos", "eos", "padding", "unknown")}
    more = [_integer(kv, _PREFIX + key) for key in _MORE_EOS]
    eos = [id for id in (ids["eos"], *more) if id is not None]
    template = kv.get("tokenizer.chat_template")
    return Tokenizer(
        spec=specs.check(spec, "tokenizer.ggml"),
        vocab_size=len(tokens),
        bos_token_id=ids["bos"],
        eos_token_ids=tuple(dict.fromkeys(eos)),
        pad_token_id=ids["padding"],
        unk_token_id=ids["unknown"],
        chat_template=None if template is None else str(template),
    )


def _byte_level_spec(kv: Mapping[str, Any], tokens: list[str], types: list[int]) -> specs.Json:
    pre = kv.get(_PREFIX + "pre")
    if pre is None or str(pre) not in pretokenizers.names():
        raise FeatureUnavailable(
            _PREFIX + "pre",
            f"is {None if pre is None else str(pre)!r}, a pre-tokenizer that apr cannot rebuild",
            f"known: {', '.join(pretokenizers.names())}; or use the original Hugging Face folder",
        )
    rules = pretokenizers.rules(str(pre))
    spec = _empty_spec()
    # What llama.cpp does under this name, to the character; not what the original file had.
    spec["pre_tokenizer"] = pretokenizers.trained(str(pre))
    spec["decoder"] = {
        "type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True,
    }  # fmt: skip
    merges = [str(merge).split(" ", 1) for merge in _merges(kv)]
    spec["model"] |= {
        "ignore_merges": bool(rules["ignore_merges"]),
        "vocab": {token: id for id, token in enumerate(tokens) if types[id] == NORMAL},
        "merges": merges,
    }
    spec["added_tokens"] = _added(tokens, types)
    spec["post_processor"] = _post_processor(kv, tokens, bool(rules["add_bos_default"]))
    return spec


def _spm_spec(kv: Mapping[str, Any], tokens: list[str], types: list[int]) -> specs.Json:
    scores = [float(score) for score in kv.get(_PREFIX + "scores", [])]
    if len(scores) != len(tokens):
        raise InvalidFormat(
            _PREFIX + "scores", f"there are {len(scores)} scores for {len(tokens)} tokens"
        )
    unknown = _id(kv, "unknown")
    spec = _empty_spec()
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    steps: list[specs.Json] = [replace]
    strip: list[specs.Json] = []
    if kv.get(_PREFIX + "add_space_prefix", True):
        steps.insert(0, {"type": "Prepend", "prepend": _SPACE})
        strip.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    back = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    spec["normalizer"] = {"type": "Sequence", "normalizers": steps}
    spec["decoder"] = {
        "type": "Sequence",
        "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip],
    }
    vocab = {
        token: id
        for id, token in enumerate(tokens)
        if types[id] in (NORMAL, BYTE) or (id == unknown and types[id] != UNUSED)
    }
    pieces = {token: id for token, id in vocab.items() if types[id] == NORMAL}
    spec["model"] |= {
        "unk_token": None if unknown is None else tokens[unknown],
        "fuse_unk": True,
        "byte_fallback": True,
        "vocab": vocab,
        "merges": _merges_from_scores(pieces, scores),
    }
    spec["added_tokens"] = _added(tokens, types)
    spec["post_processor"] = _post_processor(kv, tokens, True)
    return spec


def _merges_from_scores(pieces: Mapping[str, int], scores: Sequence[float]) -> list[list[str]]:
    """Every pair of pieces that makes a piece, the highest score first (SentencePiece's order)."""
    found: list[tuple[float, int, int, str, str]] = []
    for token, id in pieces.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in pieces and right in pieces:
                found.append((-scores[id], pieces[left], pieces[right], left, right))
    return [[left, right] for *_, left, right in sorted(found)]


def _empty_spec() -> specs.Json:
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


def _added(tokens: list[str], types: list[int]) -> list[specs.Json]:
    return [
        added_token(id, token, special=types[id] != USER_DEFINED)
        for id, token in enumerate(tokens)
        if types[id] in (CONTROL, USER_DEFINED)
    ]


def _post_processor(kv: Mapping[str, Any], tokens: list[str], default: bool) -> specs.Json | None:
    """The template that adds bos and eos, where the keys (or the reader's default) say so."""
    bos = _id(kv, "bos") if kv.get(_PREFIX + "add_bos_token", default) else None
    eos = _id(kv, "eos") if kv.get(_PREFIX + "add_eos_token", False) else None
    if bos is None and eos is None:
        return None

    def one(sequence: str, number: int) -> list[specs.Json]:
        out: list[specs.Json] = [{"Sequence": {"id": sequence, "type_id": number}}]
        if bos is not None:
            out.insert(0, {"SpecialToken": {"id": tokens[bos], "type_id": number}})
        if eos is not None:
            out.append({"SpecialToken": {"id": tokens[eos], "type_id": number}})
        return out

    return {
        "type": "TemplateProcessing",
        "single": one("A", 0),
        "pair": one("A", 0) + one("B", 1),
        "special_tokens": {
            tokens[id]: {"id": tokens[id], "ids": [id], "tokens": [tokens[id]]}
            for id in (bos, eos)
            if id is not None
        },
    }


def _merges(kv: Mapping[str, Any]) -> list[str]:
    return [str(merge) for merge in kv.get(_PREFIX + "merges", [])]


def _types(kv: Mapping[str, Any], tokens: list[str]) -> list[int]:
    """The type of each token; an unknown-typed filler (as old converters write) is unused.

    Without types (files of the Rust writer): a text that is no byte and that no merge makes can
    only be an added token, and is taken for a control token.
    """
    stated = kv.get(_PREFIX + "token_type")
    unknown = _id(kv, "unknown")
    if stated is None:
        made = {merge.replace(" ", "", 1) for merge in _merges(kv)}
        single = alphabet.values()
        return [NORMAL if t in made or t in single else CONTROL for t in tokens]
    types = [int(type) for type in stated]
    if len(types) != len(tokens):
        raise InvalidFormat(
            _PREFIX + "token_type", f"there are {len(types)} types for {len(tokens)} tokens"
        )
    return [
        type if type != UNKNOWN else (CONTROL if id == unknown else UNUSED)
        for id, type in enumerate(types)
    ]


def _id(kv: Mapping[str, Any], name: str) -> int | None:
    """A special token's id, inside the list."""
    id = _integer(kv, f"{_PREFIX}{name}_token_id")
    size = len(kv[_PREFIX + "tokens"])
    if id is not None and not 0 <= id < size:
        raise InvalidFormat(
            f"{_PREFIX}{name}_token_id", f"is {id}, there are {size} tokens", "the file is damaged"
        )
    return id


def _integer(kv: Mapping[str, Any], key: str) -> int | None:
    value = kv.get(key)
    if value is None:
        return None
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise InvalidFormat(key, f"is {value!r}, not a token id") from error
