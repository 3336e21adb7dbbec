"""`diff`: open both models, compare what each says, then every tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from math import isfinite
from typing import Any

import numpy as np

from apr.architecture import Architecture
from apr.diff.difference import Difference, FieldDifference, NotCompared, Section
from apr.diff.tokens import compare_tokenizers
from apr.diff.weights import compare_tensors
from apr.errors import ModelLoadError, StrPath, UsageError
from apr.families import as_opened_from_gguf
from apr.formats import open_model
from apr.formats.opened import OpenedModel

# What a GGUF has no key for. The activation is what its family computes, and a file with a rotary
# scaling is refused when it is opened, so both of these are known of a GGUF and compared.
_NOT_IN_GGUF = ("initializer_range",)
# What every format can say. Of two .apr files all other entries are compared as well.
_EVERYWHERE = ("name", "license", "author", "description", "version", "training")
# When, where and from what a file was made: of the file, not of the model.
_PROVENANCE = frozenset({"created_at", "source", "import", "original_format"})
# Compared in their own sections, or what follows from those.
_ELSEWHERE = frozenset({"architecture", "model_type", "hf_architecture", "hf_model_type"}) | {
    *("rope_type", "special_tokens", "chat_template", "total_size", "param_count"),
    *(field.name for field in fields(Architecture)),
}
_OF_THE_RUN = frozenset({"receipt"})  # in the training record: the machine and the hour


def diff(
    a: StrPath,
    b: StrPath,
    *,
    tolerance: float = 0.0,
    progress: Callable[[str], None] | None = None,
) -> Difference:
    """Compare two models of any format.

    Args:
        a: an .apr file, a GGUF file or a Hugging Face folder.
        b: the other.
        tolerance: largest difference of two elements, in the weights' own unit, that is none.
        progress: called with the name of what is compared now.

    Raises:
        UsageError: the tolerance is negative or no number.
        NotFound, InvalidFormat, CorruptFile: a file cannot be opened, or is damaged.
        ModelLoadError: a file is readable and no model, or has no tensor to compare.
        FeatureUnavailable: a storage type or tokenizer that cannot be read here.
    """
    if not (isfinite(tolerance) and tolerance >= 0):
        raise UsageError("--tolerance", f"{tolerance} is no distance", "write 0 or more")
    first, second = open_model(a), open_model(b)
    for model in (first, second):
        if not model.tensors:
            raise ModelLoadError(model.path, "holds no tensors, so there is nothing to compare")
    architecture = compare_architectures(first, second)
    metadata = compare_metadata(first, second)
    if progress is not None:
        progress("tokenizer")
    return Difference(
        a=first.path,
        b=second.path,
        format_a=first.format,
        format_b=second.format,
        tolerance=tolerance,
        architecture=architecture,
        metadata=metadata,
        tokenizer=compare_tokenizers(first, second),
        tensors=compare_tensors(first.tensors, second.tensors, progress),
    )


def compare_architectures(a: OpenedModel, b: OpenedModel) -> Section:
    """Field by field; beside a GGUF as that format states it (floats as float32)."""
    gguf = "gguf" in (a.format, b.format)
    ours, theirs = a.architecture, b.architecture
    if a.format != b.format and gguf:
        ours, theirs = as_opened_from_gguf(ours), as_opened_from_gguf(theirs)
    equal, different, unsaid = [], [], []
    for field in fields(Architecture):
        x, y = getattr(ours, field.name), getattr(theirs, field.name)
        if gguf and field.name in _NOT_IN_GGUF:
            unsaid.append(NotCompared(field.name, f"a GGUF has no key for it ({x!r}, {y!r})"))
        elif _same(x, y, narrow=gguf):
            equal.append(field.name)
        else:
            different.append(FieldDifference(field.name, x, y))
    return Section(tuple(equal), tuple(different), tuple(unsaid))


def _same(x: Any, y: Any, *, narrow: bool) -> bool:
    if narrow and isinstance(x, float) and isinstance(y, float):
        return bool(np.float32(x) == np.float32(y))
    return bool(x == y)


def compare_metadata(a: OpenedModel, b: OpenedModel) -> Section:
    """What both state beside architecture and tokenizer; the training record entry by entry."""
    both_apr = a.format == b.format == "apr"
    ours, theirs = _entries(a, all_keys=both_apr), _entries(b, all_keys=both_apr)
    equal, different, unsaid = [], [], []
    for key in sorted(ours.keys() | theirs.keys()):
        if key not in ours or key not in theirs:
            unsaid.append(NotCompared(key, "only A states it" if key in ours else "only B does"))
        elif key.removeprefix("training.") in _PROVENANCE | _OF_THE_RUN:
            unsaid.append(NotCompared(key, "says how the file was made, not what the model is"))
        elif ours[key] == theirs[key]:
            equal.append(key)
        else:
            different.append(FieldDifference(key, ours[key], theirs[key]))
    if not ours and not theirs:
        unsaid.append(NotCompared("metadata", "neither states any"))
    return Section(tuple(equal), tuple(different), tuple(unsaid))


def _entries(model: OpenedModel, *, all_keys: bool) -> dict[str, Any]:
    out: dict[str, Any] = {}
    keys = model.metadata.keys() if all_keys else (*_EVERYWHERE, *sorted(_PROVENANCE))
    for key in keys:
        value = model.metadata.get(key)
        if value is None or key in _ELSEWHERE or key.startswith("tokenizer."):
            continue
        if key == "training" and isinstance(value, Mapping):
            out |= {f"training.{k}": v for k, v in value.items() if v is not None}
        else:
            out[key] = value
    return out
