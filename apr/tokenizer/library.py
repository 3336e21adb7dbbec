"""The `tokenizers` library's object of a tokenizer.json: never truncating, padding or dropping."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from apr.errors import InvalidFormat, StrPath
from apr.tokenizer import spec as specs

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend


def build(spec: specs.Json, where: StrPath) -> Backend:
    """The library's object: never truncating, padding or dropping merges.

    Raises:
        InvalidFormat: the library refuses the spec, with its reason.
    """
    from tokenizers import Tokenizer as Library

    usable = {**spec, "truncation": None, "padding": None}
    usable["model"] = _with_all_ids(spec, where)
    try:
        return Library.from_str(json.dumps(usable))
    except BaseException as error:  # the library panics (not an Exception) on some input
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InvalidFormat(where, f"the tokenizers library refuses it ({error})") from error


def _with_all_ids(spec: specs.Json, where: StrPath) -> specs.Json:
    """The model, with the added tokens in its vocabulary where their ids have gaps.

    The library numbers added tokens that the model does not know one by one behind it, whatever
    ids they state.
    """
    model: specs.Json = {"type": "BPE", **spec["model"]}
    known = {text for text, _ in specs.model_entries(spec)}
    entries = spec.get("added_tokens") or []
    missing = {t["content"]: t["id"] for t in entries if t["content"] not in known}
    first = len(known)
    if list(missing.values()) == list(range(first, first + len(missing))):
        missing = {}
    if specs.is_unigram(spec):
        if missing:
            raise InvalidFormat(where, "its added tokens do not follow its pieces one by one")
        return model
    return model | {"vocab": {**model["vocab"], **missing}, "dropout": None}
