"""The tokenizer of a model: a tokenizer.json, its special ids and its chat template, in one value.

It is data first (`spec`); the `tokenizers` library is loaded when something is encoded. Fillers
(ids up to the embedding's rows that mean nothing) are part of the token list and of nothing else:
no text gives one, and one decodes to nothing, as in transformers and llama.cpp.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apr.errors import InvalidFormat, StrPath
from apr.tokenizer import alphabet, pretokenizers
from apr.tokenizer import spec as specs
from apr.tokenizer.library import build

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer, whole.

    Attributes:
        spec: the tokenizer.json as parsed JSON; not to be changed.
        vocab_size: ids in the token list, fillers included.
        bos_token_id: begin-of-sequence, None where the model has none.
        eos_token_ids: the tokens that end a generation; the first also separates documents.
        chat_template: Jinja text, None where the model has none.
        config: further entries of tokenizer_config.json that transformers reads, kept as they are.
        record: how `apr` trained it; empty where it did not.
        scores: of SentencePiece's pieces, by id (float32); None where the source states none. A
            BPE's merges keep their order alone, so that they would be lost otherwise.
        stated_pre: the pre-tokenizer's name in the source; kept as `pre_type` where llama.cpp has
            several names for what this one does.
    """

    spec: specs.Json = field(repr=False)
    vocab_size: int
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    unk_token_id: int | None = None
    chat_template: str | None = field(default=None, repr=False)
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    record: Mapping[str, Any] = field(default_factory=dict, repr=False)
    scores: tuple[float, ...] | None = field(default=None, repr=False)
    stated_pre: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        least = specs.minimum_size(self.spec)
        if self.vocab_size < least:
            raise InvalidFormat(
                "tokenizer",
                f"its ids go up to {least - 1}, a list of {self.vocab_size} does not hold them",
                f"use a vocabulary size of {least} or more",
            )
        ids = {"bos": self.bos_token_id, "pad": self.pad_token_id, "unk": self.unk_token_id}
        named = [*ids.items(), *(("eos", id) for id in self.eos_token_ids)]
        for name, id in named:
            if id is not None and not 0 <= id < self.vocab_size:
                raise InvalidFormat(
                    "tokenizer",
                    f"the {name} token id {id} is outside the {self.vocab_size} tokens",
                    "correct the special ids beside the tokenizer",
                )

    # -- what it is ---------------------------------------------------------------------------

    @cached_property
    def pre_type(self) -> str | None:
        """llama.cpp's name for the pre-tokenizer, recognised by what it does; None: it has none."""
        from apr.tokenizer import recognition

        found = recognition.recognition(self.spec)
        stated = self.stated_pre
        if stated is not None and pretokenizers.canonical(stated) in found.siblings:
            return stated
        return found.name

    def may_be_called(self, name: str) -> bool:
        """Whether a pre-tokenizer's name stands for how this one splits."""
        from apr.tokenizer import recognition

        return pretokenizers.canonical(name) in recognition.recognition(self.spec).names

    @cached_property
    def is_byte_level(self) -> bool:
        """Whether tokens are written in the byte alphabet (GPT-2's), not as text."""
        return "ByteLevel" in specs.step_types(self.spec.get("decoder"))

    @property
    def gguf_model(self) -> str:
        """`tokenizer.ggml.model`: gpt2 is byte-level BPE, llama SentencePiece's, t5 Unigram."""
        if specs.is_unigram(self.spec):
            return "t5"
        return "gpt2" if self.is_byte_level else "llama"

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of what decides encoding and decoding; fillers do not change it."""
        return specs.fingerprint(self.spec, self.eos_token_ids[0] if self.eos_token_ids else None)

    @cached_property
    def gguf_caveats(self) -> list[str]:
        """Where llama.cpp's reading of this tokenizer gives other ids, a sentence each."""
        from apr.tokenizer import caveats

        return caveats.of(self)

    def tokens(self) -> list[str]:
        """Token texts by id, fillers included."""
        return list(self._tokens)

    def merges(self) -> list[str]:
        """The merges as "a b", in order of rank."""
        return [f"{left} {right}" for left, right in specs.merge_pairs(self.spec)]

    def is_special(self, id: int) -> bool:
        """Whether a token is a control token (bos, eos, roles of a chat, ...).

        Raises:
            InvalidFormat: the id is outside the vocabulary.
        """
        self._check_id(id)
        return id in self._special_ids

    def is_filler(self, id: int) -> bool:
        """Whether an id means nothing and only fills the embedding's rows.

        Raises:
            InvalidFormat: the id is outside the vocabulary.
        """
        self._check_id(id)
        return id not in self._known

    @cached_property
    def _tokens(self) -> list[str]:
        return specs.token_list(self.spec, self.vocab_size)

    @cached_property
    def _known(self) -> dict[int, str]:
        return specs.known_tokens(self.spec)

    @cached_property
    def added(self) -> dict[int, specs.Json]:
        """The added tokens by id, special or not; matched in a text before anything else."""
        return specs.added_tokens(self.spec)

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset(id for id, token in self.added.items() if token.get("special"))

    def _check_id(self, id: int) -> None:
        if not 0 <= id < self.vocab_size:
            raise InvalidFormat(
                "token ids", f"{id} is outside the vocabulary of {self.vocab_size} tokens"
            )

    # -- text to ids --------------------------------------------------------------------------

    def encode(
        self, text: str, *, add_special_tokens: bool = False, parse_special: bool = True
    ) -> list[int]:
        """Token ids of a text.

        Args:
            text: any text; lone surrogates are not text.
            add_special_tokens: also what the post-processor adds (bos, for some models).
            parse_special: whether the text of a control token gives that token (as in a prompt
                made by a chat template) or is text like any other (as in a document).

        Raises:
            InvalidFormat: the text holds a lone surrogate.
        """
        backend = self._backend if parse_special else self._plain_backend
        try:
            ids: list[int] = backend.encode(text, add_special_tokens=add_special_tokens).ids
        except UnicodeEncodeError as error:
            raise _not_text(error) from error
        except TypeError as error:
            raise _not_text(_surrogate_in(text) or error) from error
        return ids

    def encode_batch(self, texts: Sequence[str], *, parse_special: bool = False) -> list[list[int]]:
        """Token ids of many documents, in parallel; special tokens are neither added nor read.

        A document that quotes `<|endoftext|>` must not end there: its characters are encoded as
        text, unless `parse_special` says otherwise.

        Raises:
            InvalidFormat: a text holds a lone surrogate; its number is named.
        """
        backend = self._backend if parse_special else self._plain_backend
        try:
            encoded = backend.encode_batch_fast(list(texts), add_special_tokens=False)
        except (UnicodeEncodeError, TypeError) as error:
            for number, text in enumerate(texts):
                if (bad := _surrogate_in(text)) is not None:
                    raise _not_text(bad, f"text {number} of the batch") from error
            raise _not_text(error) from error
        return [item.ids for item in encoded]

    # -- ids to text --------------------------------------------------------------------------

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = False) -> str:
        """The text of token ids; fillers give nothing, bytes that are no UTF-8 give U+FFFD.

        Raises:
            InvalidFormat: an id is outside the vocabulary.
        """
        kept = []
        for id in ids:
            self._check_id(id)
            if id in self._known:
                kept.append(int(id))
        return str(self._backend.decode(kept, skip_special_tokens=skip_special_tokens))

    def token_bytes(self, id: int) -> bytes:
        """The bytes that a token adds to the text, exact also inside a character; fillers: none.

        Control and other added tokens give their text. Joined over a sequence this is the text of
        `decode`, where the tokenizer does not strip a leading space (SentencePiece models do).

        Raises:
            InvalidFormat: the id is outside the vocabulary.
        """
        self._check_id(id)
        text = self._known.get(id)
        if text is None:
            return b""
        if id in self.added:
            return text.encode("utf-8")
        if self.is_byte_level:
            return alphabet.to_bytes(text)
        decoder = specs.step_types(self.spec.get("decoder"))
        if byte_token(text) is not None and "ByteFallback" in decoder:
            return bytes([int(text[3:5], 16)])
        return text.replace("\u2581", " ").encode("utf-8")

    def is_byte_fallback(self, id: int) -> bool:
        """Whether the token is a single byte of a SentencePiece model, which decoding joins."""
        text = self._known.get(id)
        return (
            text is not None
            and not self.is_byte_level
            and id not in self.added
            and byte_token(text) is not None
            and "ByteFallback" in specs.step_types(self.spec.get("decoder"))
        )

    @property
    def strips_leading_space(self) -> bool:
        """Whether decoding drops a space at the beginning of a text (SentencePiece puts one there
        on encoding).
        """
        steps = specs.steps(self.spec.get("decoder"))
        return any(
            (step["type"] == "Strip" and step.get("start") and step.get("content") == " ")
            or (step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never")
            for step in steps
        )

    # -- the library --------------------------------------------------------------------------

    @cached_property
    def _backend(self) -> Backend:
        return build(self.spec, "tokenizer.json")

    @cached_property
    def _plain_backend(self) -> Backend:
        """As `_backend`, but control tokens in a text are text (the flag is the object's own)."""
        if not self._special_ids:
            return self._backend
        backend = build(self.spec, "tokenizer.json")
        backend.encode_special_tokens = True
        return backend

    @cached_property
    def added_around(self) -> tuple[list[int], list[int]]:
        """What the post-processor puts before and after a text.

        Read from its templates; found by what it does where it is of another kind.
        """
        stated = specs.template_ids(self.spec.get("post_processor"))
        if stated is not None:
            return stated
        probe = self.encode("a")
        whole = self.encode("a", add_special_tokens=True)
        for start in range(len(whole) - len(probe) + 1):
            if whole[start : start + len(probe)] == probe:
                return whole[:start], whole[start + len(probe) :]
        return [], []

    # -- other forms --------------------------------------------------------------------------

    def resized(self, vocab_size: int) -> Tokenizer:
        """The same tokenizer with a token list of another length (more or fewer fillers).

        Raises:
            InvalidFormat: a real token would fall off.
        """
        return replace(self, vocab_size=vocab_size)

    @classmethod
    def from_directory(cls, path: StrPath) -> Tokenizer:
        """Read a Hugging Face folder or one written by `apr tokenize train`.

        Raises:
            NotFound: there is no tokenizer.json.
            InvalidFormat: it cannot be read or is of a kind that is not supported.
        """
        from apr.tokenizer import directory

        return directory.read(Path(path))

    def write_directory(self, path: StrPath) -> None:
        """Write the files that `AutoTokenizer.from_pretrained` loads with nothing added.

        Raises:
            StorageError: the folder cannot be written.
        """
        from apr.tokenizer import directory

        directory.write(self, Path(path))

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Tokenizer | None:
        """The tokenizer embedded in `.apr` metadata; None where there is none.

        Raises:
            InvalidFormat: what stands there does not fit together.
        """
        from apr.tokenizer import embedding

        return embedding.read(metadata)

    def to_metadata(self, vocab_size: int | None = None) -> dict[str, Any]:
        """The `.apr` metadata keys that hold all of it, the list padded to `vocab_size` fillers.

        Raises:
            InvalidFormat: `vocab_size` is too small.
        """
        from apr.tokenizer import embedding

        return embedding.write(self if vocab_size is None else self.resized(vocab_size))

    @classmethod
    def from_gguf(cls, kv: Mapping[str, Any]) -> Tokenizer | None:
        """The tokenizer of a GGUF's keys; None where it has none.

        Raises:
            FeatureUnavailable: its model or pre-tokenizer is not one that `apr` can rebuild.
            InvalidFormat: the keys do not fit together.
        """
        from apr.tokenizer import ggufkeys

        return ggufkeys.read(kv)

    def to_gguf(
        self, vocab_size: int | None = None, *, allow_inexact: bool = False
    ) -> dict[str, Any]:
        """The `tokenizer.*` keys of a GGUF, the token list padded to `vocab_size` (rows).

        Args:
            vocab_size: tokens in the list; by default as many as this one has.
            allow_inexact: write what llama.cpp cannot do alike as the nearest that it can.

        Raises:
            FeatureUnavailable: llama.cpp has no name for what this tokenizer does; the first text
                that it would cut otherwise is shown.
            InvalidFormat: `vocab_size` is too small.
        """
        from apr.tokenizer import ggufkeys

        tokenizer = self if vocab_size is None else self.resized(vocab_size)
        return ggufkeys.write(tokenizer, allow_inexact=allow_inexact)


def byte_token(text: str) -> int | None:
    """The byte of a byte-fallback token such as `<0x0A>`; None for any other text."""
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        try:
            return int(text[3:5], 16)
        except ValueError:
            return None
    return None


def _surrogate_in(text: str) -> UnicodeEncodeError | None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return error
    return None


def _not_text(error: Exception, where: str = "text") -> InvalidFormat:
    if isinstance(error, UnicodeEncodeError):
        what = f"character {error.start} is a lone surrogate, which no UTF-8 has"
        return InvalidFormat(where, what, "decode the bytes with errors='replace'")
    return InvalidFormat(where, f"cannot be encoded ({error})")
