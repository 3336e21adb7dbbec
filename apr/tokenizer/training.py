"""Training of byte-level BPE, for the pre-tokenizers that llama.cpp implements.

The `tokenizers` library learns the merges. The ids are then laid out so that they read easily: 0 to
255 are the bytes themselves, the merges follow in order of rank, `<|endoftext|>` is last. There is
no normalizer: llama.cpp applies none, so any would make its ids differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from apr.errors import InvalidFormat, UsageError
from apr.tokenizer import alphabet, pretokenizers
from apr.tokenizer import spec as specs
from apr.tokenizer.pieces import added_token
from apr.tokenizer.tokenizer import Tokenizer

SMALLEST = 257  # every byte, and end-of-text
# A pair seen once teaches nothing about text that is still to come; such merges are not made.
MIN_FREQUENCY = 2
# Longer pieces are learned from in parts of so many characters; encoding has no such limit.
LONGEST_PIECE = 256


class _Counted:
    """Passes texts on, counts them and their bytes, and refuses what is no text."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.documents = 0
        self.bytes = 0
        self.error: InvalidFormat | None = None

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            try:
                size = len(text.encode("utf-8"))
            except UnicodeEncodeError as error:
                # Kept aside: the library would wrap it beyond recognition.
                self.error = InvalidFormat(
                    f"document {self.documents}",
                    f"character {error.start} is a lone surrogate, which no UTF-8 has",
                    "decode the bytes with errors='replace'",
                )
                raise self.error from error
            self.documents += 1
            self.bytes += size
            yield text


def train(texts: Iterable[str], vocab_size: int, pre: str) -> Tokenizer:
    """Learn a tokenizer.

    The result may have fewer tokens than asked for, where the text has too few repeated pairs;
    `record` then says what was asked and what came out (`asked_vocab_size`, `vocab_size`).

    Args:
        texts: the documents, read once.
        vocab_size: tokens in all, 257 (bytes and end-of-text, no merges) or more.
        pre: the pre-tokenizer, by llama.cpp's name.

    Raises:
        UsageError: the vocabulary is too small or too large, or the pre-tokenizer unknown.
        InvalidFormat: there is no text, or a document holds a lone surrogate.
    """
    check_request(vocab_size, pre)
    counted = _Counted(texts)
    merges = _learn(counted, vocab_size - SMALLEST, pre)
    if counted.bytes == 0:
        raise InvalidFormat(
            "dataset",
            f"holds no text ({counted.documents} documents, 0 bytes)",
            "give files that hold text",
        )
    tokens = list(alphabet.characters())
    seen = set(tokens)
    for left, right in merges:
        if left + right not in seen:
            seen.add(left + right)
            tokens.append(left + right)
    end = len(tokens)
    return Tokenizer(
        spec=_spec(pre, tokens, merges),
        vocab_size=end + 1,
        eos_token_ids=(end,),
        pad_token_id=end,
        stated_pre=pre,
        record={
            "pre_type": pre,
            "asked_vocab_size": vocab_size,
            "vocab_size": end + 1,
            "merges": len(merges),
            "min_frequency": MIN_FREQUENCY,
            "documents": counted.documents,
            "bytes": counted.bytes,
        },
    )


def check_request(vocab_size: int, pre: str) -> None:
    """Refuse what cannot be trained, before any text is read.

    Raises:
        UsageError: see `train`.
    """
    if not pretokenizers.rules(pre).get("offered", True):
        raise UsageError(
            "--pre",
            f"{pre!r} is what readers do without a name",
            f"use {', '.join(pretokenizers.offered())}",
        )
    if vocab_size < SMALLEST:
        raise UsageError(
            "--vocab-size",
            f"{vocab_size} is too small: the 256 bytes and {pretokenizers.end_of_text()} need "
            f"{SMALLEST}",
            f"use {SMALLEST} (bytes as tokens) or more",
        )
    if vocab_size > specs.MAX_TOKENS:
        raise UsageError("--vocab-size", f"{vocab_size} is beyond the limit of {specs.MAX_TOKENS}")


def _learn(counted: _Counted, count: int, pre: str) -> list[list[str]]:
    """Up to `count` merges, in order of rank."""
    if count == 0:
        for _ in counted:
            pass
        return []
    from tokenizers import Tokenizer as Library
    from tokenizers import models, trainers

    bare = _spec(pre, [], [])
    bare["added_tokens"] = []
    # A piece of 200,000 letters would take the trainer minutes (quadratic in its length).
    bare["pre_tokenizer"]["pretokenizers"].insert(1, pretokenizers.split_every(LONGEST_PIECE))
    library = Library.from_str(json.dumps(bare))
    library.model = models.BPE()
    trainer = trainers.BpeTrainer(
        vocab_size=count + 256,
        min_frequency=MIN_FREQUENCY,
        initial_alphabet=list(alphabet.characters()),
        special_tokens=[],
        show_progress=False,
    )
    try:
        library.train_from_iterator(counted, trainer=trainer)
    except Exception:
        if counted.error is not None:
            raise counted.error from None
        raise
    learned: dict[str, Any] = json.loads(library.to_str())
    return [list(pair) for pair in specs.merge_pairs(learned)]


def _spec(pre: str, tokens: list[str], merges: list[list[str]]) -> specs.Json:
    """The tokenizer.json: no normalizer, nothing added around a text."""
    end = added_token(len(tokens), pretokenizers.end_of_text(), special=True)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [end],
        "normalizer": None,
        "pre_tokenizer": pretokenizers.trained(pre),
        "post_processor": None,
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": False,
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            # llama.cpp decides this by the pre-tokenizer's name; ours must say the same.
            "ignore_merges": bool(pretokenizers.rules(pre)["ignore_merges"]),
            "vocab": {token: id for id, token in enumerate(tokens)},
            "merges": merges,
        },
    }
