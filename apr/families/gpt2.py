"""GPT-2: learned positions, layer norms, one fused projection for q, k and v, GeLU by tanh.

Reference: transformers' `models/gpt2`; GGUF: llama.cpp's `gpt2`. Its config has names of its own
and no key heads, so nothing here is shared with the rotary families.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr import architecture as arch
from apr.architecture import Architecture
from apr.errors import InvalidFormat, StrPath

# GPT2Config understands both; a config that holds both means the first.
_NAMES = {
    "hidden_size": ("hidden_size", "n_embd"),
    "num_layers": ("num_hidden_layers", "n_layer"),
    "num_heads": ("num_attention_heads", "n_head"),
    # n_ctx, which GPT2Config does not read, is what the oldest configs call it.
    "max_position_embeddings": ("max_position_embeddings", "n_positions", "n_ctx"),
}
# What changes the result, is false by default, and cannot be computed here.
_REFUSED = {
    "scale_attn_by_inverse_layer_idx": "scores divided by the layer's number",
    "add_cross_attention": "attention to an encoder",
}


def from_hf(config: Mapping[str, Any], where: StrPath) -> Architecture:
    """Read a `config.json`. An absent `n_inner` is four times `n_embd`, as a null one.

    `reorder_and_upcast_attn` changes no result in float32, and transformers' default attention does
    not read it; it is kept with the folder and not acted on.

    Raises:
        InvalidFormat: a size is missing, or the config asks for what is not supported.
    """
    refused = [f"{key} ({what})" for key, what in _REFUSED.items() if config.get(key)]
    if refused:
        raise InvalidFormat(where, f"asks for {' and '.join(refused)}, which is not supported")
    values = {
        ours: next((config[name] for name in names if config.get(name) is not None), None)
        for ours, names in _NAMES.items()
    }
    inner = config.get("n_inner")
    if inner is None and isinstance(values["hidden_size"], int):
        inner = 4 * values["hidden_size"]
    return arch.from_metadata(
        {
            **values,
            "architecture": "gpt2",
            "num_kv_heads": values["num_heads"],
            "intermediate_size": inner,
            "vocab_size": config.get("vocab_size"),
            "rms_norm_eps": _stated(config, "layer_norm_epsilon", 1e-5),
            "hidden_act": _stated(config, "activation_function", "gelu_new"),
            "tie_word_embeddings": _stated(config, "tie_word_embeddings", True),
            "initializer_range": _stated(config, "initializer_range", 0.02),
            "query_pre_attn_scalar": None if _stated(config, "scale_attn_weights", True) else 1.0,
        },
        where,
    )


def _stated(config: Mapping[str, Any], key: str, default: object) -> Any:
    value = config.get(key)
    return default if value is None else value


def to_hf(architecture: Architecture) -> dict[str, Any]:
    """The `config.json`; `n_ctx` is for readers that want it beside `n_positions`."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": architecture.hidden_size,
        "n_layer": architecture.num_layers,
        "n_head": architecture.num_heads,
        "n_inner": architecture.intermediate_size,
        "n_positions": architecture.max_position_embeddings,
        "n_ctx": architecture.max_position_embeddings,
        "vocab_size": architecture.vocab_size,
        "layer_norm_epsilon": architecture.rms_norm_eps,
        "activation_function": architecture.hidden_act,
        "scale_attn_weights": architecture.query_pre_attn_scalar is None,
        "tie_word_embeddings": architecture.tie_word_embeddings,
        "initializer_range": architecture.initializer_range,
    }


def from_gguf(fields: Mapping[str, Any], where: StrPath) -> Architecture:
    """Read GGUF metadata (keys without the prefix, and what the reader found in the tensors)."""
    heads = fields.get("attention.head_count")
    return arch.from_metadata(
        {
            "architecture": "gpt2",
            "hidden_size": fields.get("embedding_length"),
            "num_layers": fields.get("block_count"),
            "num_heads": heads,
            "num_kv_heads": fields.get("attention.head_count_kv", heads),
            "head_dim": fields.get("attention.key_length"),
            "intermediate_size": fields.get("feed_forward_length"),
            "vocab_size": fields.get("vocab_size"),
            "max_position_embeddings": fields.get("context_length"),
            "rms_norm_eps": fields.get("attention.layer_norm_epsilon"),
            "hidden_act": "gelu_new",
            "tie_word_embeddings": fields.get("tie_word_embeddings", False),
        },
        where,
    )


def to_gguf(architecture: Architecture) -> dict[str, Any]:
    """The GGUF metadata (keys without the prefix)."""
    return {
        "context_length": architecture.max_position_embeddings,
        "embedding_length": architecture.hidden_size,
        "block_count": architecture.num_layers,
        "feed_forward_length": architecture.intermediate_size,
        "attention.head_count": architecture.num_heads,
        "attention.layer_norm_epsilon": architecture.rms_norm_eps,
        "vocab_size": architecture.vocab_size,
    }
