"""A tokenizer.json as data: checked, taken apart into token list and rest, and put together again.

The `.apr` file holds vocabulary and merges once, as flat lists; everything else of tokenizer.json
stands in one small object. `join(split(x)) == x`, and `split` refuses what it could not give back.
Source of the layout: the files that `tokenizers` 0.20 to 0.23 writes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from apr.errors import InvalidFormat, StrPath

Json = dict[str, Any]
SUPPORTED_MODELS = ("BPE", "Unigram")
MAX_TOKENS = 1 << 20  # META-VOCAB's upper bound: a sparse id must not allocate a huge list


def check(spec: Any, where: StrPath) -> Json:
    """The spec, if it is a tokenizer.json that `apr` can keep whole.

    Raises:
        InvalidFormat: it is not, with what is wrong; an unsupported model type names those
            supported.
    """
    if not isinstance(spec, dict) or not isinstance(spec.get("model"), dict):
        raise InvalidFormat(where, "is no tokenizer.json: it has no object 'model'")
    model = spec["model"]
    # Files of tokenizers before 0.13 name no type; BPE is the one that has merges.
    kind = model.get("type", "BPE" if "merges" in model else "without a type")
    if kind not in SUPPORTED_MODELS:
        raise InvalidFormat(
            where,
            f"its tokenizer model is {kind!r}, which apr does not support",
            f"supported: {', '.join(SUPPORTED_MODELS)}",
        )
    vocab, merges = model.get("vocab"), model.get("merges")
    if kind == "Unigram":
        _check_unigram(model, where)
        vocab, merges = {}, []
    if not isinstance(vocab, dict) or not isinstance(merges, list):
        raise InvalidFormat(where, "its BPE model lacks 'vocab' or 'merges'")
    for token, id in vocab.items():
        if type(id) is not int or not 0 <= id < MAX_TOKENS:
            raise InvalidFormat(where, f"token {token!r} has the id {id!r}", _RANGE)
    for merge in merges:
        pair = isinstance(merge, list) and len(merge) == 2 and all(type(m) is str for m in merge)
        if not pair and not (type(merge) is str and " " in merge):
            raise InvalidFormat(where, f"merge {merge!r} is neither a pair nor a string")
    added = spec.get("added_tokens")
    for token in added if isinstance(added, list) else []:
        is_token = isinstance(token, dict) and type(token.get("content")) is str
        if not is_token or type(token.get("id")) is not int or not 0 <= token["id"] < MAX_TOKENS:
            raise InvalidFormat(where, f"added token {token!r} lacks a text or an id", _RANGE)
    if added is not None and not isinstance(added, list):
        raise InvalidFormat(where, "its added_tokens are no list")
    return spec


def _check_unigram(model: Json, where: StrPath) -> None:
    vocab, unknown = model.get("vocab"), model.get("unk_id")
    if not isinstance(vocab, list) or not vocab or len(vocab) > MAX_TOKENS:
        raise InvalidFormat(where, f"its Unigram model lacks a list 'vocab' of 1 to {MAX_TOKENS}")
    for entry in vocab:
        pair = isinstance(entry, list) and len(entry) == 2 and type(entry[0]) is str
        if not pair or type(entry[1]) not in (int, float):
            raise InvalidFormat(where, f"piece {entry!r} is no pair of text and score")
    if unknown is not None and (type(unknown) is not int or not 0 <= unknown < len(vocab)):
        raise InvalidFormat(where, f"its unk_id {unknown!r} is none of the {len(vocab)} pieces")


_RANGE = f"ids go from 0 to {MAX_TOKENS - 1}"


def added_tokens(spec: Mapping[str, Any]) -> dict[int, Json]:
    """The added tokens by id."""
    return {token["id"]: token for token in spec.get("added_tokens") or []}


def is_unigram(spec: Mapping[str, Any]) -> bool:
    """Whether the model is a Unigram: pieces with scores, and no merges."""
    return str(spec["model"].get("type")) == "Unigram"


def model_entries(spec: Mapping[str, Any]) -> list[tuple[str, int]]:
    """The entries of the model's own vocabulary, as (text, id)."""
    vocab = spec["model"]["vocab"]
    if is_unigram(spec):
        return [(text, id) for id, (text, _) in enumerate(vocab)]
    return list(vocab.items())


def known_tokens(spec: Mapping[str, Any]) -> dict[int, str]:
    """The text of every id that the spec names; an added token goes before the vocabulary."""
    table: dict[int, str] = {}
    for token, id in model_entries(spec):
        table.setdefault(id, token)
    table.update((id, token["content"]) for id, token in added_tokens(spec).items())
    return table


def minimum_size(spec: Mapping[str, Any]) -> int:
    """The shortest token list that holds every id of the spec."""
    return max(known_tokens(spec), default=-1) + 1


def token_list(spec: Mapping[str, Any], size: int) -> list[str]:
    """Token texts by id, `size` of them; ids that the spec does not name are fillers.

    A filler is `<|filler_0|>`, `<|filler_1|>`, ...; names that a real token has are passed over,
    so that every text is there once.
    """
    table = known_tokens(spec)
    taken = set(table.values())
    out: list[str] = []
    number = 0
    for id in range(size):
        known = table.get(id)
        if known is not None:
            out.append(known)
            continue
        while (filler := f"<|filler_{number}|>") in taken:
            number += 1
        number += 1
        out.append(filler)
    return out


def merge_pairs(spec: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The merges as pairs, whichever form the file has; a Unigram has none."""
    out = []
    for merge in spec["model"].get("merges", []):
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        out.append((left, right))
    return out


def step_types(section: Any) -> set[str]:
    """The types of all steps of a normalizer, pre-tokenizer, decoder or post-processor section."""
    return {str(step.get("type")) for step in steps(section)}


def steps(section: Any) -> list[Mapping[str, Any]]:
    """All steps of such a section, those of a sequence after the sequence itself."""
    if not isinstance(section, Mapping):
        return []
    found = [section]
    for key in ("decoders", "pretokenizers", "normalizers", "processors"):
        for step in section.get(key) or []:
            found += steps(step)
    return found


def template_ids(section: Any) -> tuple[list[int], list[int]] | None:
    """The ids that a post-processor's templates put before and after a text.

    None where it has a step of another kind (or one that cannot be read), so that only trying
    tells.
    """
    before: list[int] = []
    after: list[int] = []
    if not step_types(section) <= {"ByteLevel", "TemplateProcessing", "Sequence"}:
        return None
    try:
        for step in (section or {}).get("processors") or [section or {}]:
            if step.get("type") != "TemplateProcessing":
                continue
            middle = [*map(bool, (part.get("Sequence") for part in step["single"]))].index(True)
            found = [
                []
                if "Sequence" in part
                else step["special_tokens"][part["SpecialToken"]["id"]]["ids"]
                for part in step["single"]
            ]
            before = [id for ids in found[:middle] for id in ids] + before
            after += [id for ids in found[middle:] for id in ids]
    except (KeyError, ValueError, TypeError, AttributeError):
        return None
    return before, after


@dataclass(frozen=True)
class Parts:
    """A spec taken apart: token list, merges as "a b", the rest, and how to put it together.

    A Unigram's scores stand in the layout.
    """

    vocabulary: list[str]
    merges: list[str]
    rest: Json
    layout: Json


def split(spec: Mapping[str, Any], size: int) -> Parts:
    """Take a spec apart, the token list padded with fillers to `size`."""
    vocabulary = token_list(spec, size)
    known = known_tokens(spec)
    entries = model_entries(spec)
    own = set(entries)
    layout: Json = {
        "fillers": ranges(id for id in range(size) if id not in known),
        "added_only": ranges(id for id, text in known.items() if (text, id) not in own),
    }
    # What the list cannot say: entries of the model's vocabulary whose id shows another text.
    hidden = [(text, id) for text, id in entries if vocabulary[id] != text]
    model = {key: value for key, value in spec["model"].items() if key not in ("vocab", "merges")}
    if is_unigram(spec):
        layout["scores"] = [score for _, score in spec["model"]["vocab"]]
        if hidden:
            layout["hidden_pieces"] = [[id, text] for text, id in hidden]
        return Parts(vocabulary, [], {**spec, "model": model}, layout)
    if hidden:
        layout["hidden"] = dict(hidden)
    merges = spec["model"]["merges"]
    as_strings = bool(merges) and isinstance(merges[0], str)
    layout["merges"] = "strings" if as_strings else "pairs"
    joined = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    # "a b" is ambiguous where a part holds a space itself: those stand here as they are.
    spaced = {
        str(index): merge
        for index, merge in enumerate(merges)
        if isinstance(merge, str) == (not as_strings)
        or (isinstance(merge, list) and any(" " in part for part in merge))
    }
    if spaced:
        layout["merges_with_space"] = spaced
    return Parts(vocabulary, joined, {**spec, "model": model}, layout)


def join(parts: Parts) -> Json:
    """The spec that `split` took apart.

    Raises:
        InvalidFormat: the parts do not fit together.
    """
    layout = parts.layout
    rest = dict(parts.rest)
    model = rest.get("model", {})
    if "scores" in layout:
        scores = layout["scores"]
        if not isinstance(scores, list) or len(scores) > len(parts.vocabulary):
            raise ValueError("more scores than pieces")
        texts = dict(enumerate(parts.vocabulary[: len(scores)])) | {
            int(id): text for id, text in layout.get("hidden_pieces", [])
        }
        pieces = [[texts[id], score] for id, score in enumerate(scores)]
        rest["model"] = {**model, "vocab": pieces}
        return rest
    absent = {*members(layout.get("fillers", [])), *members(layout.get("added_only", []))}
    vocab = {token: id for id, token in enumerate(parts.vocabulary) if id not in absent}
    vocab.update(layout.get("hidden", {}))
    as_pairs = layout.get("merges", "pairs") == "pairs"
    merges: list[Any] = [m.split(" ", 1) for m in parts.merges] if as_pairs else list(parts.merges)
    for index, merge in layout.get("merges_with_space", {}).items():
        merges[int(index)] = merge
    rest["model"] = {**model, "vocab": vocab, "merges": merges}
    return rest


def ranges(ids: Iterable[int]) -> list[list[int]]:
    """Ids as half-open ranges, ascending."""
    out: list[list[int]] = []
    for id in sorted(ids):
        if out and out[-1][1] == id:
            out[-1][1] = id + 1
        else:
            out.append([id, id + 1])
    return out


def members(spans: Iterable[Iterable[int]]) -> list[int]:
    """The ids of half-open ranges."""
    return [id for start, stop in spans for id in range(max(start, 0), min(stop, MAX_TOKENS))]


def fingerprint(spec: Mapping[str, Any], end_of_text: int | None) -> str:
    """sha256 over what decides encoding and decoding, in a form that does not depend on spelling.

    Left out: fillers, version, truncation and padding (apr applies neither), the order of keys.
    `end_of_text` separates documents, so it is in.
    """
    left_out = ("version", "truncation", "padding")
    view = {key: value for key, value in spec.items() if key not in left_out}
    if not is_unigram(spec):
        view["model"] = {**spec["model"], "merges": merge_pairs(spec)}
    view["end_of_text"] = end_of_text
    text = json.dumps(view, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()
