"""Mixtral: Mistral with experts in every layer, the weights of the chosen made to sum to one.

Reference: transformers' `models/mixtral`. In GGUF it is a `llama` with `expert_count`, whose rotary
pairs are adjacent and which knows no window.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr.architecture import Architecture
from apr.errors import StrPath
from apr.families import dense, experts

_ROPE = {"theta": 1e6}  # MixtralConfig's default, as the following
_DEFAULTS = {
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "router_aux_loss_coef": 0.001,
}


def from_hf(config: Mapping[str, Any], where: StrPath) -> Architecture:
    """Read a `config.json`; see `dense.from_hf`. An absent window is none, unlike Mistral's."""
    own = {
        "sliding_window": config.get("sliding_window"),
        "num_experts": config.get("num_local_experts") or config.get("num_experts"),
        "moe_intermediate_size": config.get("intermediate_size"),
    }
    return dense.from_hf(config, where, "mixtral", defaults=_DEFAULTS, read=own, rope=_ROPE)


def to_hf(architecture: Architecture) -> dict[str, Any]:
    """The `config.json`, as transformers 4 and 5 both read it."""
    return dense.to_hf(
        architecture,
        sliding_window=architecture.sliding_window,
        num_local_experts=architecture.num_experts,
        num_experts_per_tok=architecture.num_experts_per_tok,
        router_aux_loss_coef=architecture.router_aux_loss_coef,
    )


def claims_gguf(fields: Mapping[str, Any]) -> bool:
    """Whether a `llama` file is a Mixtral's: it has experts."""
    return bool(fields.get("expert_count"))


def from_gguf(fields: Mapping[str, Any], where: StrPath) -> Architecture:
    """Read GGUF metadata; all experts are as wide as `feed_forward_length` says."""
    own = experts.from_gguf(fields)
    own["moe_intermediate_size"] = fields.get("feed_forward_length")
    return dense.from_gguf(fields, where, "mixtral", **own)


def to_gguf(architecture: Architecture) -> dict[str, Any]:
    """The GGUF metadata (keys without the prefix)."""
    own = experts.to_gguf(architecture)
    del own["expert_feed_forward_length"]  # that of llama.cpp's `llama` is the feed-forward's
    return {**dense.to_gguf(architecture), **own}
