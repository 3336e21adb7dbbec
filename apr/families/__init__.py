"""Model families, one short file each, looked up by the file's name.

A family module has the same four functions in every file:

- `from_hf(config, where) -> Architecture` and `to_hf(architecture) -> dict`: a Hugging Face config
- `from_gguf(fields, where) -> Architecture` and `to_gguf(architecture) -> dict`: GGUF metadata,
  keys without the architecture's prefix (`embedding_length`, ...)

Which tensors there are, their shapes and their names in both worlds is data:
`contracts/families/<family>.yaml`, read by `tensor_specs`. What several families share is in
`dense.py`, as functions. docs/spec/families.md says how a family is added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from apr import contracts, rope
from apr.architecture import Architecture
from apr.errors import InvalidFormat, StrPath

if TYPE_CHECKING:
    from apr.tensors import Tensor


class Family(Protocol):
    """What every module in this package provides."""

    def from_hf(self, config: Mapping[str, Any], where: StrPath) -> Architecture:
        """The architecture that a Hugging Face config describes."""

    def to_hf(self, architecture: Architecture) -> dict[str, Any]:
        """The Hugging Face config of an architecture, token ids left out."""

    def from_gguf(self, fields: Mapping[str, Any], where: StrPath) -> Architecture:
        """The architecture that GGUF metadata describes (keys without the prefix)."""

    def to_gguf(self, architecture: Architecture) -> dict[str, Any]:
        """The GGUF metadata of an architecture (keys without the prefix)."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor that a model of the family has.

    `permute_heads`: number of heads whose rows are reordered between Hugging Face's halves and
    GGUF's adjacent rotary pairs, or 0. `role`: embedding, norm, attention, feed_forward, head.
    """

    name: str
    shape: tuple[int, ...]
    gguf_name: str
    role: str
    permute_heads: int = 0


def known() -> list[str]:
    """The families, by name."""
    return contracts.names("families")


def by_name(family: str, where: StrPath = "architecture") -> Family:
    """The module of a family.

    Raises:
        InvalidFormat: unknown; the message lists the known ones.
    """
    if family not in known():
        raise InvalidFormat(
            where, f"unknown architecture {family!r}", f"known are {', '.join(known())}"
        )
    return cast(Family, import_module(f"apr.families.{family}"))


def by_gguf_architecture(name: object, where: StrPath) -> Family:
    """The family that reads a GGUF `general.architecture`.

    Raises:
        InvalidFormat: unknown; the message lists the known ones.
    """
    loaded = {f: contracts.load(f"families/{f}") for f in known()}
    # Several families may be stored under one name there; one of them reads it back.
    table = {c["gguf_architecture"]: f for f, c in loaded.items() if c.get("gguf_opens_as", f) == f}
    if name not in table:
        raise InvalidFormat(
            where, f"unknown GGUF architecture {name!r}", f"known are {', '.join(table)}"
        )
    return by_name(table[cast(str, name)], where)


def by_hf_model_type(name: object, where: StrPath) -> Family:
    """The family that reads a config.json's `model_type`.

    Raises:
        InvalidFormat: unknown; the message lists the known ones.
    """
    table = {contracts.load(f"families/{f}")["hf_model_type"]: f for f in known()}
    if name not in table:
        raise InvalidFormat(where, f"unknown model_type {name!r}", f"known are {', '.join(table)}")
    return by_name(table[cast(str, name)], where)


def as_opened_from_gguf(architecture: Architecture) -> Architecture:
    """The architecture as its GGUF states it: the family that reads the file, and no window that
    is as long as the context (it hides nothing, and the keys there do not say it).
    """
    contract = contracts.load(f"families/{architecture.family}")
    out = replace(architecture, family=contract.get("gguf_opens_as", architecture.family))
    if "sliding_window" in contract.get("gguf_lacks", []) and not out.shortest_window:
        out = replace(out, sliding_window=None, layer_types=None)
    return out


def gguf_obstacles(architecture: Architecture) -> list[str]:
    """What this model does that no GGUF of its family can say to llama.cpp: which property, where
    it bites, what to do; a sentence each, empty if nothing.
    """
    contract = contracts.load(f"families/{architecture.family}")
    lacks = contract.get("gguf_lacks", [])
    out = []
    window, context = architecture.shortest_window, architecture.max_position_embeddings
    if "sliding_window" in lacks and window:
        out.append(
            f"sliding_window is {window} in a context of {context}, and llama.cpp's "
            f"{contract['gguf_architecture']!r} computes full attention: prompts longer than "
            f"{window} tokens would give other logits; with max_position_embeddings of at most "
            f"{window} the export is exact"
        )
    if "attention_bias" in lacks and architecture.attention_bias:
        out.append(
            f"attention_bias is true, and llama.cpp's {contract['gguf_architecture']!r} has no "
            "bias on attn_output: it would not load the file at all"
        )
    scaling = architecture.rope_scaling
    if "rope_freqs" in lacks and scaling is not None and scaling["rope_type"] in rope.AS_TENSOR:
        out.append(
            f"its rotary scaling is {scaling['rope_type']!r}, and llama.cpp's "
            f"{contract['gguf_architecture']!r} has no {rope.TENSOR}, the only form that "
            "GGUF has for it: it would not load the file at all"
        )
    if "head_dim" in lacks and architecture.q_size != architecture.hidden_size:
        out.append(
            f"num_heads {architecture.num_heads} times head_dim {architecture.head_dim} is not "
            f"hidden_size {architecture.hidden_size}, and llama.cpp's "
            f"{contract['gguf_architecture']!r} has no head_dim of its own: it would not load the "
            "file at all"
        )
    return out


def tensor_specs(architecture: Architecture) -> list[TensorSpec]:
    """Every tensor that a model of this architecture has, in the contract's order."""
    out: list[TensorSpec] = []
    for rule in contracts.load(f"families/{architecture.family}")["tensors"]:
        if "when" in rule and not getattr(architecture, rule["when"]):
            continue
        if "unless" in rule and getattr(architecture, rule["unless"]):
            continue
        shape = tuple(int(getattr(architecture, dim)) for dim in rule["shape"])
        heads = int(getattr(architecture, rule["permute"])) if "permute" in rule else 0
        layers = range(architecture.num_layers) if "{i}" in rule["name"] else [0]
        out.extend(
            TensorSpec(
                rule["name"].format(i=i), shape, rule["gguf"].format(i=i), rule["role"], heads
            )
            for i in layers
        )
    return out


def tensor_problems(architecture: Architecture, tensors: Mapping[str, Tensor]) -> list[str]:
    """What is wrong with a set of tensors for this architecture, a line each; empty if nothing."""
    specs = {spec.name: spec for spec in tensor_specs(architecture)}
    out = [
        f"missing tensor {name} (in GGUF {spec.gguf_name})"
        for name, spec in specs.items()
        if name not in tensors
    ]
    for name, tensor in tensors.items():
        if name not in specs:
            out.append(f"unexpected tensor {name} {list(tensor.shape)}")
        elif tensor.shape != specs[name].shape:
            out.append(
                f"tensor {name} has shape {list(tensor.shape)}, "
                f"the architecture needs {list(specs[name].shape)}"
            )
    return out


def num_parameters(architecture: Architecture, *, embedding: bool = True) -> int:
    """Number of parameters; without `embedding`, those outside the token embedding and head.

    A tied head is counted once. This is the N of the budget gate (docs/spec/training.md).
    """
    total = 0
    for spec in tensor_specs(architecture):
        if not embedding and spec.role in ("embedding", "head"):
            continue
        count = 1
        for dim in spec.shape:
            count *= dim
        total += count
    return total
