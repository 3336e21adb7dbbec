"""`write_checkpoint`: a language model's file that lacks nothing, or no file at all.

The one place that knows what a checkpoint must hold: pretrain, import and convert all save through
it. It refuses an incomplete architecture, a missing, unexpected or misshapen tensor, a missing
tokenizer, and a token list that does not fit the embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from apr import architecture as arch
from apr import families
from apr.architecture import Architecture
from apr.checkpoint.writer import Written, write_apr
from apr.errors import InvalidFormat, ModelLoadError, StrPath
from apr.tensors import Tensor

# What follows from the tensors and the tokenizer; a copied metadata block holds those of its old
# file, perhaps spelled as another writer does.
_REPLACED = frozenset({"total_size", "param_count", "special_tokens"})
_SHOWN = 20


class EmbeddableTokenizer(Protocol):
    """What a checkpoint needs of `apr.tokenizer.Tokenizer`."""

    def to_metadata(self, vocab_size: int | None = None) -> dict[str, Any]:
        """The flat `tokenizer.*` keys, special tokens and chat template, for that many ids."""


def write_checkpoint(
    path: StrPath,
    *,
    architecture: Architecture,
    tokenizer: EmbeddableTokenizer | None,
    tensors: Iterable[Tensor],
    metadata: Mapping[str, Any] | None = None,
    force: bool = False,
) -> str:
    """Write a complete, self-contained checkpoint; streaming and atomic as `write_apr`.

    Args:
        path: the file to make.
        architecture: written in canonical keys; must break no contract.
        tokenizer: embedded whole, padded with named fillers up to `vocab_size`. None is refused:
            there is no checkpoint without a tokenizer.
        tensors: exactly those of the family, under canonical names, in any order and type.
        metadata: further keys (name, source, training, ...), or the whole block of another file:
            totals, `special_tokens` and `tokenizer.*` in it give way to what is written, any other
            key that architecture or tokenizer state too must agree with them.
        force: replace an existing file.

    Returns:
        The file's checksum: its footer, CRC-32 of all bytes before it, as 8 hex digits.

    Raises:
        InvalidFormat: the architecture is incomplete or implausible (keys or rules are named), or
            the metadata contradicts it or cannot be written.
        ModelLoadError: tensors, token list, embedding and vocab_size do not fit together, or there
            is no tokenizer.
        StorageError: exists already, disk full, read-only; nothing is left behind.
    """
    held = list(tensors)
    if tokenizer is None:
        raise ModelLoadError(
            path,
            "a checkpoint without its tokenizer is never written",
            "give the tokenizer that the model was trained with",
        )
    stated = _architecture_metadata(architecture, path)
    _check_tensors(architecture, held, path)
    tokens = tokenizer.to_metadata(architecture.vocab_size)
    _check_vocabulary(architecture, tokens, held, path)
    return _write(path, stated, tokens, held, metadata or {}, force).checksum


def _write(
    path: StrPath,
    stated: Mapping[str, Any],
    tokens: Mapping[str, Any],
    tensors: list[Tensor],
    further: Mapping[str, Any],
    force: bool,
) -> Written:
    own = {**stated, **tokens}
    resolved = arch.resolve_aliases(further)
    if not {"head_dim", "attention_head_dim"} & further.keys():
        resolved.pop("head_dim", None)  # derived there, not stated
    extra: dict[str, Any] = {"model_type": stated["architecture"]}
    for key, value in resolved.items():
        if key.startswith("tokenizer.") or key in _REPLACED or value is None:
            continue
        if key not in own:
            extra[key] = value
        elif value != own[key]:
            raise InvalidFormat(
                path,
                f"metadata says {key} is {_short(value)}, the model's is {_short(own[key])}",
                "leave the key out: it is written from the model",
            )
    return write_apr(path, {**stated, **extra, **tokens}, tensors, force=force)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _architecture_metadata(architecture: Architecture, path: StrPath) -> dict[str, Any]:
    """The canonical keys, proven complete: an architecture is made of them again and compared."""
    stated = architecture.to_metadata()
    missing = arch.missing_keys(stated)
    if missing:
        raise InvalidFormat(
            path, "architecture metadata is incomplete: missing " + ", ".join(missing)
        )
    if arch.from_metadata(stated, path) != architecture:
        raise InvalidFormat(path, "architecture metadata does not give the architecture back")
    arch.check(architecture, path)
    return stated


def _check_tensors(architecture: Architecture, tensors: list[Tensor], path: StrPath) -> None:
    names = [tensor.name for tensor in tensors]
    problems = [
        f"tensor {name} is given {names.count(name)} times"
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    problems += families.tensor_problems(architecture, {tensor.name: tensor for tensor in tensors})
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ModelLoadError(path, "; ".join(problems[:_SHOWN]) + more)


def _check_vocabulary(
    architecture: Architecture, tokens: Mapping[str, Any], tensors: list[Tensor], path: StrPath
) -> None:
    vocabulary = tokens.get("tokenizer.vocabulary")
    if not vocabulary:
        raise ModelLoadError(path, "the tokenizer has no token list (tokenizer.vocabulary)")
    embeddings = {
        spec.name for spec in families.tensor_specs(architecture) if spec.role == "embedding"
    }
    rows = next(tensor.shape[0] for tensor in tensors if tensor.name in embeddings)
    stated = tokens.get("tokenizer.vocab_size", len(vocabulary))
    if not len(vocabulary) == stated == rows == architecture.vocab_size:
        raise ModelLoadError(
            path,
            f"the token list has {len(vocabulary):,} entries (tokenizer.vocab_size {stated:,}), "
            f"the embedding {rows:,} rows, and vocab_size is {architecture.vocab_size:,}",
            "all must be equal: train or resize the model for this tokenizer",
        )
