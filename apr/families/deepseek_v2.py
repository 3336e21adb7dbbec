"""DeepSeek-V2 and V2-Lite: attention through a latent, a softmax router whose weights are taken as
they are.

Reference: transformers' `models/deepseek_v2`, which does not read norm_topk_prob; GGUF: llama.cpp's
`deepseek2`. Lite has one q_proj; its groups are unused (`topk_method` greedy).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr.architecture import Architecture
from apr.errors import InvalidFormat, StrPath
from apr.families import latent

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
    groups: Any = 1
    chosen: Any = 1
    if method == GROUPED:
        groups, chosen = config.get("n_group"), config.get("topk_group")
        for key, value in (("n_group", groups), ("topk_group", chosen)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InvalidFormat(where, f"{key} is {value!r}, not a number of groups")
    elif method != GREEDY:
        raise InvalidFormat(where, f"topk_method is {method!r}, not {GREEDY} or {GROUPED}")
    return latent.from_hf(
        config,
        where,
        "deepseek_v2",
        defaults=_DEFAULTS,
        fixed={"scoring_func": "softmax"},
        layers=latent.dense_first(config, where, 0),
        own={"num_expert_groups": groups, "topk_groups": chosen, "rope_interleave": True},
    )


def to_hf(architecture: Architecture) -> dict[str, Any]:
    """The `config.json`; see `latent.to_hf`."""
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
    return not latent.is_sigmoid(fields)


def from_gguf(fields: Mapping[str, Any], where: StrPath) -> Architecture:
    """Read GGUF metadata.

    Raises:
        InvalidFormat: as `latent.from_gguf`, or the chosen weights are to sum to one, which no
            DeepSeek-V2 of transformers' does, or there are groups, which llama.cpp judges by
            another rule than this family's.
    """
    architecture = latent.from_gguf(
        fields,
        where,
        "deepseek_v2",
        num_expert_groups=1,
        topk_groups=1,
        attention_bias="blk.0.attn_kv_a_mqa.bias" in fields.get("tensors", ()),
    )
    if fields.get("expert_weights_norm"):
        raise InvalidFormat(
            where, "deepseek2.expert_weights_norm with a softmax router is not supported"
        )
    groups = fields.get("expert_group_count") or 1
    used = fields.get("expert_group_used_count") or 1
    if groups > 1 and used < groups:
        raise InvalidFormat(
            where,
            f"states {groups} groups of experts, {used} of them used: llama.cpp judges a group by "
            "its two best experts, DeepSeek-V2 by its best, so one of the two is wrong",
            "open the Hugging Face folder that the file was made from",
        )
    return architecture


def to_gguf(architecture: Architecture) -> dict[str, Any]:
    """The GGUF metadata (keys without the prefix). Groups that are all used change nothing, and
    are left out; others are an obstacle.
    """
    return {**latent.to_gguf(architecture), "expert_group_count": 1, "expert_group_used_count": 1}
