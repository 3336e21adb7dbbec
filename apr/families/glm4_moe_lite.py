"""GLM-4.7-Flash: DeepSeek-V3's block with other defaults; any layer may be dense.

Reference: transformers' `models/glm4_moe_lite`; GGUF: llama.cpp's `deepseek2`. Nothing in such a
file tells it from a DeepSeek-V3 except our own `apr.architecture`, and the mathematics is the same:
a file of somebody else opens as that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from apr.architecture import Architecture
from apr.errors import InvalidFormat, StrPath
from apr.families import deepseek_v3, latent, latent_gguf, layers

# Glm4MoeLiteConfig's defaults; sizes have none here.
_DEFAULTS = {
    "attention_bias": False,
    "rms_norm_eps": 1e-5,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "routed_scaling_factor": 1.8,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "rope_interleave": True,
}
_FIXED = {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}


def from_hf(config: Mapping[str, Any], where: StrPath) -> Architecture:
    """Read a `config.json`; see `latent.from_hf` and `_layers`."""
    return latent.from_hf(
        config,
        where,
        "glm4_moe_lite",
        defaults=_DEFAULTS,
        fixed=_FIXED,
        layers=_layers(config, where),
        own=deepseek_v3.sigmoid_router(config, where, _DEFAULTS),
    )


def _layers(config: Mapping[str, Any], where: StrPath) -> list[str] | None:
    """The kind of each layer: `mlp_layer_types`, or the first alone dense.

    Raises:
        InvalidFormat: `first_k_dense_replace`, which transformers does not read here and older
            configs have, says something else.
    """
    kinds = layers.stated(
        config,
        where,
        "mlp_layer_types",
        ("dense", "sparse"),
        lambda count: latent.leading(1, count),
    )
    first = config.get("first_k_dense_replace")
    if first is not None and kinds != latent.dense_first(config, where, first):
        raise InvalidFormat(
            where,
            f"first_k_dense_replace is {first}, and transformers, which does not read it for this "
            f"family, makes layers {[i for i, kind in enumerate(kinds or ()) if kind == 'dense']} "
            "dense",
            "state mlp_layer_types, and leave first_k_dense_replace out",
        )
    return kinds


def to_hf(architecture: Architecture) -> dict[str, Any]:
    """The `config.json`; see `latent.to_hf`."""
    kinds = list(architecture.mlp_layer_types or ())
    first = latent.first_sparse(architecture)
    # What llama.cpp's converter reads, where it can say the same.
    older = {"first_k_dense_replace": first} if "dense" not in kinds[first:] else {}
    return latent.to_hf(
        architecture,
        **deepseek_v3.sigmoid_router_to_hf(architecture),
        mlp_layer_types=kinds,
        **older,
    )


def from_gguf(fields: Mapping[str, Any], where: StrPath) -> Architecture:
    """Read GGUF metadata, for a caller who knows that it is this family's: the file opens as
    deepseek_v3.
    """
    return replace(deepseek_v3.from_gguf(fields, where), family="glm4_moe_lite")


to_gguf = latent_gguf.to_gguf
gguf_obstacles = latent_gguf.gguf_obstacles
gguf_caveats = latent_gguf.gguf_caveats
