"""What is special about an architecture, in words: everything that Llama's plain block lacks."""

from __future__ import annotations

from apr import families
from apr.architecture import Architecture
from apr.model.costs import cache_bytes_per_token

Row = tuple[str, str]
_CACHE_ELEMENT = 2  # bytes: the 16-bit cache that most engines take by default


def special(architecture: Architecture) -> list[Row]:
    """A line for each property, title and text; none for what is not there."""
    return [*_attention(architecture), *_positions(architecture), *_blocks(architecture),
            *_experts(architecture)]  # fmt: skip


def costs(architecture: Architecture) -> dict[str, int]:
    """Parameters, those that one token uses, and bytes of a 16-bit KV cache per token."""
    return {
        "parameters": families.num_parameters(architecture),
        "active_parameters": families.num_parameters(architecture, active=True),
        "cache_bytes_per_token": cache_bytes_per_token(architecture, _CACHE_ELEMENT),
    }


def _attention(arch: Architecture) -> list[Row]:
    out: list[Row] = []
    if arch.is_mla:
        query = f"q {arch.q_lora_rank}" if arch.q_lora_rank else "q not compressed"
        out.append(
            (
                "latent (MLA)",
                f"kv {arch.kv_lora_rank} + rotary {arch.qk_rope_head_dim}, {query}; heads of "
                f"{arch.qk_nope_head_dim} + {arch.qk_rope_head_dim}, values {arch.v_head_dim}",
            )
        )
    windows = [arch.window(i) for i in range(arch.num_layers)]
    sliding = sum(window is not None for window in windows)
    if sliding:
        idle = "" if arch.shortest_window else ", not shorter than the context"
        out.append(
            ("window", f"{arch.sliding_window} tokens in {sliding} of {len(windows)} layers{idle}")
        )
    if arch.qk_norm:
        all_at_once = " over the whole width" if arch.qk_norm_scope == "all" else ""
        out.append(("norm of heads", f"q, k{all_at_once}"))
    if arch.attention_bias or arch.qkv_bias:
        out.append(("biases", "q, k, v, o" if arch.attention_bias else "q, k, v"))
    if arch.fused_qkv:
        out.append(("fused", "q, k, v" + ("; gate, up" if arch.fused_gate_up else "")))
    if arch.attention_sinks:
        out.append(("attention sinks", "one score per head"))
    if arch.query_pre_attn_scalar not in (None, arch.head_dim):
        out.append(("score scale", f"1 / sqrt({arch.query_pre_attn_scalar:g})"))
    caps = [
        f"{name} {cap:g}"
        for name, cap in (
            ("scores", arch.attn_logit_softcap),
            ("logits", arch.final_logit_softcap),
        )
        if cap is not None
    ]
    if caps:
        out.append(("soft caps", ", ".join(caps)))
    return out


def _positions(arch: Architecture) -> list[Row]:
    if arch.position_embedding != "rotary":
        return [("positions", f"{arch.position_embedding} embedding")]
    out: list[Row] = []
    if arch.rope_scaling is not None:
        scaling = dict(arch.rope_scaling)
        shown = ", ".join(
            f"{key} {value}"
            for key, value in scaling.items()
            if key != "rope_type" and not isinstance(value, (list, tuple, dict))
        )
        out.append(("rotary scaling", f"{scaling['rope_type']}: {shown}"))
    if arch.rope_local_theta is not None:
        out.append(("local rope theta", f"{arch.rope_local_theta:g} in sliding layers"))
    if arch.rotary_dim != arch.head_dim and not arch.is_mla:
        out.append(("partial rotary", f"{arch.rotary_dim} of {arch.head_dim} per head"))
    return out


def _blocks(arch: Architecture) -> list[Row]:
    out: list[Row] = []
    if arch.block_norms != "pre":
        where = "after attention and feed-forward"
        out.append(("norms", where if arch.block_norms == "post" else f"before and {where}"))
    if arch.norm_type != "rms":
        out.append(("kind of norm", "layer norm with bias"))
    if arch.norm_plus_one:
        out.append(("norm weight", "1 + w"))
    if arch.sub_norms:
        out.append(("inner norms", "before o and down"))
    if arch.scale_embedding:
        out.append(("embedding", f"times sqrt({arch.hidden_size})"))
    if arch.hidden_act != "silu" or not arch.mlp_gated or arch.swiglu_limit is not None:
        gate = "gated" if arch.mlp_gated else "two matrices, no gate"
        limit = "" if arch.swiglu_limit is None else f", clamped at {arch.swiglu_limit:g}"
        out.append(("activation", f"{arch.hidden_act}, {gate}{limit}"))
    if arch.mlp_bias:
        out.append(("feed-forward biases", "yes"))
    return out


def _experts(arch: Architecture) -> list[Row]:
    if not arch.num_experts:
        return []
    weights = "made to sum to one" if arch.norm_topk_prob else "as they are"
    scaled = "" if arch.routed_scaling_factor == 1 else f", times {arch.routed_scaling_factor:g}"
    selects = ", a bias selects" if arch.router_correction_bias else ""
    out = [
        (
            "experts",
            f"{arch.num_experts} of width {arch.moe_intermediate_size}, "
            f"{arch.num_experts_per_tok} active, in {len(arch.sparse_layers)} of "
            f"{arch.num_layers} layers",
        ),
        ("router", f"{arch.router_scoring}, weights {weights}{scaled}{selects}"),
    ]
    if arch.num_expert_groups > 1:
        judged = {"max": "their best expert", "top2": "their two best"}[arch.group_score]
        out.append(
            ("expert groups", f"{arch.num_expert_groups}, {arch.topk_groups} by {judged}"),
        )
    if arch.shared_expert_intermediate_size:
        count = f"{arch.num_shared_experts} of " if arch.num_shared_experts else ""
        gate = ", behind a gate" if arch.shared_expert_gate else ""
        out.append(
            ("shared experts", f"{count}width {arch.shared_expert_intermediate_size} in all{gate}")
        )
    return out
