"""Gemma 3, its text model: Gemma 2 with norms of heads and a rotary base for the sliding layers.

Reference: transformers' `models/gemma3` (Gemma3ForCausalLM); GGUF: llama.cpp's `gemma3`. There is
no soft cap of scores: the config has a field for it that the model does not read. A rotary scaling
is that of the full layers alone, in all three worlds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from apr.architecture import Architecture
from apr.errors import InvalidFormat, StrPath
from apr.families import dense, gemma2

# What an absent field means (Gemma3TextConfig).
_DEFAULTS = {
    "num_key_value_heads": 4,
    "head_dim": 256,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "query_pre_attn_scalar": 256,
    "hidden_activation": gemma2.ACTIVATION,
}
_THETA, _LOCAL_THETA = 1_000_000.0, 10_000.0
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
    full, read["rope_local_theta"] = _rope_from_hf(config, where)
    read["final_logit_softcap"] = config.get("final_logit_softcapping")
    flat = {**config, "rope_parameters": full, "rope_scaling": None, "rope_theta": None}
    return dense.from_hf(flat, where, "gemma3_text", defaults=_DEFAULTS, read=read)


def _rope_from_hf(config: Mapping[str, Any], where: StrPath) -> tuple[dict[str, Any], float]:
    """The rotary object of the full layers, with its base, and the base of the sliding ones.

    transformers 5 writes an object for each kind of layer; before it there were two bases and one
    scaling, that of the full layers.
    """
    nested = config.get("rope_parameters") or {}
    if not isinstance(nested, Mapping) or set(nested) - {gemma2.FULL, gemma2.SLIDING}:
        raise InvalidFormat(
            where,
            f"rope_parameters is {nested!r}, not one object for each kind of layer",
            f"name them {gemma2.FULL} and {gemma2.SLIDING}",
        )
    full = {**(nested.get(gemma2.FULL) or {}), **(config.get("rope_scaling") or {})}
    local = nested.get(gemma2.SLIDING) or {}
    if full.get("rope_theta") is None:
        full["rope_theta"] = config.get("rope_theta", _THETA)
    kind = local.get("rope_type", local.get("type", "default"))
    if kind != "default":
        raise InvalidFormat(where, f"rotary scaling {kind!r} of sliding layers is not supported")
    theta = local.get("rope_theta")
    return full, float(config.get("rope_local_base_freq", _LOCAL_THETA) if theta is None else theta)


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
        rope_local_theta=float(fields.get("rope.freq_base_swa", _LOCAL_THETA)),
        **gemma2.windows_from_gguf(fields, window, _PERIOD, where),
    )


def to_gguf(architecture: Architecture) -> dict[str, Any]:
    """The GGUF metadata (keys without the prefix)."""
    cap = architecture.final_logit_softcap
    windows = gemma2.windows_to_gguf(architecture, _PERIOD)
    if gemma2.SLIDING not in (architecture.layer_types or ()):
        windows = {}  # without a window llama.cpp computes every layer in full
    return {
        **dense.to_gguf(architecture),
        **gemma2.scalar_to_gguf(architecture, _LARGE),
        **windows,
        "rope.freq_base_swa": architecture.rope_local_theta or architecture.rope_theta,
        **({} if cap is None else {"final_logit_softcapping": cap}),
    }
