"""Gemma 3, its text model: Gemma 2 with norms of heads and a rotary base for the sliding layers.

Reference: transformers' `models/gemma3` (Gemma3ForCausalLM); GGUF: llama.cpp's `gemma3`. There is
no soft cap of scores: the config has a field for it that the model does not read. A rotary scaling
is that of the full layers alone, in all three worlds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from apr.architecture import FULL, SLIDING, Architecture
from apr.errors import InvalidFormat, StrPath
from apr.families import dense, gemma2
from apr.families.obstacles import Obstacle

# What an absent field means (Gemma3TextConfig).
_DEFAULTS = {
    "num_key_value_heads": 4,
    "head_dim": 256,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "query_pre_attn_scalar": 256,
    "hidden_activation": gemma2.ACTIVATION,
}
_ROPE = {"theta": 1_000_000.0, "local_theta": 10_000.0}
_PERIOD = 6  # five sliding layers to a full one: transformers' and llama.cpp's default
_LARGE = 62  # layers of the 27B model, by which llama.cpp knows that its scale is another


def from_hf(config: Mapping[str, Any], where: StrPath) -> Architecture:
    """Read a `config.json`; see `dense.from_hf`.

    Raises:
        InvalidFormat: as there, or the config asks for what no other reader would compute alike.
    """
    read = gemma2.common_from_hf(config, where, "gemma3_text", _DEFAULTS)
    period = config.get("sliding_window_pattern", _PERIOD)
    if isinstance(period, bool) or not isinstance(period, int) or period < 1:
        raise InvalidFormat(where, f"sliding_window_pattern is {period!r}, not a number of layers")
    read |= gemma2.windows_from_hf(config, where, period)
    rotary = config.get("rope_parameters") or {}
    if not isinstance(rotary, Mapping) or set(rotary) - {FULL, SLIDING}:
        raise InvalidFormat(
            where,
            f"rope_parameters is {rotary!r}, not one object for each kind of layer",
            f"name them {FULL} and {SLIDING}",
        )
    read["final_logit_softcap"] = config.get("final_logit_softcapping")
    return dense.from_hf(config, where, "gemma3_text", defaults=_DEFAULTS, read=read, rope=_ROPE)


def to_hf(architecture: Architecture) -> dict[str, Any]:
    """The `config.json`, as transformers 4 and 5 both read it."""
    # The sliding layers' base is always said: an absent one would be another, not the same.
    local = architecture.rope_local_theta or architecture.rope_theta
    return dense.to_hf(
        replace(architecture, rope_local_theta=local),
        **gemma2.common_to_hf(architecture),
        final_logit_softcapping=architecture.final_logit_softcap,
    )


def from_gguf(fields: Mapping[str, Any], where: StrPath) -> Architecture:
    """Read GGUF metadata, absent keys as llama.cpp's loader takes them."""
    window = fields.get("attention.sliding_window")
    return dense.from_gguf(
        fields,
        where,
        "gemma3_text",
        attention_bias=fields.get("attention_bias", False),
        query_pre_attn_scalar=gemma2.scalar_from_gguf(fields, _LARGE),
        final_logit_softcap=fields.get("final_logit_softcapping") or None,
        rope={"local_theta": _ROPE["local_theta"]},
        **gemma2.windows_from_gguf(fields, window, _PERIOD, where),
    )


def to_gguf(architecture: Architecture) -> dict[str, Any]:
    """The GGUF metadata (keys without the prefix)."""
    cap = architecture.final_logit_softcap
    windows = gemma2.windows_to_gguf(architecture, _PERIOD)
    if SLIDING not in (architecture.layer_types or ()):
        windows = {}  # without a window llama.cpp computes every layer in full
    return {
        **dense.to_gguf(architecture),
        **gemma2.scalar_to_gguf(architecture, _LARGE),
        **windows,
        **({} if cap is None else {"final_logit_softcapping": cap}),
    }


def gguf_obstacles(architecture: Architecture) -> list[Obstacle]:
    """A scaling by more than a factor: llama.cpp would apply it to the sliding layers too."""
    scaling = architecture.rope_scaling
    if scaling is None or scaling["rope_type"] != "yarn":
        return []
    return [
        Obstacle(
            "rope_scaling",
            "its rotary scaling is 'yarn', and llama.cpp's 'gemma3' would multiply the queries and "
            "keys of the sliding layers by its factor too: logits at every position would differ",
            {"rope_scaling": None},
        )
    ]
