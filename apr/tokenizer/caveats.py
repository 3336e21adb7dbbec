"""Where llama.cpp's reading of a tokenizer's GGUF keys gives other ids, a sentence each.

Export goes on with these; what llama.cpp cannot do alike for ordinary text is refused instead
(`Tokenizer.to_gguf`). Found by comparing with llama-cpp-python 0.3.36.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from apr.tokenizer import alphabet, gguf_pieces, ggufkeys, pretokenizers, probe, recognition
from apr.tokenizer import spec as specs
from apr.tokenizer.tokenizer import Tokenizer

_SHOWN = 3  # texts named in a sentence


def of(tokenizer: Tokenizer) -> list[str]:
    """The sentences; empty where nothing is known to differ."""
    model = tokenizer.gguf_model
    out = list(_byte_level(tokenizer)) if model == "gpt2" else list(_pieces(tokenizer))
    return [*out, *_added(tokenizer), *_ends(tokenizer)]


def _byte_level(tokenizer: Tokenizer) -> Iterator[str]:
    spec = tokenizer.spec
    if "NFC" in specs.step_types(spec.get("normalizer")):
        yield "llama.cpp does not apply the NFC normalizer: text that is not NFC differs"
    found = recognition.recognition(spec)
    name = found.name
    if name is None:
        yield "llama.cpp has no name for this pre-tokenizer"
        return
    if not found.exact and (text := _first_other_ids(tokenizer, name)) is not None:
        yield f"llama.cpp's {name} splits otherwise than published files of that name: {text}"
    theirs = bool(pretokenizers.rules(name)["ignore_merges"])
    if theirs != bool(spec["model"].get("ignore_merges", False)):
        changed = _first_passed_over(tokenizer)
        if changed is not None:
            does = f"sets ignore_merges to {str(theirs).lower()} here"
            yield f"llama.cpp {does}, which changes the ids of {changed!r}"


def _first_passed_over(tokenizer: Tokenizer) -> str | None:
    """A token's text that merges do not make into the token, so that passing them over matters."""
    model = tokenizer.spec["model"]
    flipped = {**model, "ignore_merges": not model.get("ignore_merges", False)}
    theirs = replace(tokenizer, spec={**tokenizer.spec, "model": flipped})
    whole = [alphabet.to_bytes(text) for text, _ in specs.model_entries(tokenizer.spec)]
    texts = [data.decode("utf-8", "replace") for data in whole]
    pairs = zip(tokenizer.encode_batch(texts), theirs.encode_batch(texts), strict=True)
    return next((text for text, (a, b) in zip(texts, pairs, strict=True) if a != b), None)


def _first_other_ids(tokenizer: Tokenizer, name: str) -> recognition.Difference | None:
    """Where llama.cpp's splits give other ids than the tokenizer's own; splits alone may not."""
    section = pretokenizers.trained(name)
    theirs = replace(tokenizer, spec={**tokenizer.spec, "pre_tokenizer": section})
    texts = list(probe.texts())
    pairs = zip(tokenizer.encode_batch(texts), theirs.encode_batch(texts), strict=True)
    for text, (ours, other) in zip(texts, pairs, strict=True):
        if ours != other:
            return recognition.difference(tokenizer.spec, name, [text])
    return None


def _pieces(tokenizer: Tokenizer) -> Iterator[str]:
    spec = tokenizer.spec
    found = gguf_pieces.normalization(tokenizer)
    if found.difference is not None:
        yield f"llama.cpp cuts text otherwise: {found.difference}"
    if found.leading_space:
        yield "llama.cpp puts a space also before a text that begins with one"
    if "first" in _values(spec.get("pre_tokenizer"), "prepend_scheme"):
        yield "llama.cpp puts a space before each text behind a special token, not the first alone"
    if tokenizer.gguf_model == "llama":
        if found.rules.charsmap or found.rules.remove_extra_whitespaces:
            yield "llama.cpp does not normalize the text of a SentencePiece BPE"
        return
    if spec["model"].get("byte_fallback"):
        yield "llama.cpp's unigram has no byte fallback: what is no piece becomes the unknown token"
    if found.rules.prefix == "never" and found.rules.remove_extra_whitespaces:
        yield "llama.cpp's unigram puts a space before a text whose spaces it takes together"
    if found.rules.prefix == "always" and not found.rules.remove_extra_whitespaces:
        yield "llama.cpp's unigram puts no space before a text of spaces alone"


def _added(tokenizer: Tokenizer) -> Iterator[str]:
    for flag, does in (
        ("lstrip", "takes no spaces before"),
        ("rstrip", "takes no spaces behind"),
        ("single_word", "finds inside words too"),
    ):
        texts = [token["content"] for token in tokenizer.added.values() if token.get(flag)]
        if texts:
            yield f"llama.cpp {does} {_some(texts)}"
    tokens = tokenizer.tokens()
    forced = pretokenizers.forced_types(tokens)
    other = [
        text
        for id, text in enumerate(tokens)
        if text in forced and not tokenizer.is_filler(id)
        if tokenizer.is_special(id) != forced[text]
    ]
    if other:
        yield f"llama.cpp decides by its text whether {_some(other)} is a control token"


def _ends(tokenizer: Tokenizer) -> Iterator[str]:
    eos = tokenizer.eos_token_ids
    tokens = tokenizer.tokens()
    if not eos:
        yield "there is no end token; llama.cpp takes one of its own choice"
    if rest := eos[1 + len(ggufkeys.MORE_EOS) :]:
        yield f"GGUF has no key for a fourth end token: {_some([tokens[id] for id in rest])}"


def _some(texts: list[str]) -> str:
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return ", ".join(map(repr, texts[:_SHOWN])) + more


def _values(section: Any, key: str) -> set[Any]:
    """Every value that a key has anywhere in a section."""
    if not isinstance(section, dict):
        return set()
    out = {section[key]} if key in section else set()
    for step in section.get("pretokenizers") or []:
        out |= _values(step, key)
    return out
