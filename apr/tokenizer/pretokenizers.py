"""The pre-tokenizers that llama.cpp knows: recognised by what they do, and written for training.

A pre-tokenizer has a name in GGUF (`tokenizer.ggml.pre`), and the reader runs its own code for it.
The names, patterns and deviations are data: `contracts/pre-tokenizers.yaml`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from apr import contracts
from apr.errors import UsageError

Json = dict[str, Any]


def names() -> list[str]:
    """The names offered for training, and those that are recognised."""
    return list(_contract()["pre_tokenizers"])


def end_of_text() -> str:
    """The end-of-text token of a trained tokenizer."""
    return str(_contract()["end_of_text"])


def rules(name: str) -> Mapping[str, Any]:
    """What llama.cpp does under this name: `ignore_merges`, `add_bos_default`.

    Raises:
        UsageError: llama.cpp's name is not one that `apr` knows.
    """
    known = _contract()["pre_tokenizers"]
    if name not in known:
        raise UsageError("--pre", f"unknown pre-tokenizer {name!r}", f"use {', '.join(known)}")
    found: Mapping[str, Any] = known[name]
    return found


@cache
def trained_pattern(name: str) -> str:
    """The regular expression that splits as llama.cpp does under this name.

    Raises:
        UsageError: see `rules`.
    """
    pattern = str(rules(name)["trained"])
    ranges = (span.split("-") for span in _contract()["unicode"]["newer"])
    newer = "".join(f"{chr(int(first, 16))}-{chr(int(last, 16))}" for first, last in ranges)
    classes = {
        "<letter>": rf"(?:(?![{newer}])\p{{L}})",
        "<number>": rf"(?:(?![{newer}])\p{{N}})",
        "<lead>": rf"(?:[^\r\n\p{{L}}\p{{N}}]|[{newer}])",
        "<other>": rf"(?:[^\s\p{{L}}\p{{N}}]|[{newer}])",
    }
    for placeholder, expression in classes.items():
        pattern = pattern.replace(placeholder, expression)
    return pattern


def trained(name: str) -> Json:
    """The `pre_tokenizer` section of a tokenizer.json trained under this name."""
    return split_then_bytes(trained_pattern(name))


def split_then_bytes(pattern: str) -> Json:
    """Split by a pattern, every match a piece, then map bytes to the alphabet."""
    return {"type": "Sequence", "pretokenizers": [_split(pattern), _byte_level(use_regex=False)]}


def split_every(characters: int) -> Json:
    """A step that cuts long pieces; for training only, llama.cpp has nothing like it."""
    return _split(rf"[\s\S]{{1,{characters}}}")


def _split(pattern: str) -> Json:
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


def recognise(spec: Mapping[str, Any]) -> str | None:
    """llama.cpp's name for a tokenizer.json's pre-tokenizer; None where it has none.

    A normalizer other than NFC (which llama.cpp leaves out, see `Tokenizer.gguf_caveats`) changes
    text in a way that no name stands for.
    """
    normalizer = spec.get("normalizer")
    if normalizer is not None and normalizer.get("type") != "NFC":
        return None
    form = _normal_form(spec.get("pre_tokenizer"))
    return None if form is None else _by_form().get(form)


@cache
def _by_form() -> dict[str, str]:
    table = {trained_pattern(name): name for name in names()}
    for name in names():
        table |= {str(pattern): name for pattern in rules(name)["recognised"]}
    return table


def _normal_form(pre_tokenizer: Any) -> str | None:
    """The pattern of a byte-level pre-tokenizer; None where it does anything else."""
    if not isinstance(pre_tokenizer, Mapping):
        return None
    steps = [pre_tokenizer]
    if pre_tokenizer.get("type") == "Sequence":
        steps = list(pre_tokenizer.get("pretokenizers") or [])
    if not steps or not all(isinstance(step, Mapping) for step in steps):
        return None
    last = steps[-1]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space", True):
        return None
    if len(steps) == 1:
        return "ByteLevel" if last.get("use_regex", True) else None
    if len(steps) != 2 or last.get("use_regex", True):
        return None
    split = steps[0]
    is_plain = (
        split.get("type") == "Split"
        and split.get("behavior") == "Isolated"
        and not split.get("invert", False)
    )
    pattern = split.get("pattern")
    if not is_plain or not isinstance(pattern, Mapping) or "Regex" not in pattern:
        return None
    return str(pattern["Regex"])


@cache
def _contract() -> dict[str, Any]:
    return contracts.load("pre-tokenizers")
