"""DeepSeek-V2 and V2-Lite: attention through a latent, a softmax router whose weights are taken as
they are.

Reference: transformers' `models/deepseek_v2`, which does not read norm_topk_prob; GGUF: llama.cpp's
`deepseek2`. Lite has one q_proj; its groups are unused (`topk_method` greedy).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from apr.architecture import Architecture
from apr.errors import GateFailed, InvalidFormat, StrPath
from apr.families import latent, latent_gguf

# DeepseekV2Config's defaults; it has none of use for num_experts_per_tok (null).
_DEFAULTS = {
    "attention_bias": False,
    "mlp_bias": False,
    "n_shared_experts": 2,
    "routed_scaling_factor": 1.0,
}
GREEDY, GROUPED = "greedy", "group_limited_greedy"


def from_hf(config: Mapping[str, Any], where: StrPath) -> Architecture:
    """Read a `config.json`; see `latent.from_hf`. An absent first_k_dense_replace is 0, an absent
    topk_method greedy, which has no groups whatever n_group says.

    Raises:
        InvalidFormat: as there, or another topk_method, or groups that do not fit it.
    """
    method = config.get("topk_method", GREEDY)
    if method not in (GREEDY, GROUPED):
        raise InvalidFormat(where, f"topk_method is {method!r}, not {GREEDY} or {GROUPED}")
    groups = latent.groups(config, where) if method == GROUPED else {}
    return latent.from_hf(
        config,
        where,
        "deepseek_v2",
        defaults=_DEFAULTS,
        fixed={"scoring_func": "softmax"},
        layers=latent.dense_first(config, where, 0),
        own={**groups, "rope_interleave": True},
    )


def to_hf(architecture: Architecture) -> dict[str, Any]:
    """The `config.json`; see `latent.to_hf`.

    Raises:
        GateFailed: groups are judged as llama.cpp does it, which no config says.
    """
    if architecture.group_score == "top2":
        raise GateFailed(
            "deepseek_v2",
            f"{architecture.topk_groups} of {architecture.num_expert_groups} groups of experts are "
            "judged by their two best experts, as llama.cpp does it, and transformers judges them "
            "by the best: tokens would go to other experts",
            "export the Hugging Face folder that the GGUF was made from",
        )
    grouped = architecture.num_expert_groups > 1
    groups = {"n_group": architecture.num_expert_groups, "topk_group": architecture.topk_groups}
    return latent.to_hf(
        architecture,
        mlp_bias=architecture.mlp_bias,
        first_k_dense_replace=latent.first_sparse(architecture),
        topk_method=GROUPED if grouped else GREEDY,
        **(groups if grouped else {}),
    )


def claims_gguf(fields: Mapping[str, Any]) -> bool:
    """Whether `deepseek2` metadata describes this family."""
    return not latent_gguf.is_sigmoid(fields)


def from_gguf(fields: Mapping[str, Any], where: StrPath) -> Architecture:
    """Read GGUF metadata. Groups are judged as llama.cpp does it, by their two best experts, which
    is not what DeepSeek-V2's own are: `to_hf` refuses such an architecture.

    Raises:
        InvalidFormat: as `latent_gguf.from_gguf`, or the chosen weights are to sum to one, which no
            DeepSeek-V2 of transformers' does.
    """
    architecture = latent_gguf.from_gguf(fields, where, "deepseek_v2")
    if fields.get("expert_weights_norm"):
        raise InvalidFormat(
            where, "deepseek2.expert_weights_norm with a softmax router is not supported"
        )
    grouped = architecture.topk_groups < architecture.num_expert_groups
    return replace(architecture, group_score="top2") if grouped else architecture


def to_gguf(architecture: Architecture) -> dict[str, Any]:
    """The GGUF metadata (keys without the prefix). Groups judged by their best expert never stand
    there: where all are used they change nothing, others are an obstacle.
    """
    out = latent_gguf.to_gguf(architecture)
    if architecture.group_score == "max":
        out |= {"expert_group_count": 1, "expert_group_used_count": 1}
    return out


gguf_obstacles = latent_gguf.gguf_obstacles
gguf_caveats = latent_gguf.gguf_caveats
