"""The pre-tokenizers that llama.cpp knows by name: what they do, written for the library.

A pre-tokenizer has a name in GGUF (`tokenizer.ggml.pre`), and the reader runs its own code for it.
The names, patterns and deviations are data: `contracts/pre-tokenizers.yaml`. Which name a
tokenizer.json has is found by `apr.tokenizer.recognition`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from apr import contracts
from apr.errors import UsageError

Json = dict[str, Any]

# A class ([...], with \p inside or not), or a Unicode category on its own.
_CLASS = re.compile(r"\[(?:\\.|[^\]\\])*\]|\\p\{\w+\}")
_CATEGORY = re.compile(r"\\p\{(\w)")


def names() -> list[str]:
    """The names that are recognised and rebuilt."""
    return list(_contract()["pre_tokenizers"])


def offered() -> list[str]:
    """The names offered for training."""
    known = _contract()["pre_tokenizers"]
    return [name for name, rule in known.items() if rule.get("offered", True)]


def forced_types(tokens: Iterable[str]) -> dict[str, bool]:
    """Tokens whose type llama.cpp sets itself: True for control, False for user-defined."""
    stated = _contract()["llama_cpp_types"]
    types = dict.fromkeys(stated["control"], True) | dict.fromkeys(stated["shown"], False)
    found = {text: types[text] for text in tokens if text in types}
    for rule in stated["shown_beside"]:
        if rule["token"] in found and found.keys() >= set(rule["beside"]):
            found[rule["token"]] = False
    return found


def end_of_text() -> str:
    """The end-of-text token of a trained tokenizer."""
    return str(_contract()["end_of_text"])


def rules(name: str) -> Mapping[str, Any]:
    """What llama.cpp does under this name: `ignore_merges`, `add_bos_default`, ...

    Raises:
        UsageError: llama.cpp's name is not one that `apr` knows.
    """
    known = _contract()["pre_tokenizers"]
    found = canonical(name)
    if found is None:
        raise UsageError("--pre", f"unknown pre-tokenizer {name!r}", f"use {', '.join(offered())}")
    stated: Mapping[str, Any] = known[found]
    return stated


def canonical(name: str) -> str | None:
    """The name under which llama.cpp's `name` stands here; None where it is not known."""
    if name in _contract()["pre_tokenizers"]:
        return name
    return _aliases().get(name)


@cache
def _aliases() -> dict[str, str]:
    known = _contract()["pre_tokenizers"]
    return {alias: name for name, rule in known.items() for alias in rule.get("aliases", [])}


@cache
def exact_patterns(name: str) -> tuple[str, ...]:
    """The regular expressions that split, one after the other, as llama.cpp does under this name.

    Raises:
        UsageError: see `rules`.
    """
    return tuple(exact(str(pattern)) for pattern in rules(name)["trained"])


@cache
def exact(pattern: str) -> str:
    """A pattern whose classes leave out what Unicode added after llama.cpp's tables."""
    return _CLASS.sub(lambda match: _without_newer(match.group()), pattern)


def _without_newer(group: str) -> str:
    categories = set(_CATEGORY.findall(group))
    if not categories:
        return group
    newer = _newer(marks=bool(categories - {"L", "N"}))
    if group.startswith("[^"):
        return rf"(?:{group}|[{newer}])"
    return rf"(?:(?![{newer}]){group})"


@cache
def _newer(*, marks: bool) -> str:
    """The newer characters as ranges for a class; letters and numbers, or all of them."""
    unicode = _contract()["unicode"]
    spans = [*unicode["newer"], *(unicode["newer_marks"] if marks else [])]
    pairs = (span.split("-") for span in spans)
    return "".join(f"{chr(int(first, 16))}-{chr(int(last, 16))}" for first, last in pairs)


def recognise(spec: Mapping[str, Any]) -> str | None:
    """llama.cpp's name for a tokenizer.json's pre-tokenizer; see `apr.tokenizer.recognition`."""
    from apr.tokenizer import recognition

    return recognition.recognition(spec).name


def trained(name: str) -> Json:
    """The `pre_tokenizer` section of a tokenizer.json trained under this name."""
    return steps(exact_patterns(name))


def published(name: str) -> list[Json]:
    """The other forms in which tokenizer.json files have this pre-tokenizer."""
    out = []
    for form in rules(name)["published"]:
        if form == "ByteLevel":
            out.append(_byte_level(use_regex=True))
        else:
            out.append(steps([form] if isinstance(form, str) else form))
    return out


def steps(patterns: Sequence[str]) -> Json:
    """Split by each pattern in turn, every match a piece, then map bytes to the alphabet.

    `Digits` and `ByteLevel` among the patterns are the library's steps of that name.
    """
    own = patterns[-1] == "ByteLevel"
    parts = [
        {"type": "Digits", "individual_digits": True} if pattern == "Digits" else split(pattern)
        for pattern in (patterns[:-1] if own else patterns)
    ]
    return {"type": "Sequence", "pretokenizers": [*parts, _byte_level(use_regex=own)]}


def split_every(characters: int) -> Json:
    """A step that cuts long pieces; for training only, llama.cpp has nothing like it."""
    return split(rf"[\s\S]{{1,{characters}}}")


def split(pattern: str) -> Json:
    """A step that makes every match of a pattern, and what is between, a piece."""
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


def _byte_level(*, use_regex: bool) -> Json:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


@cache
def _contract() -> dict[str, Any]:
    return contracts.load("pre-tokenizers")
