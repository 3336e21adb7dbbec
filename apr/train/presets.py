"""The presets of `contracts/presets.yaml`: sizes by name, each with its default recipe."""

from __future__ import annotations

from dataclasses import dataclass
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


def architecture(name: str, vocab_size: int, seq_length: int, tie: bool | None) -> Architecture:
    """The architecture of a preset for a tokenizer and a sequence length.

    `max_position_embeddings` is the length that is trained: a model claims no context that it
    has never seen.

    Raises:
        UsageError: unknown; the message lists the known ones.
    """
    entry = _entry(name)
    sizes = {k: v for k, v in entry.items() if k not in _RECIPE_KEYS}
    sizes.setdefault("tie_word_embeddings", True)
    if tie is not None:
        sizes["tie_word_embeddings"] = tie
    return Architecture(
        family=sizes.pop("family", "llama"),
        vocab_size=vocab_size,
        max_position_embeddings=seq_length,
        rms_norm_eps=sizes.pop("rms_norm_eps", 1e-5),
        **sizes,
    )


def _entry(name: str) -> dict[str, Any]:
    table: dict[str, dict[str, Any]] = contracts.load("presets")["presets"]
    if name.lower() not in table:
        raise UsageError("--preset", f"{name!r} is unknown", f"write one of {', '.join(table)}")
    return table[name.lower()]
