"""The presets of `contracts/presets.yaml`: sizes by name, each with its default recipe, for every
family: what a family takes beside the sizes is a table of rules there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from apr import contracts
from apr.architecture import Architecture
from apr.errors import UsageError


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a run takes where the user says nothing; None: decided from the data or the run."""

    seq_length: int
    batch_size: int
    grad_accum: int
    lr: float
    beta2: float = 0.95
    warmup_steps: int | None = None
    num_steps: int | None = None


LR_CAP = 3e-3
DEFAULT_FAMILY = "llama"
AUX_LOSS = 1e-3  # transformers' default in every family that has the field
_TRAINING_KEYS = ("aux_loss",)  # of the families' table: no property of a model


def rule(n: int) -> tuple[float, int]:
    """Peak learning rate and tokens per step for `n` parameters outside embedding and head.

    DeepSeek LLM (arXiv 2401.02954, section 3.1) at C = 6 n D, D = 20 n; the rate is capped at
    3e-3, where the fit would be extrapolated far below its range.
    """
    compute = 120.0 * float(n) ** 2
    return min(LR_CAP, 0.3118 * compute**-0.125), round(0.2920 * compute**0.3271)


_RECIPE_KEYS = tuple(Recipe.__dataclass_fields__)


def names() -> list[str]:
    """The presets, in the contract's order (small to large)."""
    return list(contracts.load("presets")["presets"])


def recipe(name: str) -> Recipe:
    """The default recipe of a preset.

    Raises:
        UsageError: unknown; the message lists the known ones.
    """
    entry = _entry(name)
    return Recipe(**{k: entry[k] for k in _RECIPE_KEYS if k in entry})


def architecture(
    name: str, vocab_size: int, seq_length: int, tie: bool | None, family: str | None = None
) -> Architecture:
    """The architecture of a preset for a tokenizer, a sequence length and a family (Llama).

    `max_position_embeddings` is the length that is trained: a model claims no context that it
    has never seen.

    Raises:
        UsageError: preset or family unknown; the message lists the known ones.
    """
    entry = _entry(name)
    values: dict[str, Any] = {k: v for k, v in entry.items() if k not in _RECIPE_KEYS}
    values.setdefault("tie_word_embeddings", True)
    values.setdefault("rms_norm_eps", 1e-5)
    values["family"] = family or values.get("family", DEFAULT_FAMILY)
    check_family(values["family"])
    values |= {"vocab_size": vocab_size, "max_position_embeddings": seq_length}
    contract = contracts.load(f"families/{values['family']}")
    values |= contract.get("implied", {})
    for key, rule in _family_rules(values["family"]).items():
        if key not in _TRAINING_KEYS:
            values[key] = _by_rule(rule, values)
    if tie is not None:
        values["tie_word_embeddings"] = tie
    for field in fields(Architecture):
        value = values.get(field.name)
        if str(field.type).startswith("float") and value is not None:
            values[field.name] = float(value)
    return Architecture(**values)


def aux_loss(architecture: Architecture) -> float:
    """Weight of the load-balancing loss in training; 0 without experts, and where a correction bias
    keeps the balance. The architecture's, or the table's where its family has no field for it.
    """
    if not architecture.num_experts or architecture.router_correction_bias:
        return 0.0
    contract = contracts.load(f"families/{architecture.family}")
    if "router_aux_loss_coef" in contract.get("varies", []):
        return architecture.router_aux_loss_coef
    return float(_family_rules(architecture.family).get("aux_loss", AUX_LOSS))


def check_family(family: str) -> None:
    """Refuse a family that is not there.

    Raises:
        UsageError: the message lists the known ones.
    """
    known = contracts.names("families")
    if family not in known:
        raise UsageError("--family", f"{family!r} is unknown", f"write one of {', '.join(known)}")


def _family_rules(family: str) -> dict[str, Any]:
    own: dict[str, Any] = contracts.load(f"families/{family}").get("pretrain", {})
    return {**own, **contracts.load("presets")["families"].get(family, {})}


def _by_rule(rule: Any, values: Mapping[str, Any]) -> Any:
    """A value of the table of families; the forms are explained in the contract."""
    if not isinstance(rule, Mapping):
        return rule
    layers = int(values["num_layers"])
    if "repeat" in rule:
        pattern = rule["repeat"]
        return tuple(pattern[i % len(pattern)] for i in range(layers))
    if "first" in rule:
        first = rule["first"][: layers - 1]  # at least one layer is of the other kind
        return (*first, *[rule["then"]] * (layers - len(first)))
    multiple = int(rule.get("multiple", 1))
    count = round(rule.get("times", 1) * values[rule["of"]] / multiple)
    return max(1, count) * multiple


def _entry(name: str) -> dict[str, Any]:
    table: dict[str, dict[str, Any]] = contracts.load("presets")["presets"]
    if name.lower() not in table:
        raise UsageError("--preset", f"{name!r} is unknown", f"write one of {', '.join(table)}")
    return table[name.lower()]
