"""Metadata to `Architecture`: aliases understood, types checked, everything missing named.

There is no default that a missing field silently falls back to, except where the family's
published config defines one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from apr import contracts, rope
from apr.architecture.description import Architecture
from apr.errors import InvalidFormat, StrPath

# What decides how many tensors there are, with the names of Hugging Face's configs and GGUF's keys
# that are not among the aliases.
_COUNTED = {
    "num_layers": ("block_count",),
    "num_experts": ("num_local_experts", "n_routed_experts", "expert_count"),
}


def check_counts(stated: Mapping[str, Any], where: StrPath) -> None:
    """Refuse a number of layers or experts that no model has, in a config, in GGUF keys (without
    prefix) or in metadata, before anything is made for each of them.

    Raises:
        InvalidFormat: the number is above the contract's bound.
    """
    contract = contracts.load("metadata")
    for rule in contract["bounds"]:
        key = rule["key"]
        for name in (key, *contract["aliases"].get(key, []), *_COUNTED.get(key, ())):
            value = stated.get(name) if key in _COUNTED else None
            if isinstance(value, int) and value > rule["max"]:
                raise InvalidFormat(
                    where,
                    f"[{rule['id']}] {name} is {value}, outside {rule['min']} to {rule['max']}",
                )


def from_metadata(metadata: Mapping[str, Any], where: StrPath) -> Architecture:
    """The architecture that a file's metadata states, aliases understood.

    Raises:
        InvalidFormat: keys are missing or have the wrong type; the message names all of them,
            with the other names that were tried. Or the rotary scaling is of no use.
    """
    check_counts(metadata, where)
    resolved = resolve_aliases(metadata)
    family = resolved.get("architecture") or resolved.get("model_type")
    if not isinstance(family, str) or family not in contracts.names("families"):
        raise InvalidFormat(
            where,
            f"unknown architecture {family!r}",
            f"known are {', '.join(contracts.names('families'))}",
        )
    contract = contracts.load(f"families/{family}")
    missing = missing_keys(resolved)
    if missing:
        raise InvalidFormat(where, "metadata is incomplete: missing " + ", ".join(missing))
    for key, value in contract.get("implied", {}).items():
        if resolved.get(key) is None:
            resolved[key] = value  # what the family always has, and its configs never say
    scaling = resolved.get("rope_scaling")
    if isinstance(scaling, Mapping) and scaling.get("rope_type") == "default":
        resolved["rope_scaling"] = None  # the same thing, said in full
    values: dict[str, Any] = {"family": family}
    wrong = []
    for field in fields(Architecture):
        if field.name == "family" or resolved.get(field.name) is None:
            continue
        value, kind = resolved[field.name], str(field.type)
        if kind.startswith("float") and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if kind.startswith("tuple") and isinstance(value, list):
            value = tuple(value)
        if not _has_type(value, kind):
            wrong.append(f"{field.name} is {value!r}, not {kind}")
        values[field.name] = value
    if wrong:
        raise InvalidFormat(where, "metadata has values of the wrong type: " + "; ".join(wrong))
    out = Architecture(**values)
    # Here and not in `check` alone: nothing could be computed from it, not even wrongly.
    rules = contracts.load("metadata")["bounds"]
    known = next(rule["one_of"] for rule in rules if rule["key"] == "hidden_act")
    if out.hidden_act not in known:
        raise InvalidFormat(
            where, f"hidden_act {out.hidden_act!r} is unknown", f"known: {', '.join(known)}"
        )
    scaling = out.rope_scaling
    problems = rope.problems(scaling, out.rotary_dim) if scaling is not None else []
    if problems:
        raise InvalidFormat(where, "; ".join(problems))
    return out


def _has_type(value: object, kind: str) -> bool:
    kind = kind.removesuffix(" | None")
    if kind == "int":
        return isinstance(value, int) and not isinstance(value, bool)
    if kind.startswith("tuple"):
        return isinstance(value, tuple) and all(isinstance(part, str) for part in value)
    if kind == "float":
        return isinstance(value, float)
    if kind == "bool":
        return isinstance(value, bool)
    if kind == "str":
        return isinstance(value, str)
    return isinstance(value, Mapping)


def resolve_aliases(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata with every alias under its canonical name; a canonical key wins."""
    out = dict(metadata)
    for canonical, others in contracts.load("metadata")["aliases"].items():
        for other in others:
            if other in out:
                value = out.pop(other)
                if out.get(canonical) is None:
                    out[canonical] = value
    hidden, heads = out.get("hidden_size"), out.get("num_heads")
    if out.get("head_dim") is None and hidden and heads:
        # Not a guess: this is what an absent head_dim means in every config that may leave it out.
        # Where one of the two is no number of elements, the message is about that one.
        whole = isinstance(hidden, int) and isinstance(heads, int)
        out["head_dim"] = hidden // heads if whole else 0
    return out


def missing_keys(resolved: Mapping[str, Any]) -> list[str]:
    """Required keys that are absent, each with the names that were tried."""
    contract = contracts.load("metadata")
    family = resolved.get("architecture") or resolved.get("model_type")
    own: Mapping[str, Any] = {}
    if family in contracts.names("families"):
        own = contracts.load(f"families/{family}")
    out = []
    for key in [*contract["required"], *own.get("required", [])]:
        if key not in own.get("not_required", []) and resolved.get(key) is None:
            tried = contract["aliases"].get(key, [])
            out.append(key + (f" (also tried {', '.join(tried)})" if tried else ""))
    return out
