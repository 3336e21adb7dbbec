"""What DeepSeek-V2, DeepSeek-V3 and GLM-4.7-Flash share in GGUF: llama.cpp's `deepseek2`.

The config's side is `latent.py`. Keys and what they mean: llama.cpp's loader and converter, held to
by comparing logits (tests/parity).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from apr.architecture import Architecture
from apr.errors import InvalidFormat, StrPath
from apr.families import dense, latent
from apr.families.obstacles import Obstacle
from apr.families.rotary_gguf import LOG_MULTIPLIER

SOFTMAX, SIGMOID = 1, 2  # llama.cpp's expert_gating_func


def is_sigmoid(fields: Mapping[str, Any]) -> bool:
    """Whether `deepseek2` metadata describes a sigmoid router (keys without the prefix).

    Without the key llama.cpp takes a softmax, as in the first files of DeepSeek-V2, except for
    GLM-4.7-Flash, which it knows by its size.
    """
    stated = fields.get("expert_gating_func")
    if stated is not None:
        return bool(stated == SIGMOID)
    return fields.get("block_count") in (47, 48) and fields.get("vocab_size") == 154880


def from_gguf(fields: Mapping[str, Any], where: StrPath, family: str, **own: Any) -> Architecture:
    """Read GGUF metadata (keys without the prefix); `own` is the family's own.

    Raises:
        InvalidFormat: keys are missing, all named, or say something that is not computed.
    """
    names = fields.get("tensors", frozenset())
    needed = {
        "attention.kv_lora_rank": "kv_lora_rank",
        "attention.key_length_mla": "head_dim",
        "attention.value_length_mla": "v_head_dim",
        "rope.dimension_count": "qk_rope_head_dim",
        "expert_count": "num_experts",
        "expert_used_count": "num_experts_per_tok",
        "expert_shared_count": "num_shared_experts",
        "expert_feed_forward_length": "moe_intermediate_size",
        "block_count": "num_layers",
    }
    missing = [key for key in needed if not latent.whole(fields.get(key))]
    if missing:
        raise InvalidFormat(
            where,
            "metadata is incomplete: missing " + ", ".join(f"deepseek2.{key}" for key in missing),
            "a file from before llama.cpp split attn_kv_b (2025-04) has to be converted again"
            if "attention.key_length_mla" in missing
            else "convert the model again",
        )
    values = {ours: fields[key] for key, ours in needed.items()}
    if fields.get("attention.temperature_scale"):
        raise InvalidFormat(where, "deepseek2.attention.temperature_scale is not supported")
    if fields.get("expert_gating_func") not in (None, SOFTMAX, SIGMOID):
        raise InvalidFormat(
            where, f"deepseek2.expert_gating_func is {fields['expert_gating_func']}: not supported"
        )
    if fields.get("expert_gating_func") is None and not is_sigmoid(fields):
        biased = [n for n in names if n.endswith(".exp_probs_b.bias")]
        if biased:
            raise InvalidFormat(
                where,
                f"has {min(biased)}, which belongs to a sigmoid router, but no "
                "deepseek2.expert_gating_func: llama.cpp would compute a softmax",
                "convert the model again",
            )
    nextn = fields.get("nextn_predict_layers") or 0
    factor = fields.get("rope.scaling.factor") or 1
    if fields.get("rope.scaling.type") == "linear" and factor > 1:
        wanted = _linear_key({"rope_type": "linear", "factor": factor})[LOG_MULTIPLIER]
        if not math.isclose(fields.get(LOG_MULTIPLIER, 0.0), wanted, rel_tol=1e-4):
            raise InvalidFormat(
                where,
                f"states linear rotary scaling by {factor:g} and no deepseek2.{LOG_MULTIPLIER} of "
                f"{wanted:.6g}: llama.cpp multiplies its scores by the logarithm of the factor "
                "then, which no Hugging Face config says",
                "open the Hugging Face folder that the file was made from",
            )
    layers = values["num_layers"] - nextn
    first = min(fields.get("leading_dense_block_count") or 0, layers)
    groups = fields.get("expert_group_count") or 1
    rank = fields.get("attention.q_lora_rank") or None
    if "blk.0.attn_q.weight" in names:
        rank = None  # llama.cpp's lite models: the key is there and means nothing
    return dense.from_gguf(
        fields,
        where,
        family,
        **{
            **values,
            "num_layers": layers,
            "num_kv_heads": fields.get("attention.head_count"),
            "q_lora_rank": rank,
            "qk_nope_head_dim": values["head_dim"] - values["qk_rope_head_dim"],
            "shared_expert_intermediate_size": (
                values["num_shared_experts"] * values["moe_intermediate_size"]
            ),
            "mlp_layer_types": latent.leading(first, layers),
            # A factor that is absent, or 0, multiplies by nothing there.
            "routed_scaling_factor": float(fields.get("expert_weights_scale") or 1.0),
            "num_expert_groups": groups,
            "topk_groups": (fields.get("expert_group_used_count") or 1) if groups > 1 else 1,
            "rope_interleave": True,
            "attention_bias": "blk.0.attn_kv_a_mqa.bias" in names,
            **own,
        },
    )


def to_gguf(architecture: Architecture) -> dict[str, Any]:
    """The GGUF metadata (keys without the prefix).

    llama.cpp computes MLA as attention with one kv head over the latents, and states the widths of
    that under the usual keys, those of the expanded heads under keys of their own.
    """
    own: dict[str, Any] = {
        "attention.head_count_kv": 1,
        "attention.key_length": architecture.latent_size,
        "attention.value_length": architecture.kv_lora_rank,
        "attention.key_length_mla": architecture.head_dim,
        "attention.value_length_mla": architecture.v_head_dim,
        # Always said: 0 is a plain q there, and only some sizes may leave it out.
        "attention.q_lora_rank": architecture.q_lora_rank or 0,
        "attention.kv_lora_rank": architecture.kv_lora_rank,
        "rope.dimension_count": architecture.qk_rope_head_dim,
        "leading_dense_block_count": latent.first_sparse(architecture),
        "expert_count": architecture.num_experts,
        "expert_used_count": architecture.num_experts_per_tok,
        "expert_shared_count": architecture.num_shared_experts,
        "expert_feed_forward_length": architecture.moe_intermediate_size,
        "expert_weights_scale": architecture.routed_scaling_factor,
        "expert_weights_norm": architecture.norm_topk_prob,
        "expert_gating_func": SIGMOID if architecture.router_scoring == "sigmoid" else SOFTMAX,
        "expert_group_count": architecture.num_expert_groups,
        "expert_group_used_count": architecture.topk_groups,
    }
    return {**dense.to_gguf(architecture), **own, **_linear_key(architecture.rope_scaling)}


def _linear_key(scaling: Mapping[str, Any] | None) -> dict[str, float]:
    """What keeps llama.cpp's `deepseek2` from scaling the scores, too, where the rotary scaling is
    linear: with factor f and multiplier m it multiplies them by the square of
    (1 + 0.1 ln f)(1 + m ln f), which is 1 for this m.
    """
    if scaling is None or scaling["rope_type"] != "linear" or scaling["factor"] == 1:
        return {}
    log = math.log(scaling["factor"])
    return {LOG_MULTIPLIER: (1 / (1 + 0.1 * log) - 1) / log}


def latent_scale(architecture: Architecture) -> int:
    """The power of two that the latents' projections are multiplied by in GGUF, as an exponent: the
    norm that follows then has nearly `latent.EPS` in effect (apr/formats/latent_scale.py).
    """
    return round(math.log2(architecture.rms_norm_eps / latent.EPS) / 2)


def gguf_caveats(architecture: Architecture) -> list[str]:
    """What the file cannot make llama.cpp compute in full, though nearly always."""
    out = []
    given = architecture.rms_norm_eps
    effective = given / 4 ** latent_scale(architecture)
    if not math.isclose(effective, latent.EPS, rel_tol=1e-3):
        out.append(
            f"rms_norm_eps {given:g}: llama.cpp has it in the norms of the latents, too, where "
            f"transformers has {latent.EPS:g}; scaled weights bring it to {effective:g} (block "
            "types are not scaled), so logits differ where the mean square of a latent is near it"
        )
    if architecture.norm_topk_prob:
        out.append(
            "norm_topk_prob: llama.cpp divides the weights of a token's experts by their sum or "
            "6.1e-05, whichever is larger, so logits differ where every score is below that"
        )
    return out


def gguf_obstacles(architecture: Architecture) -> list[Obstacle]:
    """What this model does that llama.cpp's `deepseek2` does not, beside what the contract says."""
    out = []
    layers, vocab = architecture.num_layers, architecture.vocab_size
    lite = layers in (26, 27) or (layers == 48 and vocab == 128256)
    if lite and architecture.q_lora_rank is not None:
        out.append(
            Obstacle(
                "q_lora_rank",
                f"q_lora_rank is {architecture.q_lora_rank} in a model of {layers} layers, which "
                "llama.cpp's 'deepseek2' takes for one with a plain q_proj: it would not load the "
                "file at all",
            )
        )
    kinds = list(architecture.mlp_layer_types or ())
    if kinds != sorted(kinds):
        out.append(
            Obstacle(
                "mlp_layer_types",
                "mlp_layer_types has a dense layer after a sparse one, and llama.cpp's 'deepseek2' "
                "counts the dense layers at the beginning alone: it would not load the file at all",
            )
        )
    groups, chosen = architecture.num_expert_groups, architecture.topk_groups
    if architecture.group_score == "max" and chosen < groups:
        out.append(
            Obstacle(
                "group_score",
                f"num_expert_groups is {groups}, {chosen} of them chosen by their best expert, and "
                "llama.cpp's 'deepseek2' judges a group by the sum of its two best: tokens go "
                "to other experts, at every position",
                {"group_score": "top2"},
            )
        )
    return out
