"""OLMoE: experts in every layer, and an RMS norm over the whole width of queries and of keys.

Reference: transformers' `models/olmoe`; GGUF: llama.cpp's `olmoe`, whose rotary pairs are halves,
as here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr.architecture import Architecture
from apr.errors import InvalidFormat, StrPath
from apr.families import dense, experts
from apr.families.obstacles import Obstacle

# OlmoeConfig's. An absent num_key_value_heads is as many as there are heads.
_DEFAULTS = {
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
    "norm_topk_prob": False,
    "router_aux_loss_coef": 0.01,
}


def from_hf(config: Mapping[str, Any], where: StrPath) -> Architecture:
    """Read a `config.json`; see `dense.from_hf`.

    Raises:
        InvalidFormat: as there, or `clip_qkv` is set: no layer here clips.
    """
    if config.get("clip_qkv") is not None:
        raise InvalidFormat(
            where, f"clip_qkv is {config['clip_qkv']!r}: clipping q, k and v is not supported"
        )
    own = {
        "num_experts": config.get("num_experts", config.get("num_local_experts")),
        "moe_intermediate_size": config.get("intermediate_size"),
    }
    return dense.from_hf(config, where, "olmoe", defaults=_DEFAULTS, read=own)


def to_hf(architecture: Architecture) -> dict[str, Any]:
    """The `config.json`, as transformers 4 and 5 both read it."""
    return dense.to_hf(
        architecture,
        attention_bias=architecture.attention_bias,
        clip_qkv=None,
        num_experts=architecture.num_experts,
        num_experts_per_tok=architecture.num_experts_per_tok,
        norm_topk_prob=architecture.norm_topk_prob,
        router_aux_loss_coef=architecture.router_aux_loss_coef,
    )


def from_gguf(fields: Mapping[str, Any], where: StrPath) -> Architecture:
    """Read GGUF metadata; all experts are as wide as `feed_forward_length` says."""
    own = experts.from_gguf(fields)
    own["moe_intermediate_size"] = fields.get("feed_forward_length")
    return dense.from_gguf(fields, where, "olmoe", **own)


def to_gguf(architecture: Architecture) -> dict[str, Any]:
    """The GGUF metadata (keys without the prefix)."""
    own = experts.to_gguf(architecture)
    del own["expert_feed_forward_length"]  # llama.cpp takes the feed-forward's
    return {**dense.to_gguf(architecture), **own}


def gguf_obstacles(architecture: Architecture) -> list[Obstacle]:
    """llama.cpp's norm of the keys is as wide as that of the queries."""
    heads, kv_heads = architecture.num_heads, architecture.num_kv_heads
    if kv_heads == heads:
        return []
    text = (
        f"num_kv_heads is {kv_heads} of {heads} heads, and llama.cpp's 'olmoe' wants as many: it "
        "would not load the file at all"
    )
    return [Obstacle("num_kv_heads", text)]
