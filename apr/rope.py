"""Rotary scaling kinds: which parameters each has, and what it does to the frequencies.

The one place that computes them: the decoder divides its frequencies by `divisors`, and GGUF
stores the same numbers where it has no key for the kind. Reference: transformers'
`modeling_rope_utils.py`.
The parameters of each kind are data: `contracts/metadata.yaml`, rule META-ROPE-SCALING.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from apr import contracts

# Kinds that llama.cpp knows only as a tensor of divisors, not by name.
AS_TENSOR = frozenset({"llama3"})
TENSOR = "rope_freqs.weight"
_POSITIONS = "original_max_position_embeddings"


def parameters(kind: str) -> list[str] | None:
    """The parameters that a kind needs, or None for a kind that is not supported."""
    rules = contracts.load("metadata")["relations"]
    kinds = next(rule["parameters"] for rule in rules if "parameters" in rule)
    found: list[str] | None = kinds.get(kind)
    return found


def problems(scaling: Mapping[str, Any]) -> list[str]:
    """What is wrong with a `rope_scaling`, a line each; empty if nothing."""
    kind = scaling.get("rope_type")
    needed = parameters(kind) if isinstance(kind, str) else None
    if needed is None:
        return [f"rotary scaling {kind!r} is not supported"]
    missing = [key for key in needed if scaling.get(key) is None]
    if missing:
        return [f"rotary scaling {kind!r} lacks {', '.join(missing)}"]
    out = []
    for key in needed:
        value = scaling[key]
        least = 1 if key in ("factor", _POSITIONS) else 0
        whole = key == _POSITIONS
        number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value < least or value == 0:
            wanted = "a whole number" if whole else "a number"
            out.append(
                f"{key} of rotary scaling {kind!r} is {value!r}, not {wanted} "
                + (f"of at least {least}" if least else "above 0")
            )
    if not out and kind == "llama3" and scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
        out.append(
            f"rotary scaling 'llama3' has high_freq_factor {scaling['high_freq_factor']}, not "
            f"above low_freq_factor {scaling['low_freq_factor']}"
        )
    return out


def softmax_mscale(scaling: Mapping[str, Any] | None) -> float:
    """What MLA multiplies its scores by beside the usual scale; 1 for the kinds known so far."""
    return 1.0


def divisors(
    scaling: Mapping[str, Any] | None, theta: float | None, head_dim: int
) -> list[float] | None:
    """What the frequency of each rotary pair is divided by, `[head_dim / 2]`; None if by nothing.

    Args:
        scaling: `Architecture.rope_scaling`, sound by `problems`.
        theta: base of the rotary embedding.
        head_dim: width of a head, even.
    """
    if scaling is None or theta is None:
        return None
    factor = float(scaling["factor"])
    if scaling["rope_type"] == "linear":
        return [factor] * (head_dim // 2)
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    out = []
    for pair in range(head_dim // 2):
        wavelength = 2 * math.pi * theta ** (2 * pair / head_dim)  # tokens for a whole turn
        turns = scaling[_POSITIONS] / wavelength  # within the original context
        # Pairs that turn often stay, those that hardly turn are slowed, between them a blend.
        if turns > high:
            out.append(1.0)
        elif turns < low:
            out.append(factor)
        else:
            smooth = (turns - low) / (high - low)
            out.append(1 / ((1 - smooth) / factor + smooth))
    return out
