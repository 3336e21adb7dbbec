"""`Architecture`: what a model is, in canonical names, checked against the contracts.

Every verb gets it from the opened model and nothing else; there is no default that a missing field
silently falls back to, except where the family's published config defines one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from apr import contracts, rope
from apr.errors import InvalidFormat, StrPath


@dataclass(frozen=True, slots=True)
class Violation:
    """One rule of the contracts that does not hold."""

    rule: str
    message: str


@dataclass(frozen=True, slots=True)
class Architecture:
    """A decoder-only transformer, in the names of Hugging Face's Llama.

    Sizes are elements, `max_position_embeddings` is tokens. `family` is the lower-case name of the
    file in `apr/families/`. `rope_scaling` is the object of a Hugging Face config with `rope_type`
    and the parameters of that kind (apr/rope.py), or None for the default kind.
    `attention_bias` is on q, k, v and o, `qkv_bias` on q, k and v alone. `qk_norm` is an RMS norm
    of each query and key head. `sliding_window` is how many tokens a position sees, itself
    included, or None for all; it holds in every layer, or where `layer_types` says
    "sliding_attention" (the other kind is "full_attention").
    """

    family: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool = False
    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    rope_scaling: Mapping[str, Any] | None = None
    initializer_range: float = 0.02
    qkv_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    layer_types: tuple[str, ...] | None = None

    @property
    def q_size(self) -> int:
        """Width of all query heads together."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key (or value) heads together."""
        return self.num_kv_heads * self.head_dim

    def window(self, layer: int) -> int | None:
        """How many tokens a position of this layer sees, itself included; None for all."""
        if self.layer_types is not None and self.layer_types[layer] != "sliding_attention":
            return None
        return self.sliding_window

    @property
    def shortest_window(self) -> int | None:
        """The smallest window that hides something: one shorter than the context; else None."""
        windows = {self.window(layer) for layer in range(self.num_layers)} - {None}
        active = [w for w in windows if w is not None and w < self.max_position_embeddings]
        return min(active, default=None)

    def to_metadata(self) -> dict[str, Any]:
        """The canonical metadata keys and values, `family` as `architecture`."""
        out: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            if isinstance(value, tuple):
                value = list(value)  # as JSON gives it back
            out["architecture" if field.name == "family" else field.name] = value
        contract = contracts.load(f"families/{self.family}")
        out["hf_architecture"] = contract["hf_architecture"]
        out["hf_model_type"] = contract["hf_model_type"]
        out["rope_type"] = 2  # halves, as Hugging Face stores q and k
        return out


def from_metadata(metadata: Mapping[str, Any], where: StrPath) -> Architecture:
    """The architecture that a file's metadata states, aliases understood.

    Raises:
        InvalidFormat: keys are missing or have the wrong type; the message names all of them,
            with the other names that were tried. Or the rotary scaling is of no use.
    """
    resolved = resolve_aliases(metadata)
    family = resolved.get("architecture") or resolved.get("model_type")
    if not isinstance(family, str) or family not in contracts.names("families"):
        raise InvalidFormat(
            where,
            f"unknown architecture {family!r}",
            f"known are {', '.join(contracts.names('families'))}",
        )
    missing = missing_keys(resolved)
    if missing:
        raise InvalidFormat(where, "metadata is incomplete: missing " + ", ".join(missing))
    for key, value in contracts.load(f"families/{family}").get("implied", {}).items():
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
        if kind == "float" and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if kind.startswith("tuple") and isinstance(value, list):
            value = tuple(value)
        if not _has_type(value, kind):
            wrong.append(f"{field.name} is {value!r}, not {kind}")
        values[field.name] = value
    if wrong:
        raise InvalidFormat(where, "metadata has values of the wrong type: " + "; ".join(wrong))
    # Here and not in `check` alone: nothing could be computed from it, not even wrongly.
    scaling = values.get("rope_scaling")
    problems = rope.problems(scaling) if scaling is not None else []
    if problems:
        raise InvalidFormat(where, "; ".join(problems))
    return Architecture(**values)


def _has_type(value: object, kind: str) -> bool:
    if kind in ("int", "int | None"):
        return isinstance(value, int) and not isinstance(value, bool)
    if kind.startswith("tuple"):
        return isinstance(value, tuple) and all(isinstance(part, str) for part in value)
    if kind == "float":
        return isinstance(value, float)
    if kind == "bool":
        return isinstance(value, bool)
    if kind == "str":
        return isinstance(value, str)
    return value is None or isinstance(value, Mapping)


def resolve_aliases(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata with every alias under its canonical name; a canonical key wins."""
    out = dict(metadata)
    for canonical, others in contracts.load("metadata")["aliases"].items():
        for other in others:
            if other in out:
                value = out.pop(other)
                if out.get(canonical) is None:
                    out[canonical] = value
    if out.get("head_dim") is None and out.get("hidden_size") and out.get("num_heads"):
        # Not a guess: this is what an absent head_dim means in every config that may leave it out.
        out["head_dim"] = int(out["hidden_size"]) // int(out["num_heads"])
    return out


def missing_keys(resolved: Mapping[str, Any]) -> list[str]:
    """Required keys that are absent, each with the names that were tried."""
    contract = contracts.load("metadata")
    out = []
    for key in contract["required"]:
        if resolved.get(key) is None:
            tried = contract["aliases"].get(key, [])
            out.append(key + (f" (also tried {', '.join(tried)})" if tried else ""))
    return out


def violations(architecture: Architecture) -> list[Violation]:
    """Every rule of the contracts (bounds, relations, the family's own) that does not hold."""
    contract = contracts.load("metadata")
    family = contracts.load(f"families/{architecture.family}")
    out = []
    for rule in (*contract["bounds"], *family.get("plausible", [])):
        value = getattr(architecture, rule["key"])
        if "one_of" in rule:
            if value not in rule["one_of"]:
                out.append(
                    Violation(
                        rule["id"],
                        f"{rule['key']} is {value!r}, not one of "
                        + ", ".join(map(str, rule["one_of"])),
                    )
                )
        elif value is not None and not rule["min"] <= value <= rule["max"]:
            out.append(
                Violation(
                    rule["id"], f"{rule['key']} is {value}, outside {rule['min']} to {rule['max']}"
                )
            )
    for rule in (*contract["relations"], *family.get("relations", [])):
        if "divides" in rule:
            small, large = rule["divides"]
            a, b = getattr(architecture, small), getattr(architecture, large)
            if a < 1 or b % a:
                out.append(
                    Violation(
                        rule["id"], f"{large} {b} is no multiple of {small} {a}: {rule['why']}"
                    )
                )
        elif "per_layer" in rule:
            kinds = getattr(architecture, rule["per_layer"])
            if kinds is not None and (
                len(kinds) != architecture.num_layers or set(kinds) - set(rule["one_of"])
            ):
                out.append(
                    Violation(
                        rule["id"],
                        f"{rule['per_layer']} is {list(kinds)} for {architecture.num_layers} "
                        f"layers: {rule['why']}",
                    )
                )
        elif "parameters" in rule:
            scaling = getattr(architecture, rule["scaling"])
            found = rope.problems(scaling) if scaling is not None else []
            out.extend(Violation(rule["id"], f"{text}: {rule['why']}") for text in found)
        elif "needs" in rule:
            key, needed = rule["needs"]
            if getattr(architecture, key) is not None and getattr(architecture, needed) is None:
                out.append(Violation(rule["id"], f"{key} is given without {needed}: {rule['why']}"))
        elif getattr(architecture, rule["even"]) % 2:
            out.append(Violation(rule["id"], f"{rule['even']} is odd: {rule['why']}"))
    return out


def check(architecture: Architecture, where: StrPath) -> None:
    """Refuse an architecture that breaks a contract.

    Raises:
        InvalidFormat: naming every rule that does not hold.
    """
    broken = violations(architecture)
    if broken:
        raise InvalidFormat(where, "; ".join(f"[{v.rule}] {v.message}" for v in broken))
