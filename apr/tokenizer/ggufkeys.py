"""The tokenizer as GGUF keys (`tokenizer.ggml.*`), and rebuilt from them.

Three models go both ways: byte-level BPE (`gpt2`) with every pre-tokenizer that
`contracts/pre-tokenizers.yaml` names, SentencePiece's BPE (`llama`) and unigram (`t5`). What those
keys cannot state stands beside them in a key of our own, see `apr.tokenizer.ggufown`. Key names are
those of the `gguf` package.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr.errors import FeatureUnavailable, InvalidFormat
from apr.tokenizer import alphabet, gguf_pieces, ggufown, pieces, pretokenizers, recognition
from apr.tokenizer import spec as specs
from apr.tokenizer.tokenizer import Tokenizer, byte_token

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
MODELS = ("gpt2", "llama", "t5")
_PREFIX = "tokenizer.ggml."
# GGUF has one eos; llama.cpp also ends a generation at these two.
MORE_EOS = ("eot_token_id", "eom_token_id")
# Whether llama.cpp adds bos and eos where a file does not say.
_ADDED_BY_DEFAULT = {"gpt2": (False, False), "llama": (True, False), "t5": (False, True)}


def write(tokenizer: Tokenizer, *, allow_inexact: bool = False) -> dict[str, Any]:
    """The keys, their values plain Python; see `Tokenizer.to_gguf`."""
    keys = standard(tokenizer, allow_inexact=allow_inexact)
    own = ggufown.write(tokenizer, _from_standard(keys))
    return keys if own is None else {**keys, ggufown.KEY: own}


def standard(tokenizer: Tokenizer, *, allow_inexact: bool = False) -> dict[str, Any]:
    """The keys that every reader knows.

    Raises:
        FeatureUnavailable: llama.cpp has nothing that does the same.
        InvalidFormat: it refuses such a list of tokens.
    """
    tokens = tokenizer.tokens()
    if repeated := len(tokens) - len(set(tokens)):
        raise InvalidFormat(
            "tokenizer", f"{repeated} token texts occur twice; llama.cpp refuses such a list"
        )
    model = tokenizer.gguf_model
    before, after = tokenizer.added_around
    eos = tokenizer.eos_token_ids
    keys: dict[str, Any] = {
        "model": model,
        "pre": _pre(tokenizer, allow_inexact) if model == "gpt2" else "default",
        "tokens": tokens,
        "token_type": [token_type(tokenizer, id, text) for id, text in enumerate(tokens)],
    }
    if model == "gpt2":
        keys["merges"] = _written_merges(tokenizer)
    else:
        keys |= _piece_keys(tokenizer, tokens, allow_inexact)
    # Without bos or eos the reader falls back to ids of its own (11 for gpt2), which mean nothing
    # here. A model without bos gets its padding or end token named, and add_bos_token is false.
    fallback = (tokenizer.pad_token_id, eos[0] if eos else None) if model != "t5" else ()
    keys |= {
        "bos_token_id": next(
            (id for id in (tokenizer.bos_token_id, *fallback) if id is not None), None
        ),
        "eos_token_id": eos[0] if eos else None,
        "unknown_token_id": tokenizer.unk_token_id,
        "padding_token_id": tokenizer.pad_token_id,
        "add_bos_token": bool(before),
        "add_eos_token": bool(after),
        **dict(zip(MORE_EOS, eos[1:], strict=False)),
    }
    out = {_PREFIX + key: value for key, value in keys.items() if value is not None}
    if tokenizer.chat_template is not None:
        out["tokenizer.chat_template"] = tokenizer.chat_template
    return out


def _pre(tokenizer: Tokenizer, allow_inexact: bool) -> str:
    if tokenizer.pre_type is not None:
        return tokenizer.pre_type
    closest = recognition.recognition(tokenizer.spec).closest
    known = f"known here: {', '.join(pretokenizers.names())}"
    if closest is None:
        raise FeatureUnavailable(
            "tokenizer", "llama.cpp has no name for this pre-tokenizer: it is not byte-level", known
        )
    if allow_inexact:
        return closest
    found = recognition.difference(tokenizer.spec, closest)
    raise FeatureUnavailable(
        "tokenizer",
        f"llama.cpp has no name for this pre-tokenizer; under the closest, {closest}, it would "
        f"split otherwise: {found}",
        known,
    )


def _piece_keys(tokenizer: Tokenizer, tokens: list[str], allow_inexact: bool) -> dict[str, Any]:
    model = tokenizer.gguf_model
    if model == "llama" and not _has_bytes(tokenizer.spec):
        raise FeatureUnavailable(
            "tokenizer", "is neither byte-level BPE nor SentencePiece BPE with byte fallback"
        )
    found = gguf_pieces.normalization(tokenizer)
    keys = gguf_pieces.keys(tokenizer, tokens, found.rules)
    if allow_inexact:
        return keys
    if model == "llama" and (found.rules.charsmap or found.rules.remove_extra_whitespaces):
        raise FeatureUnavailable(
            "tokenizer",
            "its text is normalized (SentencePiece's rules, or spaces taken together), which "
            "llama.cpp's BPE does not do: 'a  b' or another such text would differ",
        )
    if found.difference is not None:
        raise FeatureUnavailable(
            "tokenizer",
            f"llama.cpp would cut its text otherwise: {found.difference}",
            "it can put a space before a text and write spaces as U+2581, nothing else",
        )
    if why := gguf_pieces.unlike_scores(tokenizer, keys["scores"]):
        raise FeatureUnavailable("tokenizer", f"its merges are not what scores can say: {why}")
    return keys


def _has_bytes(spec: Mapping[str, Any]) -> bool:
    vocab = spec["model"]["vocab"]
    stated = bool(spec["model"].get("byte_fallback"))
    return stated and all(f"<0x{byte:02X}>" in vocab for byte in range(256))


def token_type(tokenizer: Tokenizer, id: int, text: str) -> int:
    """GGUF's type of a token."""
    if tokenizer.is_filler(id):
        return UNUSED
    if tokenizer.is_special(id):
        return CONTROL
    if id in tokenizer.added:
        return USER_DEFINED
    if tokenizer.gguf_model != "gpt2":
        if id == tokenizer.unk_token_id:
            return UNKNOWN
        if byte_token(text) is not None:
            return BYTE
    return NORMAL


def _written_merges(tokenizer: Tokenizer) -> list[str]:
    pairs = specs.merge_pairs(tokenizer.spec)
    for left, right in pairs:
        if " " in left or " " in right:
            raise FeatureUnavailable("tokenizer", "a merge holds a space, GGUF cannot state it")
    return [f"{left} {right}" for left, right in pairs]


_LISTS: tuple[tuple[str, Any, str], ...] = (
    ("tokens", str, "texts"),
    ("merges", str, "texts"),
    ("token_type", int, "whole numbers"),
    ("scores", int | float, "numbers"),
)


def read(kv: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer; see `Tokenizer.from_gguf`."""
    if _PREFIX + "tokens" not in kv:
        return None
    plain = _from_standard(kv)
    own = ggufown.read(kv, plain)
    # What stands in our own key counts only while all other keys still say the same.
    if own is not None and ggufown.agrees(standard(own, allow_inexact=True), kv):
        return own
    return plain


def _from_standard(kv: Mapping[str, Any]) -> Tokenizer:
    """What the keys mean that every reader knows: what llama.cpp makes of them."""
    for name, kind, what in _LISTS:
        value = kv.get(_PREFIX + name)
        if value is not None and not (
            isinstance(value, list) and all(isinstance(part, kind) for part in value)
        ):
            raise InvalidFormat(
                _PREFIX + name, f"holds no list of {what}", "the file is damaged: make it again"
            )
    tokens = [str(token) for token in kv[_PREFIX + "tokens"]]
    model = str(kv.get(_PREFIX + "model", ""))
    if model not in MODELS:
        raise FeatureUnavailable(
            _PREFIX + "model",
            f"is {model!r}; apr rebuilds {', '.join(MODELS)}",
            "use the original model",
        )
    types = _types(kv, tokens)
    ids = {name: _id(kv, name) for name in ("bos", "eos", "padding", "unknown")}
    add_bos, add_eos = _ADDED_BY_DEFAULT[model]
    scores: tuple[float, ...] | None = None
    pre: str | None = None
    if model == "gpt2":
        pre = None if kv.get(_PREFIX + "pre") is None else str(kv[_PREFIX + "pre"])
        spec = _byte_level_spec(kv, pre, tokens, types)
        add_bos = bool(pretokenizers.rules(str(pre))["add_bos_default"])
    else:
        spec = gguf_pieces.specification(kv, _PREFIX, tokens, types, ids["unknown"])
    spec["post_processor"] = pieces.template(
        _named(ids["bos"], kv.get(_PREFIX + "add_bos_token", add_bos), tokens),
        _named(ids["eos"], kv.get(_PREFIX + "add_eos_token", add_eos), tokens),
    )
    specs.check(spec, "tokenizer.ggml")
    if model == "llama":
        stated = kv[_PREFIX + "scores"]
        scores = tuple(float(score) for score in stated[: specs.minimum_size(spec)])
    eos = [ids["eos"], *(_integer(kv, _PREFIX + key) for key in MORE_EOS)]
    template = kv.get("tokenizer.chat_template")
    return Tokenizer(
        spec=spec,
        vocab_size=len(tokens),
        bos_token_id=ids["bos"],
        eos_token_ids=tuple(dict.fromkeys(id for id in eos if id is not None)),
        pad_token_id=ids["padding"],
        unk_token_id=ids["unknown"],
        chat_template=None if template is None else str(template),
        scores=scores,
        stated_pre=pre,
    )


def _named(id: int | None, wanted: Any, tokens: list[str]) -> list[tuple[int, str]]:
    return [(id, tokens[id])] if id is not None and wanted else []


def _byte_level_spec(
    kv: Mapping[str, Any], pre: str | None, tokens: list[str], types: list[int]
) -> specs.Json:
    if pre is None or pretokenizers.canonical(pre) is None:
        raise FeatureUnavailable(
            _PREFIX + "pre",
            f"is {pre!r}, a pre-tokenizer that apr cannot rebuild",
            f"known: {', '.join(pretokenizers.names())}; or use the original Hugging Face folder",
        )
    spec = pieces.empty()
    # What llama.cpp does under this name, to the character; not what the original file had.
    spec["pre_tokenizer"] = pretokenizers.trained(pre)
    spec["decoder"] = {
        "type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True,
    }  # fmt: skip
    merges = [str(merge).split(" ", 1) for merge in _merges(kv)]
    spec["model"] |= {
        "ignore_merges": bool(pretokenizers.rules(pre)["ignore_merges"]),
        "vocab": {token: id for id, token in enumerate(tokens) if types[id] == NORMAL},
        "merges": merges,
    }
    spec["added_tokens"] = [
        pieces.added_token(id, token, special=types[id] != USER_DEFINED)
        for id, token in enumerate(tokens)
        if types[id] in (CONTROL, USER_DEFINED)
    ]
    return spec


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
    forced = pretokenizers.forced_types(tokens)
    kinds = {True: CONTROL, False: USER_DEFINED}
    types = [
        kinds[forced[text]] if text in forced and int(type) != UNUSED else int(type)
        for text, type in zip(tokens, stated, strict=False)
    ]
    if len(stated) != len(tokens):
        raise InvalidFormat(
            _PREFIX + "token_type", f"there are {len(stated)} types for {len(tokens)} tokens"
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
