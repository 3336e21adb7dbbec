"""The rules of the contracts, held against an `Architecture`.

A rule is data: `contracts/metadata.yaml` has those of every model, a family's contract its own. Its
kind is the key that says what is compared; each kind has one function here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from math import prod
from typing import Any

from apr import contracts, rope
from apr.architecture.description import Architecture
from apr.errors import InvalidFormat, StrPath


@dataclass(frozen=True, slots=True)
class Violation:
    """One rule of the contracts that does not hold."""

    rule: str
    message: str


def check(architecture: Architecture, where: StrPath) -> None:
    """Refuse an architecture that breaks a contract.

    Raises:
        InvalidFormat: naming every rule that does not hold.
    """
    broken = violations(architecture)
    if broken:
        raise InvalidFormat(where, "; ".join(f"[{v.rule}] {v.message}" for v in broken))


def violations(architecture: Architecture) -> list[Violation]:
    """Every rule of the contracts (bounds, relations, the family's own) that does not hold."""
    contract = contracts.load("metadata")
    family = contracts.load(f"families/{architecture.family}")
    out = [Violation(contract["variation_rule"], m) for m in _foreign(architecture)]
    for rule in (*contract["bounds"], *family.get("plausible", [])):
        message = _beyond(getattr(architecture, rule["key"]), rule)
        if message:
            out.append(Violation(rule["id"], message))
    for rule in (*contract["relations"], *family.get("relations", [])):
        broken = next(find for kind, find in _KINDS.items() if kind in rule)
        out += [Violation(rule["id"], f"{m}: {rule['why']}") for m in broken(architecture, rule)]
    return out


def _foreign(architecture: Architecture) -> list[str]:
    """Variations of the block that the family does not have: the decoder would compute them, and
    every other reader of the family would not.
    """
    sizes = contracts.load("metadata")["sizes"]
    family = contracts.load(f"families/{architecture.family}")
    always = {
        field.name: field.default
        for field in fields(Architecture)
        if field.name not in sizes and field.name not in family.get("varies", [])
    } | family.get("implied", {})
    return [
        f"{key} is {getattr(architecture, key)!r}, which a {architecture.family} never is: "
        f"always {value!r}"
        for key, value in always.items()
        if getattr(architecture, key) != value
    ]


def _beyond(value: Any, rule: Mapping[str, Any]) -> str | None:
    if "one_of" in rule:
        if value in rule["one_of"]:
            return None
        return f"{rule['key']} is {value!r}, not one of {', '.join(map(str, rule['one_of']))}"
    if value is None or rule["min"] <= value <= rule["max"]:
        return None
    return f"{rule['key']} is {value}, outside {rule['min']} to {rule['max']}"


def _divides(architecture: Architecture, rule: Mapping[str, Any]) -> list[str]:
    small, large = rule["divides"]
    a, b = getattr(architecture, small), getattr(architecture, large)
    if not b or (a is not None and a >= 1 and b % a == 0):
        return []
    return [f"{large} {b} is no multiple of {small} {a}"]


def _even(architecture: Architecture, rule: Mapping[str, Any]) -> list[str]:
    return [f"{rule['even']} is odd"] if getattr(architecture, rule["even"]) % 2 else []


def _per_layer(architecture: Architecture, rule: Mapping[str, Any]) -> list[str]:
    kinds, layers = getattr(architecture, rule["per_layer"]), architecture.num_layers
    if kinds is None or (len(kinds) == layers and set(kinds) <= set(rule["one_of"])):
        return []
    return [f"{rule['per_layer']} is {list(kinds)} for {layers} layers"]


def _scaling(architecture: Architecture, rule: Mapping[str, Any]) -> list[str]:
    scaling = getattr(architecture, rule["scaling"])
    return [] if scaling is None else rope.problems(scaling, architecture.rotary_dim)


def _needs(architecture: Architecture, rule: Mapping[str, Any]) -> list[str]:
    key, needed = rule["needs"]
    # 0 experts, an empty list: as good as absent.
    if not getattr(architecture, key) or getattr(architecture, needed) is not None:
        return []
    return [f"{key} is given without {needed}"]


def _sum(architecture: Architecture, rule: Mapping[str, Any]) -> list[str]:
    return _made_of(architecture, rule["sum"], sum, "+")


def _product(architecture: Architecture, rule: Mapping[str, Any]) -> list[str]:
    return _made_of(architecture, rule["product"], prod, "*")


def _made_of(
    architecture: Architecture, keys: list[str], combine: Callable[[list[int]], int], sign: str
) -> list[str]:
    whole, *parts = keys
    stated = getattr(architecture, whole)
    made = combine([getattr(architecture, part) or 0 for part in parts])
    if stated == made:
        return []
    return [f"{whole} is {stated}, not {f' {sign} '.join(parts)}, which is {made}"]


def _dense_first(architecture: Architecture, rule: Mapping[str, Any]) -> list[str]:
    kinds = list(getattr(architecture, rule["dense_first"]) or ())
    return [] if kinds == sorted(kinds) else ["a dense layer follows a sparse one"]


def _equal(architecture: Architecture, rule: Mapping[str, Any]) -> list[str]:
    first, second = rule["equal"]
    a, b = getattr(architecture, first), getattr(architecture, second)
    return [] if a == b else [f"{first} {a} is not {second} {b}"]


def _at_most(architecture: Architecture, rule: Mapping[str, Any]) -> list[str]:
    key, bound = rule["at_most"]
    a, b = getattr(architecture, key), getattr(architecture, bound)
    return [f"{key} {a} is above {bound} {b}"] if None not in (a, b) and a > b else []


# By the key that makes a relation one of this kind: what of it does not hold, a clause each.
_KINDS: dict[str, Callable[[Architecture, Mapping[str, Any]], list[str]]] = {
    "divides": _divides,
    "even": _even,
    "per_layer": _per_layer,
    "scaling": _scaling,
    "needs": _needs,
    "sum": _sum,
    "product": _product,
    "dense_first": _dense_first,
    "equal": _equal,
    "at_most": _at_most,
}
