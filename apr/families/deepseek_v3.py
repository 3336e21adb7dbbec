"""DeepSeek-V3 and R1: attention through a latent, a sigmoid router with a correction bias.

Reference: transformers' `models/deepseek_v3`; GGUF: llama.cpp's `deepseek2`, as which DeepSeek-V2
and GLM-4.7-Flash are stored too. A file with a sigmoid router that does not say what it was made
of opens as this family; the mathematics is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr.architecture import Architecture
from apr.errors import StrPath
from apr.families import latent, latent_gguf

# DeepseekV3Config's defaults, for what no tensor's shape can tell and no model could guess wrong
# without being told: sizes are errors, as everywhere.
_DEFAULTS = {
    "attention_bias": False,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "routed_scaling_factor": 2.5,
    "n_group": 8,
    "topk_group": 4,
    "norm_topk_prob": True,
    "rope_interleave": True,
}
_FIXED = {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}


def from_hf(config: Mapping[str, Any], where: StrPath) -> Architecture:
    """Read a `config.json`; see `latent.from_hf`. An absent first_k_dense_replace is 3."""
    return latent.from_hf(
        config,
        where,
        "deepseek_v3",
        defaults=_DEFAULTS,
        fixed=_FIXED,
        layers=latent.dense_first(config, where, 3),
        own=sigmoid_router(config, where, _DEFAULTS),
    )


def sigmoid_router(
    config: Mapping[str, Any], where: StrPath, defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields of the router and the rotary pairs, as DeepSeek-V3's and GLM's configs state them.

    Raises:
        InvalidFormat: groups that transformers could not form.
    """
    values = {key: config.get(key, default) for key, default in defaults.items()}
    return {
        "router_scoring": "sigmoid",
        "router_correction_bias": True,
        "group_score": "top2",
        **latent.groups(values, where),
        # A null is false to transformers, which only asks whether it is true.
        "norm_topk_prob": bool(values["norm_topk_prob"]),
        "rope_interleave": bool(values["rope_interleave"]),
    }


def to_hf(architecture: Architecture) -> dict[str, Any]:
    """The `config.json`; see `latent.to_hf`."""
    return latent.to_hf(
        architecture,
        **sigmoid_router_to_hf(architecture),
        first_k_dense_replace=latent.first_sparse(architecture),
    )


def sigmoid_router_to_hf(architecture: Architecture) -> dict[str, Any]:
    """The same fields for a config."""
    return {
        "topk_method": "noaux_tc",
        "n_group": architecture.num_expert_groups,
        "topk_group": architecture.topk_groups,
        "norm_topk_prob": architecture.norm_topk_prob,
        "rope_interleave": architecture.rope_interleave,
    }


def claims_gguf(fields: Mapping[str, Any]) -> bool:
    """Whether `deepseek2` metadata describes this family."""
    return latent_gguf.is_sigmoid(fields)


def from_gguf(fields: Mapping[str, Any], where: StrPath) -> Architecture:
    """Read GGUF metadata."""
    return latent_gguf.from_gguf(
        fields,
        where,
        "deepseek_v3",
        router_scoring="sigmoid",
        router_correction_bias=True,
        group_score="top2",
        norm_topk_prob=bool(fields.get("expert_weights_norm", False)),
    )


to_gguf = latent_gguf.to_gguf
gguf_obstacles = latent_gguf.gguf_obstacles
gguf_caveats = latent_gguf.gguf_caveats
