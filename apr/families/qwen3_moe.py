"""Qwen3-MoE: Qwen3 with experts in some or all layers.

Reference: transformers' `models/qwen3_moe`; GGUF: llama.cpp's `qwen3moe`, whose rotary pairs are
halves, as here, which knows no window and has experts in every layer, their weights summing to one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr.architecture import Architecture
from apr.errors import InvalidFormat, StrPath
from apr.families import dense, experts
from apr.families.obstacles import Obstacle

# Qwen3MoeConfig's. The released models all say true for norm_topk_prob; absent it is false.
_DEFAULTS = {
    "num_key_value_heads": 4,
    "attention_bias": False,
    "norm_topk_prob": False,
    "router_aux_loss_coef": 0.001,
}


def from_hf(config: Mapping[str, Any], where: StrPath) -> Architecture:
    """Read a `config.json`; see `dense.from_hf` and `experts.layers_from_hf`. A window holds in
    every layer; an absent head_dim is the hidden size over the heads, unlike Qwen3's.

    Raises:
        InvalidFormat: as there, or head_dim is null, which transformers has no meaning for.
    """
    if config.get("head_dim", "absent") is None:
        raise InvalidFormat(where, "head_dim is null", "write the width of a head")
    used = config.get("use_sliding_window") or False
    own = {
        "num_experts": config.get("num_experts") or config.get("num_local_experts"),
        "mlp_layer_types": experts.layers_from_hf(config, where),
        # An absent window is 4096, Qwen3MoeConfig's default.
        "sliding_window": config.get("sliding_window", 4096) if used else None,
    }
    return dense.from_hf(config, where, "qwen3_moe", defaults=_DEFAULTS, read=own)


def to_hf(architecture: Architecture) -> dict[str, Any]:
    """The `config.json`, as transformers 4 and 5 both read it (5 writes `num_local_experts`)."""
    return dense.to_hf(
        architecture,
        **experts.layers_to_hf(architecture),
        attention_bias=architecture.attention_bias,
        use_sliding_window=architecture.sliding_window is not None,
        sliding_window=architecture.sliding_window,
        num_experts=architecture.num_experts,
        num_experts_per_tok=architecture.num_experts_per_tok,
        moe_intermediate_size=architecture.moe_intermediate_size,
        norm_topk_prob=architecture.norm_topk_prob,
        router_aux_loss_coef=architecture.router_aux_loss_coef,
    )


def from_gguf(fields: Mapping[str, Any], where: StrPath) -> Architecture:
    """Read GGUF metadata; whether there are biases is what the reader found in the tensors."""
    return dense.from_gguf(
        fields,
        where,
        "qwen3_moe",
        **experts.from_gguf(fields),
        norm_topk_prob=True,
        attention_bias=fields.get("attention_bias", False),
    )


def to_gguf(architecture: Architecture) -> dict[str, Any]:
    """The GGUF metadata (keys without the prefix)."""
    return {**dense.to_gguf(architecture), **experts.to_gguf(architecture)}


def gguf_obstacles(architecture: Architecture) -> list[Obstacle]:
    """See `experts.gguf_obstacles`."""
    return experts.gguf_obstacles(architecture, "qwen3moe", norm_topk_prob=True)
