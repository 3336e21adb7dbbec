"""What is judged: the model as far as it opens, and its raw pieces where it does not.

`Subject.open` raises for files that are no model at all (missing, cut short, wrong magic). A file
whose container is sound but whose contents are not (no hidden_size, an unknown architecture) opens
with its `defect`, so that the gates can name it and judge the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apr.errors import AprError, ModelLoadError, StrPath
from apr.formats.opened import FormatName, OpenedModel
from apr.qa.report import Skip
from apr.tensors import Tensor

if TYPE_CHECKING:
    from apr.engine import Engine
    from apr.tokenizer import Tokenizer

NO_TOKENIZER = "has no embedded tokenizer (tokenizer.vocabulary)"
_WHERE_TOKENIZERS_ARE = {
    "apr": NO_TOKENIZER,
    "gguf": "has no embedded tokenizer (tokenizer.ggml.tokens)",
    "hf": "has no tokenizer (tokenizer.json or tokenizer.model)",
}


@dataclass(frozen=True)
class Settings:
    """How the engine is to run; None as in `apr.engine.load`, but qa computes in float32."""

    device: str | None = None
    dtype: str | None = "float32"
    threads: int | None = None
    kernels: str | None = None
    cache: str | None = None


@dataclass(frozen=True)
class Subject:
    """One file under judgement; `model` is None where `defect` says why it does not open."""

    path: Path
    format: FormatName
    model: OpenedModel | None
    defect: AprError | None
    settings: Settings

    @classmethod
    def open(cls, path: StrPath, settings: Settings) -> Subject:
        """Open a path as far as it goes.

        Raises:
            NotFound: it does not exist, or is no model.
            InvalidFormat, CorruptFile: the container itself cannot be read.
        """
        from apr.formats import open_model
        from apr.formats.opening import detect_format

        target = Path(path)
        kind = detect_format(target)
        try:
            return cls(target, kind, open_model(target), None, settings)
        except AprError as error:
            _require_container(target, kind, error)
            return cls(target, kind, None, error, settings)

    def require_model(self) -> OpenedModel:
        """The opened model.

        Raises:
            Skip: it does not open; the metadata gate says why.
        """
        if self.model is None:
            raise Skip(f"the model does not open: {self.defect.what if self.defect else ''}")
        return self.model

    @cached_property
    def raw_metadata(self) -> Mapping[str, Any]:
        """The file's own keys: `.apr` metadata, GGUF key-values, or config.json."""
        return _raw_metadata(self.path, self.format)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer, also of a model that does not open otherwise.

        Raises:
            ModelLoadError: there is none.
            AprError: it is damaged.
        """
        found = self._tokenizer
        if found is None:
            raise ModelLoadError(
                self.path,
                _WHERE_TOKENIZERS_ARE[self.format],
                "write the file again with its tokenizer: apr pretrain, apr export",
            )
        return found

    @cached_property
    def _tokenizer(self) -> Tokenizer | None:
        if self.model is not None:
            return self.model.tokenizer
        return _raw_tokenizer(self.path, self.format)

    @cached_property
    def engine(self) -> Engine:
        """The model, loaded. Errors as `apr.engine.load`, or Skip where it does not open."""
        from apr import engine

        s = self.settings
        return engine.load(self.require_model(), s.device, s.dtype, s.threads, s.kernels, s.cache)

    def random_ids(self, count: int, seed: int) -> list[int]:
        """Ids from the whole vocabulary, a function of the seed: prompts that need no tokenizer."""
        vocab = self.require_model().architecture.vocab_size
        return [int(i) for i in np.random.default_rng(seed).integers(0, vocab, count)]

    def prompt(self, count: int, seed: int, *, room: int = 0) -> list[int]:
        """A prompt of `count` random ids, shorter where the context lacks room for it and `room`.

        Raises:
            Skip: the context is too short for a prompt of 2.
        """
        context = self.require_model().architecture.max_position_embeddings
        fits = min(count, context - room)
        if fits < 2:
            raise Skip(f"the context of {context} tokens is too short for this gate")
        return self.random_ids(fits, seed)


def relative_difference(a: Sequence[Any] | Any, b: Sequence[Any] | Any) -> float:
    """Relative difference, max |a - b| / max |a|; infinite where either is not finite."""
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return float("inf")
    scale = float(np.abs(first).max())
    difference = float(np.abs(first - second).max())
    if difference == 0.0:
        return 0.0
    return difference / scale if scale else float("inf")


def storage_kind(tensors: Mapping[str, Tensor], known: Mapping[str, Any]) -> str:
    """The coarsest storage type of a model's matrices, as a key of a threshold table.

    Types without a row of their own count as `other`.
    """
    order = ["F64", "F32", "F16", "BF16", "Q8_0", "other"]
    kinds = {t.dtype.name for t in tensors.values() if len(t.shape) > 1}
    ranked = [k if k in known else ("F32" if k == "F64" else "other") for k in kinds] or ["F32"]
    return max(ranked, key=order.index)


def _require_container(path: Path, kind: FormatName, error: AprError) -> None:
    """Raise `error` unless the file is readable as a container of its format."""
    try:
        _raw_metadata(path, kind)
        if kind == "hf":
            from apr.formats.hf_reader import read_weights

            read_weights(path)
    except AprError:
        raise error from None


def _raw_metadata(path: Path, kind: FormatName) -> Mapping[str, Any]:
    if kind == "apr":
        from apr.checkpoint import AprFile

        return AprFile.open(path).metadata
    if kind == "gguf":
        from apr.formats.gguf_reader import GgufFile

        return GgufFile.open(path).fields
    from apr.formats.hf_reader import read_config

    return read_config(path)


def _raw_tokenizer(path: Path, kind: FormatName) -> Tokenizer | None:
    from apr.tokenizer import Tokenizer

    if kind == "apr":
        return Tokenizer.from_metadata(_raw_metadata(path, kind))
    if kind == "gguf":
        return Tokenizer.from_gguf(_raw_metadata(path, kind))
    from apr.formats.hf_reader import read_tokenizer

    return read_tokenizer(path)
