"""What families with experts share: how their configs and GGUF metadata say where experts are.

Functions beside those of `dense.py`; each family's module calls both with what is its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr.architecture import Architecture
from apr.errors import InvalidFormat, StrPath
from apr.families.obstacles import Obstacle


def layers_from_hf(config: Mapping[str, Any], where: StrPath) -> tuple[str, ...] | None:
    """`mlp_layer_types` of a Qwen config; None where every layer has experts.

    There `mlp_only_layers` names layers without experts, and of the others each
    `decoder_sparse_step`-th has them (1 if absent: all).

    Raises:
        InvalidFormat: the fields are of no use.
    """
    layers = config.get("num_hidden_layers")
    if not isinstance(layers, int):
        return None  # reported as missing with everything else
    dense = config.get("mlp_only_layers") or []
    step = config.get("decoder_sparse_step", 1)
    if not isinstance(dense, list) or not all(isinstance(i, int) for i in dense):
        raise InvalidFormat(where, f"mlp_only_layers is {dense!r}, not a list of layers")
    if not isinstance(step, int) or step < 1:
        raise InvalidFormat(where, f"decoder_sparse_step is {step!r}, not a number of at least 1")
    kinds = tuple("dense" if i in dense or (i + 1) % step else "sparse" for i in range(layers))
    return None if set(kinds) == {"sparse"} else kinds


def layers_to_hf(architecture: Architecture) -> dict[str, Any]:
    """The fields of a Qwen config that give experts to the same layers."""
    sparse, layers = architecture.sparse_layers, architecture.num_layers
    for step in range(1, layers + 2):
        if sparse == [i for i in range(layers) if (i + 1) % step == 0]:
            return {"decoder_sparse_step": step, "mlp_only_layers": []}
    return {"decoder_sparse_step": 1, "mlp_only_layers": architecture.dense_layers}


def from_gguf(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Number and choice of experts."""
    return {
        "num_experts": fields.get("expert_count"),
        "num_experts_per_tok": fields.get("expert_used_count"),
        "moe_intermediate_size": fields.get("expert_feed_forward_length"),
    }


def to_gguf(architecture: Architecture) -> dict[str, Any]:
    """Number and choice of experts, in keys without the prefix."""
    return {
        "expert_count": architecture.num_experts,
        "expert_used_count": architecture.num_experts_per_tok,
        "expert_feed_forward_length": architecture.moe_intermediate_size,
    }


def gguf_obstacles(
    architecture: Architecture, reader: str, *, norm_topk_prob: bool
) -> list[Obstacle]:
    """What llama.cpp's Qwens with experts compute otherwise, or not at all.

    Args:
        architecture: of the model.
        reader: llama.cpp's name for the architecture.
        norm_topk_prob: what it always computes with, whatever the key `expert_weights_norm` says.
    """
    out = []
    # All of them chosen: their weights sum to one anyway.
    some = architecture.num_experts_per_tok < architecture.num_experts
    if architecture.norm_topk_prob != norm_topk_prob and some:
        out.append(
            Obstacle(
                "norm_topk_prob",
                f"norm_topk_prob is {architecture.norm_topk_prob}, and llama.cpp's {reader!r} "
                f"always computes as if it were {norm_topk_prob}: every token's chosen experts "
                "would have other weights",
                {"norm_topk_prob": norm_topk_prob},
            )
        )
    if architecture.dense_layers:
        shown = ", ".join(map(str, architecture.dense_layers[:8]))
        out.append(
            Obstacle(
                "mlp_layer_types",
                f"layers without experts, dense: {shown}, and llama.cpp's {reader!r} has experts "
                "in every layer: it would not load the file at all",
            )
        )
    return out
