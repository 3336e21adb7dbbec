"""Model families, one short file each, looked up by the file's name.

A family module has the same four functions in every file, its own or a shared one under that name:

- `from_hf(config, where) -> Architecture` and `to_hf(architecture) -> dict`: a Hugging Face config
- `from_gguf(fields, where) -> Architecture` and `to_gguf(architecture) -> dict`: GGUF metadata,
  keys without the architecture's prefix (`embedding_length`, ...)

Which tensors there are, their shapes and their names in both worlds is data:
`contracts/families/<family>.yaml`, read by `tensor_specs`. What several families share is in
`dense.py`, as functions. docs/spec/families.md says how a family is added.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from math import prod
from typing import TYPE_CHECKING, Any, Protocol, cast

from apr import contracts
from apr.architecture import Architecture
from apr.errors import InvalidFormat, StrPath
from apr.families import obstacles, rotary_obstacles
from apr.families.obstacles import Obstacle

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
class Place:
    """Where a canonical tensor stands in another world.

    `names` are the tensors there that it is made of, `recipe` is how (apr/formats/recipes.py).
    `index` is its place along the first dimension where several share one tensor (experts), and
    `fellows` is how many they are. `count` is a number that the recipe needs: of heads, or which
    part of a shared tensor it is. `width` is how many rows at the end of each head are meant, 0
    for all.
    """

    names: tuple[str, ...]
    recipe: str = "plain"
    index: int | None = None
    count: int = 0
    width: int = 0
    fellows: int = 0


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor that a model of the family has, under its canonical name: that of the decoder and
    of `.apr` files.

    `role`: embedding, positions, norm, attention, feed_forward, router, expert, head.
    """

    name: str
    shape: tuple[int, ...]
    role: str
    hf: Place
    gguf: Place

    @property
    def elsewhere(self) -> str:
        """The names in the other worlds, for messages."""
        out = [] if self.hf.names == (self.name,) else [f"in Hugging Face {self.hf.names[0]}"]
        return "; ".join([*out, f"in GGUF {' and '.join(self.gguf.names)}"])


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


def by_gguf_architecture(
    name: object, where: StrPath, fields: Mapping[str, Any] | None = None
) -> Family:
    """The family that reads a GGUF `general.architecture`.

    Several families may be stored under one name there. One that can tell its files by their keys
    has a function `claims_gguf(fields) -> bool`, and is asked first; what nobody claims is read by
    the one that has none and no `gguf_opens_as` in its contract.

    Args:
        name: the file's `general.architecture`.
        where: the file, for messages.
        fields: its keys without the prefix; None asks for the family of unclaimed files.

    Raises:
        InvalidFormat: unknown; the message lists the known ones. Or nobody reads such keys.
    """
    loaded = {f: contracts.load(f"families/{f}") for f in known()}
    named = [f for f, c in loaded.items() if c["gguf_architecture"] == name]
    if not named:
        table = sorted({c["gguf_architecture"] for c in loaded.values()})
        raise InvalidFormat(
            where, f"unknown GGUF architecture {name!r}", f"known are {', '.join(table)}"
        )
    claims = {f: getattr(by_name(f, where), "claims_gguf", None) for f in named}
    claiming = [f for f, claim in claims.items() if claim and (fields is None or claim(fields))]
    others = [f for f in named if claims[f] is None and loaded[f].get("gguf_opens_as", f) == f]
    found = others or claiming if fields is None else claiming or others
    if not found or (fields is not None and len(found) > 1):
        raise InvalidFormat(
            where,
            f"is a GGUF of architecture {name!r} whose keys fit "
            + (" and ".join(found) if found else f"none of {', '.join(named)}"),
        )
    return by_name(found[0], where)


def by_hf_model_type(name: object, where: StrPath) -> Family:
    """The family that reads a config.json's `model_type`.

    Raises:
        InvalidFormat: unknown; the message lists the known ones.
    """
    loaded = {f: contracts.load(f"families/{f}") for f in known()}
    table = {contract["hf_model_type"]: f for f, contract in loaded.items()}
    refused = {n: why for c in loaded.values() for n, why in c.get("hf_refuses", {}).items()}
    if isinstance(name, str) and name in refused:
        raise InvalidFormat(where, f"model_type {name!r} is {refused[name]}")
    if not isinstance(name, str) or name not in table:
        raise InvalidFormat(where, f"unknown model_type {name!r}", f"known are {', '.join(table)}")
    return by_name(table[name], where)


def as_opened_from_gguf(architecture: Architecture) -> Architecture:
    """The architecture as a GGUF without our own `apr.architecture` states it: the family that
    reads the file, and no window that is as long as the context (it hides nothing, and the keys
    there do not say it).
    """
    contract = contracts.load(f"families/{architecture.family}")
    out = replace(architecture, family=contract.get("gguf_opens_as", architecture.family))
    if "sliding_window" in contract.get("gguf_lacks", []) and not out.shortest_window:
        out = replace(out, sliding_window=None, layer_types=None)
    return out


def gguf_obstacles(architecture: Architecture) -> list[Obstacle]:
    """What this model does that no GGUF of its family can say to llama.cpp; empty if nothing."""
    own = getattr(by_name(architecture.family), "gguf_obstacles", None)
    out = obstacles.shared(architecture) + rotary_obstacles.obstacles(architecture)
    return out + (own(architecture) if own else [])


def gguf_caveats(architecture: Architecture) -> list[str]:
    """What whoever loads the GGUF must know to get the same logits; a sentence each."""
    own = getattr(by_name(architecture.family), "gguf_caveats", None)
    return rotary_obstacles.caveats(architecture) + (own(architecture) if own else [])


def writes_tied_head(architecture: Architecture) -> bool:
    """Whether a GGUF needs a copy of the embedding as its head, because llama.cpp wants one there
    for the family's architecture.
    """
    lacks = contracts.load(f"families/{architecture.family}").get("gguf_lacks", [])
    return architecture.tie_word_embeddings and "tied_head" in lacks


def tensor_specs(architecture: Architecture) -> list[TensorSpec]:
    """Every tensor that a model of this architecture has, in the contract's order."""
    out: list[TensorSpec] = []
    for rule in contracts.load(f"families/{architecture.family}")["tensors"]:
        if "when" in rule and not getattr(architecture, rule["when"]):
            continue
        if "unless" in rule and getattr(architecture, rule["unless"]):
            continue
        name: str = rule["name"]
        shape = tuple(
            dim if isinstance(dim, int) else int(getattr(architecture, dim))
            for dim in rule["shape"]
        )
        layers: Sequence[int] = [0]
        if "{i}" in name:
            layers = getattr(architecture, rule.get("layers", "all_layers"))
        experts = range(architecture.num_experts if "{e}" in name else 1)
        out.extend(
            TensorSpec(
                name.format(i=i, e=e),
                shape,
                rule["role"],
                _place(architecture, rule, "hf", i, e),
                _place(architecture, rule, "gguf", i, e),
            )
            for i in layers
            for e in experts
        )
    return out


def _place(
    architecture: Architecture, rule: Mapping[str, Any], world: str, layer: int, expert: int
) -> Place:
    found = rule.get(world, rule["name"])
    templates = [found] if isinstance(found, str) else found
    shared = "{e}" in rule["name"] and not any("{e}" in template for template in templates)
    recipe = rule.get(f"{world}_recipe", "stack" if shared else "plain")
    count = int(rule.get("part", 0))
    if world == "gguf" and "permute" in rule:
        recipe, count = "heads", int(getattr(architecture, rule["permute"]))
    width = 0
    if world == "gguf" and "rotary_end" in rule and not architecture.rope_interleave:
        heads = rule["rotary_end"]
        count = heads if isinstance(heads, int) else int(getattr(architecture, heads))
        recipe, width = "heads", architecture.rotary_dim
    names = tuple(template.format(i=layer, e=expert) for template in templates)
    if shared:
        return Place(names, recipe, expert, count, width, architecture.num_experts)
    return Place(names, recipe, None, count, width)


def hf_names(architecture: Architecture, names: Iterable[str]) -> dict[str, str]:
    """The names of a folder's tensors as the contract has them, by the folder's own.

    Where the contract gives an `hf_prefix`, a folder may leave it out, as one saved from the bare
    model does; transformers loads it all the same.
    """
    held = list(names)
    prefix = contracts.load(f"families/{architecture.family}").get("hf_prefix")
    if prefix is None:
        return {name: name for name in held}
    expected = {name for spec in tensor_specs(architecture) for name in spec.hf.names}
    taken = set(held)
    return {
        name: prefix + name if name not in expected and prefix + name in expected - taken else name
        for name in held
    }


def ignored_hf_tensor(architecture: Architecture, name: str) -> bool:
    """Whether a Hugging Face tensor is one that the family's model does not use (a further
    prediction layer, a buffer that is computed): the contract's `hf_ignores`, regular expressions.
    """
    return _ignored(architecture, name, "hf_ignores")


def ignored_gguf_tensor(architecture: Architecture, name: str) -> bool:
    """The same for a GGUF tensor: `gguf_ignores`."""
    return _ignored(architecture, name, "gguf_ignores")


def _ignored(architecture: Architecture, name: str, key: str) -> bool:
    patterns = contracts.load(f"families/{architecture.family}").get(key, [])
    return any(
        re.fullmatch(pattern.replace("{num_layers}", str(architecture.num_layers)), name)
        for pattern in patterns
    )


def tensor_problems(architecture: Architecture, tensors: Mapping[str, Tensor]) -> list[str]:
    """What is wrong with a set of tensors for this architecture, a line each; empty if nothing."""
    specs = {spec.name: spec for spec in tensor_specs(architecture)}
    out = [
        f"missing tensor {name} ({spec.elsewhere})"
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


def num_parameters(
    architecture: Architecture, *, embedding: bool = True, active: bool = False
) -> int:
    """Number of parameters; without `embedding`, those outside the embeddings and head;
    `active`: those that one token uses, of the experts only as many as it visits.

    A tied head is counted once. This is the N of the budget gate (docs/spec/training.md).
    """
    total = in_experts = 0
    for spec in tensor_specs(architecture):
        if not embedding and spec.role in ("embedding", "positions", "head"):
            continue
        if spec.role == "expert":
            in_experts += prod(spec.shape)
        else:
            total += prod(spec.shape)
    if active and in_experts:
        in_experts = in_experts * architecture.num_experts_per_tok // architecture.num_experts
    return total + in_experts
