"""Qwen2-MoE: Qwen2 with experts in some or all layers, and one expert behind a sigmoid that every
token visits.

Reference: transformers' `models/qwen2_moe`; GGUF: llama.cpp's `qwen2moe`, whose rotary pairs are
halves, as here, which knows no window and has experts in every layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr.architecture import Architecture
from apr.errors import StrPath
from apr.families import dense, experts, layers
from apr.families.obstacles import Obstacle

# Qwen2MoeConfig's. The weights of the chosen experts sum to one only where the config says so.
_DEFAULTS = {
    "num_key_value_heads": 16,
    "qkv_bias": True,
    "norm_topk_prob": False,
    "router_aux_loss_coef": 0.001,
}


def from_hf(config: Mapping[str, Any], where: StrPath) -> Architecture:
    """Read a `config.json`; see `dense.from_hf` and `experts.layers_from_hf`.

    Without `layer_types`, a window holds in every other layer below `max_window_layers`, the first
    included: not the rule of the dense Qwen2.
    """
    own = {"mlp_layer_types": experts.layers_from_hf(config, where)}
    windows = layers.qwen_windows(config, where, slides=lambda i, first: i % 2 == 0 and i < first)
    return dense.from_hf(config, where, "qwen2_moe", defaults=_DEFAULTS, read=own | windows)


def to_hf(architecture: Architecture) -> dict[str, Any]:
    """The `config.json`, as transformers 4 and 5 both read it."""
    windows = layers.qwen_windows_to_hf(architecture)
    del windows["max_window_layers"]  # `layer_types` says more, and this has another meaning here
    return dense.to_hf(
        architecture,
        **windows,
        **experts.layers_to_hf(architecture),
        num_experts=architecture.num_experts,
        num_experts_per_tok=architecture.num_experts_per_tok,
        moe_intermediate_size=architecture.moe_intermediate_size,
        shared_expert_intermediate_size=architecture.shared_expert_intermediate_size,
        norm_topk_prob=architecture.norm_topk_prob,
        qkv_bias=architecture.qkv_bias,
        router_aux_loss_coef=architecture.router_aux_loss_coef,
    )


def from_gguf(fields: Mapping[str, Any], where: StrPath) -> Architecture:
    """Read GGUF metadata; whether there are biases is what the reader found in the tensors."""
    return dense.from_gguf(
        fields,
        where,
        "qwen2_moe",
        **experts.from_gguf(fields),
        shared_expert_intermediate_size=fields.get("expert_shared_feed_forward_length"),
        qkv_bias=fields.get("attention_bias", False),
    )


def to_gguf(architecture: Architecture) -> dict[str, Any]:
    """The GGUF metadata (keys without the prefix)."""
    return {
        **dense.to_gguf(architecture),
        **experts.to_gguf(architecture),
        "expert_shared_feed_forward_length": architecture.shared_expert_intermediate_size,
    }


def gguf_obstacles(architecture: Architecture) -> list[Obstacle]:
    """See `experts.gguf_obstacles`."""
    return experts.gguf_obstacles(architecture, "qwen2moe", norm_topk_prob=False)
