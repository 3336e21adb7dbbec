"""`apr.architecture`: what an `Architecture` has and GGUF's own keys cannot say.

llama.cpp's keys say what llama.cpp computes, and not which family a file was made of, how wide a
window is that hides nothing, or how weights were initialised. So our files state the fields that
reading the keys alone would not give back, as JSON, in a key that llama.cpp ignores. Where the two
contradict each other the keys win, because they are what runs; a file of somebody else has none of
this and opens by its keys.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from apr import architecture as arch
from apr import contracts, families
from apr.architecture import Architecture
from apr.errors import InvalidFormat, StrPath
from apr.tensors import Tensor

ARCHITECTURE = "apr.architecture"


@dataclass(frozen=True)
class PlannedGguf:
    """Key-values and tensors of a file that is yet to be written, to be read as if it were."""

    path: Path
    fields: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def architecture(self) -> object:
        """`general.architecture`, or None where it is missing."""
        return self.fields.get("general.architecture")


def statement(architecture: Architecture, by_keys: Architecture) -> dict[str, str]:
    """The key-value to add to a file, empty if the keys alone give the architecture back.

    Args:
        architecture: of the model.
        by_keys: what reading the file without the statement gives.
    """
    differing = {
        field.name: getattr(architecture, field.name)
        for field in fields(Architecture)
        if getattr(architecture, field.name) != getattr(by_keys, field.name)
    }
    if not differing:
        return {}
    # Tuples become lists, null means None; floats are written so that they come back the same.
    text = json.dumps(differing, separators=(",", ":"), default=dict)
    return {ARCHITECTURE: text}


def applied(
    by_keys: Architecture, stated: Mapping[str, Any], keys: Mapping[str, Any], where: StrPath
) -> Architecture:
    """The architecture with what the file states beside its keys, if the two fit together.

    Args:
        by_keys: what the keys alone give.
        stated: the object of `apr.architecture`.
        keys: the file's own, without the architecture's prefix.
        where: the file, for messages.

    Raises:
        InvalidFormat: a field that no architecture has, or a value of the wrong type.
    """
    known = {field.name for field in fields(Architecture)}
    unknown = sorted(set(stated) - known)
    if unknown:
        raise InvalidFormat(
            where,
            f"{ARCHITECTURE} states {', '.join(unknown)}, which this version does not know",
            "open it with the version of apr that wrote it",
        )
    family = stated.get("family", by_keys.family)
    if family not in families.known() or _named(family) != _named(by_keys.family):
        return by_keys
    # A null must not mean the default of a field, so what is not null is given, and no more.
    values = {name: getattr(by_keys, name) for name in known} | dict(stated)
    values["architecture"] = values.pop("family")
    candidate = arch.from_metadata(values, where)
    fits = _says(candidate, by_keys, keys) and not families.gguf_obstacles(candidate)
    return candidate if fits else by_keys


def _named(family: str) -> object:
    return contracts.load(f"families/{family}")["gguf_architecture"]


def _says(candidate: Architecture, by_keys: Architecture, keys: Mapping[str, Any]) -> bool:
    """Whether a file of `candidate` would have just these keys."""
    own = families.by_name(candidate.family).to_gguf(candidate)
    others = families.by_name(by_keys.family).to_gguf(by_keys)
    return all(_same(own.get(key), keys.get(key)) for key in {*own, *(others.keys() & keys)})


def _same(first: Any, second: Any) -> bool:
    """Equal as GGUF stores them: floats as float32."""
    if isinstance(first, (int, float)) and isinstance(second, (int, float)):
        return bool(np.float32(first) == np.float32(second)) if first != second else True
    if isinstance(first, (list, tuple)) and second is not None:
        other = list(second)
        return len(first) == len(other) and all(map(_same, first, other))
    return bool(first == second)
