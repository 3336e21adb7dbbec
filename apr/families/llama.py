"""Llama: RMSNorm, rotary embedding, grouped-query attention, SwiGLU, tied or untied head.

Reference: transformers' `models/llama`; GGUF keys: llama.cpp's `llama` architecture. Rotary
scaling other than the default is refused until the rotary kinds are supported in all three worlds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr import architecture as arch
from apr.architecture import Architecture
from apr.errors import InvalidFormat, StrPath

# What a field of the config means when it is absent: transformers' LlamaConfig. Nothing else may
# be absent.
_HF_DEFAULTS: dict[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
}


def from_hf(config: Mapping[str, Any], where: StrPath) -> Architecture:
    """Read a `config.json`.

    Raises:
        InvalidFormat: a field without a published default is missing, or the rotary kind is not
            supported.
    """
    values = {**_HF_DEFAULTS, **{k: v for k, v in config.items() if v is not None}}
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise InvalidFormat(where, f"rotary scaling {kind!r} is not supported for llama yet")
    if rope.get("rope_theta") is not None:
        values["rope_theta"] = rope["rope_theta"]
    values.setdefault("rope_theta", 10_000.0)  # LlamaConfig's default; 500,000 only from Llama 3
    if values.get("num_key_value_heads") is None:
        values["num_key_value_heads"] = values.get("num_attention_heads")
    values["rope_theta"] = float(values["rope_theta"])
    values.pop("rope_scaling", None)
    return arch.from_metadata({**values, "architecture": "llama"}, where)


def to_hf(architecture: Architecture) -> dict[str, Any]:
    """The `config.json`, as transformers 4 and 5 both read it."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": architecture.hidden_size,
        "intermediate_size": architecture.intermediate_size,
        "num_hidden_layers": architecture.num_layers,
        "num_attention_heads": architecture.num_heads,
        "num_key_value_heads": architecture.num_kv_heads,
        "head_dim": architecture.head_dim,
        "vocab_size": architecture.vocab_size,
        "max_position_embeddings": architecture.max_position_embeddings,
        "rms_norm_eps": architecture.rms_norm_eps,
        "rope_theta": architecture.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": architecture.rope_theta},
        "hidden_act": architecture.hidden_act,
        "attention_bias": architecture.attention_bias,
        "mlp_bias": architecture.mlp_bias,
        "tie_word_embeddings": architecture.tie_word_embeddings,
        "initializer_range": architecture.initializer_range,
    }


def from_gguf(fields: Mapping[str, Any], where: StrPath) -> Architecture:
    """Read GGUF metadata (keys without the `llama.` prefix, plus `vocab_size` and
    `tie_word_embeddings`, `attention_bias`, `mlp_bias` as the reader found them in the tensors).

    Raises:
        InvalidFormat: a field is missing, or a rotary scaling is set.
    """
    kind = fields.get("rope.scaling.type", "none")
    if kind not in ("none", "default"):
        raise InvalidFormat(where, f"rotary scaling {kind!r} is not supported for llama yet")
    heads = fields.get("attention.head_count")
    values = {
        "architecture": "llama",
        "hidden_size": fields.get("embedding_length"),
        "num_layers": fields.get("block_count"),
        "num_heads": heads,
        "num_kv_heads": fields.get("attention.head_count_kv", heads),
        "head_dim": fields.get("attention.key_length", fields.get("rope.dimension_count")),
        "intermediate_size": fields.get("feed_forward_length"),
        "vocab_size": fields.get("vocab_size"),
        "max_position_embeddings": fields.get("context_length"),
        "rms_norm_eps": fields.get("attention.layer_norm_rms_epsilon"),
        "rope_theta": float(fields.get("rope.freq_base", 10_000.0)),  # llama.cpp's default
        "tie_word_embeddings": fields.get("tie_word_embeddings", False),
        "attention_bias": fields.get("attention_bias", False),
        "mlp_bias": fields.get("mlp_bias", False),
    }
    return arch.from_metadata(values, where)


def to_gguf(architecture: Architecture) -> dict[str, Any]:
    """The GGUF metadata (keys without the prefix)."""
    return {
        "context_length": architecture.max_position_embeddings,
        "embedding_length": architecture.hidden_size,
        "block_count": architecture.num_layers,
        "feed_forward_length": architecture.intermediate_size,
        "attention.head_count": architecture.num_heads,
        "attention.head_count_kv": architecture.num_kv_heads,
        "attention.layer_norm_rms_epsilon": architecture.rms_norm_eps,
        "attention.key_length": architecture.head_dim,
        "attention.value_length": architecture.head_dim,
        "rope.dimension_count": architecture.head_dim,
        "rope.freq_base": architecture.rope_theta,
        "vocab_size": architecture.vocab_size,
    }
