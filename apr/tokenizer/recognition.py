"""Which of llama.cpp's pre-tokenizers a tokenizer.json has, found by what it does.

The tokenizer's own normalizer and pre-tokenizer split the texts of `apr.tokenizer.probe`; a name is
its name if llama.cpp splits every one of them alike under that name (`exact`), or if published
files of that name do (llama.cpp's own code then splits some texts otherwise, and `difference` shows
the first). A section that is letter for letter a known one needs no probing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from apr.errors import InvalidFormat
from apr.tokenizer import alphabet, pretokenizers, probe
from apr.tokenizer import spec as specs
from apr.tokenizer.library import build

Json = dict[str, Any]
Split = Callable[[str], list[str]]
_NOTHING = {"Sequence", "NFC"}  # normalizers that llama.cpp leaves out, see `gguf_caveats`


@dataclass(frozen=True)
class Difference:
    """A text that two pre-tokenizers split into different pieces."""

    text: str
    ours: tuple[str, ...]
    theirs: tuple[str, ...]

    def __str__(self) -> str:
        first = next(
            (n for n, (a, b) in enumerate(zip(self.ours, self.theirs, strict=False)) if a != b),
            min(len(self.ours), len(self.theirs)),
        )
        start = max(first - 1, 0)
        ours, theirs = (list(side[start : first + 3]) for side in (self.ours, self.theirs))
        return f"in {self.text!r}, {''.join(ours)!r} is {ours} here and {theirs} there"


@dataclass(frozen=True)
class Recognition:
    """What llama.cpp has for a pre-tokenizer.

    Attributes:
        name: its name there; None where it has none.
        siblings: every name under which llama.cpp splits so, with the same `ignore_merges`.
        exact: whether llama.cpp itself splits the probe texts so, not only published files.
        names: every name under which it splits so, whatever it does with merges.
        closest: `name`, or the name that fewest probe texts tell apart.
    """

    name: str | None
    siblings: tuple[str, ...]
    exact: bool
    closest: str | None
    names: tuple[str, ...] = ()


def recognition(spec: Mapping[str, Any]) -> Recognition:
    """What llama.cpp has for the pre-tokenizer of a tokenizer.json."""
    key = _key(spec)
    if key is None:
        return Recognition(None, (), False, None)
    known = _known_forms().get(_form(spec.get("pre_tokenizer"))) if not key[0] else None
    found = known if known is not None else _probed(*key)
    texts = {token.get("content") for token in spec.get("added_tokens") or []}
    ignores = bool((spec.get("model") or {}).get("ignore_merges", False))

    def rank(name: str) -> tuple[bool, bool]:
        rule = pretokenizers.rules(name)
        marks = rule.get("marks")
        # A name with marks belongs to tokenizers that have them, and goes before the others then.
        unfit = not texts.issuperset(marks) if marks else any(map(marked, found.names))
        return bool(rule["ignore_merges"]) != ignores, unfit

    def marked(name: str) -> bool:
        marks = pretokenizers.rules(name).get("marks")
        return bool(marks) and texts.issuperset(marks or [])

    ordered = sorted(found.names, key=rank)
    same = tuple(n for n in ordered if pretokenizers.rules(n)["ignore_merges"] == ignores)
    name = ordered[0] if ordered else None
    siblings = same or tuple(ordered[:1])
    return Recognition(name, siblings, found.exact, name or found.closest, found.names)


def difference(
    spec: Mapping[str, Any], name: str, texts: Sequence[str] | None = None
) -> Difference | None:
    """The first text that llama.cpp splits otherwise under `name`; None where none is.

    Args:
        spec: a tokenizer.json.
        name: llama.cpp's.
        texts: by default the probe texts.
    """
    key = _key(spec)
    if key is None:
        return None
    own = _splitter(*key)
    for text in probe.texts() if texts is None else texts:
        ours, theirs = own(text), _split_by(name)(text)
        if ours != theirs:
            return Difference(text, _shown(ours), _shown(theirs))
    return None


@dataclass(frozen=True)
class _Found:
    names: tuple[str, ...]
    exact: bool
    closest: str | None = None


def _key(spec: Mapping[str, Any]) -> tuple[str, str] | None:
    """Normalizer (empty where llama.cpp's leaving it out is a caveat) and pre-tokenizer as JSON."""
    section = spec.get("pre_tokenizer")
    if "ByteLevel" not in specs.step_types(section):
        return None
    normalizer = spec.get("normalizer")
    plain = normalizer is None or specs.step_types(normalizer) <= _NOTHING
    return "" if plain else json.dumps(normalizer), json.dumps(section)


@cache
def _probed(normalizer: str, section: str) -> _Found:
    """The names whose splits are those of the sections, by probing."""
    try:
        ours = _splits(normalizer, section)
    except InvalidFormat:  # the library refuses the section; whoever encodes is told why
        return _Found((), False)
    names = pretokenizers.names()
    exact = tuple(name for name in names if _same(ours, _split_by(name)))
    if exact:
        return _Found(exact, True)
    alike = tuple(
        name
        for name in names
        if any(_same(ours, _splitter("", json.dumps(s))) for s in pretokenizers.published(name))
    )
    if alike:
        return _Found(alike, False)
    wrong = {
        name: sum(
            _split_by(name)(text) != own for text, own in zip(probe.texts(), ours, strict=True)
        )
        for name in names
    }
    return _Found((), False, min(names, key=lambda name: wrong[name]))


def _same(ours: Sequence[list[str]], split: Split) -> bool:
    return all(split(text) == own for text, own in zip(probe.texts(), ours, strict=True))


@cache
def _splits(normalizer: str, section: str) -> tuple[list[str], ...]:
    split = _splitter(normalizer, section)
    return tuple(split(text) for text in probe.texts())


@cache
def _split_by(name: str) -> Split:
    return _splitter("", json.dumps(pretokenizers.trained(name)))


@cache
def _splitter(normalizer: str, section: str) -> Split:
    """A function that gives the pieces of a text, in the byte alphabet."""
    spec = {
        "version": "1.0", "added_tokens": [], "post_processor": None, "decoder": None,
        "normalizer": json.loads(normalizer) if normalizer else None,
        "pre_tokenizer": json.loads(section), "model": {"type": "BPE", "vocab": {}, "merges": []},
    }  # fmt: skip
    backend: Any = build(spec, "tokenizer.json")

    @cache
    def split(text: str) -> list[str]:
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        return [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)]

    return split


@cache
def _known_forms() -> dict[str, _Found]:
    """The sections that are known to the letter; the trained ones go first."""
    names: dict[str, list[str]] = {}
    exact: dict[str, bool] = {}
    for is_exact, sections in (
        (True, lambda name: [pretokenizers.trained(name)]),
        (False, pretokenizers.published),
    ):
        for name in pretokenizers.names():
            for section in sections(name):
                form = _form(section)
                names.setdefault(form, [])
                exact.setdefault(form, is_exact)
                if name not in names[form]:
                    names[form].append(name)
    return {form: _Found(tuple(found), exact[form]) for form, found in names.items()}


def _form(section: Any) -> str:
    """A section as text, without what changes no piece."""

    def plain(step: Any) -> Any:
        if not isinstance(step, Mapping):
            return step
        inner = step.get("pretokenizers")
        if step.get("type") == "Sequence" and isinstance(inner, list) and len(inner) == 1:
            return plain(inner[0])
        out = {key: value for key, value in step.items() if key != "trim_offsets"}
        if isinstance(inner, list):
            out["pretokenizers"] = [plain(part) for part in inner]
        return out

    return json.dumps(plain(section), sort_keys=True)


def _shown(pieces: Sequence[str]) -> tuple[str, ...]:
    return tuple(alphabet.to_bytes(piece).decode("utf-8", "replace") for piece in pieces)
