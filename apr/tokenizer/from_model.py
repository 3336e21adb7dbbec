"""A folder that has `tokenizer.model` and no tokenizer.json: the same tokenizer, built from it.

`tokenizer_config.json` and `added_tokens.json` add tokens and say what stands around a text. Where
they are silent: the special tokens of the model itself; bos before a text and no eos behind it
(LlamaTokenizer's documented defaults and llama.cpp's); a space before each stretch of text, unless
`legacy` is false, which means before the first alone, or `add_prefix_space` is false.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from apr.errors import InvalidFormat
from apr.tokenizer import pieces, sentencepiece
from apr.tokenizer import spec as specs

# Flags of an added token, in tokenizer_config.json as in tokenizer.json.
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class Source:
    """What a SentencePiece file gives: the spec, its own special ids, and the scores of a BPE."""

    spec: specs.Json
    ids: Mapping[str, int]
    scores: tuple[float, ...] | None


def read(file: Path, config: Mapping[str, Any], added: Mapping[str, Any]) -> Source:
    """The tokenizer of a SentencePiece file.

    Args:
        file: the `tokenizer.model`.
        config: tokenizer_config.json; empty where there is none.
        added: added_tokens.json, ids by text; empty where there is none.

    Raises:
        InvalidFormat: the file is no such model, or an added token has the id of another piece.
    """
    model = sentencepiece.read(file)
    spec = pieces.specification(
        [_as_found(piece) for piece in model.pieces],
        pieces.Rules(_prefix(model, config), model.charsmap, model.remove_extra_whitespaces),
        kind=model.kind,
        byte_fallback=model.byte_fallback,
        unk_id=model.unk_id if 0 <= model.unk_id < len(model.pieces) else None,
    )
    _add_tokens(spec, _stated(config, added, file), file)
    named = {"bos": model.bos_id, "eos": model.eos_id, "pad": model.pad_id, "unk": model.unk_id}
    ids = {name: id for name, id in named.items() if 0 <= id < len(model.pieces)}
    spec["post_processor"] = _around(spec, config, ids)
    scores = tuple(piece.score for piece in model.pieces)
    return Source(spec, ids, None if specs.is_unigram(spec) else scores)


def _as_found(piece: sentencepiece.Piece) -> sentencepiece.Piece:
    """A user-defined piece as it stands in a text: it is looked for before spaces are rewritten."""
    if piece.type != sentencepiece.USER_DEFINED:
        return piece
    return replace(piece, text=piece.text.replace(pieces.SPACE, " "))


def _prefix(model: sentencepiece.Model, config: Mapping[str, Any]) -> str:
    if not model.add_dummy_prefix or config.get("add_prefix_space") is False:
        return "never"
    return "first" if config.get("legacy") is False else "always"


def _stated(
    config: Mapping[str, Any], added: Mapping[str, Any], file: Path
) -> dict[int, specs.Json]:
    """The added tokens that files beside the model state, by id."""
    out: dict[int, specs.Json] = {}
    for text, id in added.items():
        if type(id) is not int or not 0 <= id < specs.MAX_TOKENS:
            raise InvalidFormat(file.parent / "added_tokens.json", f"{text!r} has the id {id!r}")
        out[id] = pieces.added_token(id, text, special=False)
    decoder = config.get("added_tokens_decoder") or {}
    where = file.parent / "tokenizer_config.json"
    if not isinstance(decoder, Mapping):
        raise InvalidFormat(where, "its added_tokens_decoder is no object")
    for key, token in decoder.items():
        is_token = isinstance(token, Mapping) and type(token.get("content")) is str
        if not is_token or not key.isdecimal() or int(key) >= specs.MAX_TOKENS:
            raise InvalidFormat(where, f"added token {key!r}: {token!r} lacks a text or an id")
        entry = pieces.added_token(int(key), token["content"], special=False)
        out[int(key)] = entry | {name: bool(token[name]) for name in _FLAGS if name in token}
    return out


def _add_tokens(spec: specs.Json, stated: Mapping[int, specs.Json], file: Path) -> None:
    known = specs.known_tokens(spec)
    ids = {text: id for id, text in known.items()}
    for id, token in stated.items():
        text = token["content"]
        if known.get(id, text) != text or ids.get(text, id) != id:
            raise InvalidFormat(
                file,
                f"piece {ids.get(text, id)} is {known.get(ids.get(text, id))!r}, but the files "
                f"beside it give {text!r} the id {id}",
                "these files do not belong together",
            )
    entries = specs.added_tokens(spec) | dict(stated)
    spec["added_tokens"] = [entries[id] for id in sorted(entries)]


def _around(spec: specs.Json, config: Mapping[str, Any], ids: Mapping[str, int]) -> Any:
    """The post-processor that adds bos and eos where the config, or the default, says so."""
    known = specs.known_tokens(spec)
    texts = {text: id for id, text in known.items()}

    def token(name: str, default: bool) -> list[tuple[int, str]]:
        if not config.get(f"add_{name}_token", default):
            return []
        stated = config.get(f"{name}_token")
        if isinstance(stated, Mapping):
            stated = stated.get("content")
        if f"{name}_token" in config:
            id = texts.get(stated) if isinstance(stated, str) else None
        else:
            id = ids.get(name)
        return [] if id is None else [(id, known[id])]

    return pieces.template(token("bos", True), token("eos", False))
