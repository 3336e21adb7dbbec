"""Opening a model that is to be imported, with one error that lists everything wrong with it.

`open_model` stops at the first problem, which is right for a verb that only reads. Whoever imports
has a folder from somewhere else and wants to know all of it at once: fields of the config, tensors,
shapes, tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from apr import architecture as arch
from apr import families
from apr.architecture import Architecture
from apr.errors import AprError, InvalidFormat, ModelLoadError, NotFound, StrPath, UsageError
from apr.formats import GgufFile, OpenedModel, detect_format, open_model
from apr.formats.mxfp4 import METHOD as MXFP4

if TYPE_CHECKING:
    from collections.abc import Mapping

    from apr.tensors import Tensor
    from apr.tokenizer import Tokenizer

T = TypeVar("T")
_SHOWN = 60  # problems in the message; a model of another family has thousands


class _Problems:
    """What was found so far, a line each; the first decides the kind of the error."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.errors: list[AprError] = []
        self.unread: Path | None = None  # a file that none of the questions could read

    def ask(self, question: Callable[[], T]) -> T | None:
        """The answer; None where the question ended in an error, which is kept."""
        try:
            return question()
        except AprError as error:
            self.errors.append(error)
            return None

    def add(self, *lines: str, hint: str = "") -> None:
        """Problems of parts that do not fit together."""
        self.errors += [ModelLoadError(self.path, line, hint) for line in lines]

    def refuse(self, note: str = "") -> None:
        """Raise one error with everything that was found, if anything was; what is wrong with an
        unreadable file is said once, by whoever asked first.
        """
        if not self.errors:
            return
        again = [e for e in self.errors if self.unread and Path(e.where) == self.unread][1:]
        self.errors = [error for error in self.errors if error not in again]
        first = self.errors[0]
        if len(self.errors) == 1:
            raise type(first)(first.where, first.what, "; ".join(filter(None, (first.hint, note))))
        lines = [f"({i}) {self._line(e)}" for i, e in enumerate(self.errors[:_SHOWN], start=1)]
        if len(self.errors) > _SHOWN:
            lines.append(f"and {len(self.errors) - _SHOWN} more")
        raise type(first)(self.path, f"{len(self.errors)} problems: " + "; ".join(lines), note)

    def _line(self, error: AprError) -> str:
        place = "" if Path(error.where) == self.path else f"{Path(error.where).name}: "
        return f"{place}{error.what}" + (f" ({error.hint})" if error.hint else "")


def open_source(path: StrPath) -> OpenedModel:
    """Open a Hugging Face folder or a GGUF file that can be imported as it is; no weight is read.

    Raises:
        UsageError: it is an `.apr` file already.
        NotFound: there is no such path, or no model at it.
        InvalidFormat, CorruptFile, ModelLoadError: what is wrong; with more than one problem, all
            of them in one message, the kind being that of the first.
    """
    source = Path(path)
    kind = detect_format(source)
    if kind == "apr":
        raise UsageError(
            source, "is an .apr file already", "apr export writes it in another type or format"
        )
    return _folder(source) if kind == "hf" else _gguf(source)


def _folder(path: Path) -> OpenedModel:
    from apr.formats import hf_reader as hf

    found = _Problems(path)
    config = found.ask(lambda: hf.read_config(path))
    found.unread = path / hf.CONFIG if config is None else None
    weights = found.ask(lambda: hf.read_weights(path))
    if config is None and weights is None and isinstance(found.errors[0], NotFound):
        pickled = [e for e in found.errors[1:] if "pickle" in e.what]
        raise pickled[0] if pickled else found.errors[0]
    architecture, readable = None, True
    if config is not None:
        architecture = found.ask(lambda: hf.read_architecture(path, config))
        method = _quantized(config)
        readable = method in (None, MXFP4)  # whose tensors the recipes read
        if not readable:
            found.errors.append(
                InvalidFormat(
                    path / hf.CONFIG,
                    f"has a quantization_config ({method}), whose tensors apr cannot read",
                    "import the model that it was made of, or a GGUF",
                )
            )
    if architecture is not None and architecture.tie_word_embeddings and weights is not None:
        found.ask(lambda: hf.require_same_head(path, weights, architecture))
    tensors = None
    if architecture is not None and weights is not None and readable:
        tensors = hf.canonical_tensors(weights, architecture)
    missing = "has no tokenizer (tokenizer.json or tokenizer.model)"
    _judge(found, architecture, tensors, lambda: hf.read_tokenizer(path), missing)
    return open_model(path)


def _quantized(config: Mapping[str, Any]) -> str | None:
    """How the folder's tensors are quantized, None if they are not."""
    found = config.get("quantization_config")
    if not found:
        return None
    named = found.get("quant_method") if isinstance(found, dict) else None
    return str(named or "of an unnamed kind")


def _gguf(path: Path) -> OpenedModel:
    from apr.formats import gguf_model as gguf

    found = _Problems(path)
    file = GgufFile.open(path)
    parts = file.fields.get("split.count", 1)
    if parts != 1:  # every other problem would only be that the other parts are not here
        raise InvalidFormat(
            path,
            f"is one of {parts} parts of a GGUF",
            "join them first: llama-gguf-split --merge FIRST-PART OUT.gguf",
        )
    architecture = found.ask(lambda: gguf.read_architecture(file, check_tokens=False))
    found.ask(lambda: gguf.check_token_list(file))
    found.ask(lambda: gguf.read_metadata(file))
    tensors = None
    if architecture is not None:
        tensors = found.ask(lambda: gguf.canonical_tensors(file, architecture))
    missing = f"has no tokenizer ({gguf.TOKENS})"
    _judge(found, architecture, tensors, lambda: gguf.read_tokenizer(file), missing)
    return open_model(path)


def _judge(
    found: _Problems,
    architecture: Architecture | None,
    tensors: Mapping[str, Tensor] | None,
    read_tokenizer: Callable[[], Tokenizer | None],
    no_tokenizer: str,
) -> None:
    """What both formats are held to; raises if this or anything before it is a problem."""
    before = len(found.errors)
    tokenizer = found.ask(read_tokenizer)
    if tokenizer is None and len(found.errors) == before:
        found.add(no_tokenizer, hint="an .apr file is never written without its tokenizer")
    if architecture is not None:
        found.errors += [
            InvalidFormat(found.path, f"[{v.rule}] {v.message}")
            for v in arch.violations(architecture)
        ]
        rows = architecture.vocab_size
        if tokenizer is not None and tokenizer.vocab_size > rows:
            found.add(
                f"its tokenizer has {tokenizer.vocab_size} tokens, the embedding has {rows} rows",
                hint="the model cannot take every token that this tokenizer gives",
            )
    if architecture is not None and tensors is not None:
        found.add(*families.tensor_problems(architecture, tensors))
        found.add(
            *(
                f"tensor {name} is stored as {tensor.dtype.name}, which is no weight"
                for name, tensor in tensors.items()
                if not (tensor.dtype.is_float or tensor.dtype.is_block)
            )
        )
    unknown = "the tensors were not compared, because the architecture is not known"
    found.refuse(unknown if architecture is None else "")
