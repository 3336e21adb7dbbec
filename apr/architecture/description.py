"""`Architecture`: what a model is, in canonical names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from apr import contracts

FULL, SLIDING = "full_attention", "sliding_attention"  # what `layer_types` calls the two kinds


@dataclass(frozen=True, slots=True)
class Architecture:
    """A decoder-only transformer, in the names of Hugging Face's configs.

    Sizes are elements, `max_position_embeddings` is tokens. `family` is the lower-case name of the
    file in `apr/families/`. What a family never has stays at its default; which fields it may vary
    and which it always sets is in its contract.

    Blocks:
        block_norms: "pre" (Llama), "post" (norms after attention and feed-forward alone), "both".
        norm_type: "rms" or "layer" (with bias). norm_plus_one: the factor is 1 + weight.
        scale_embedding: embeddings are multiplied by sqrt(hidden_size).
        final_logit_softcap, attn_logit_softcap: cap * tanh(x / cap) on logits, on scores.

    Attention:
        attention_bias: on q, k, v and o; qkv_bias: on q, k and v alone. fused_qkv: one matrix.
        qk_norm: an RMS norm of queries and keys, each head ("head") or all at once ("all"), by
        `qk_norm_scope`. attention_sinks: one learned score per head that takes part in the softmax.
        sliding_window: how many tokens a position sees, itself included, or None for all; it holds
        in every layer, or where `layer_types` says `SLIDING` and not `FULL`.
        query_pre_attn_scalar: scores are scaled by its inverse square root, None means head_dim.
        sub_norms: an RMS norm before o_proj and one before down_proj.

    Positions:
        position_embedding: "rotary" or "learned". rope_theta: None without a rotary embedding.
        rope_scaling: the object of a Hugging Face config with `rope_type` and the parameters of
        that kind (apr/rope.py), or None for the default kind. rope_local_theta: base in the sliding
        layers, never scaled; None: the same as elsewhere. partial_rotary_factor: the share of each
        head that turns. rope_interleave: pairs are neighbours, not halves, in canonical order too.

    Latent attention (MLA; DeepSeek-V2, arXiv 2405.04434), where kv_lora_rank is not None:
        q_lora_rank may be None (a plain q_proj); head_dim is qk_nope_head_dim + qk_rope_head_dim.

    Feed-forward:
        hidden_act by transformers' name; mlp_gated: False is two matrices. fused_gate_up: one.
        swiglu_limit: gpt-oss's clamped SwiGLU.

    Experts, where num_experts > 0 (in the layers that `mlp_layer_types` calls "sparse"; None: all):
        moe_intermediate_size: width of each. router_scoring: "softmax" or "sigmoid" of the logits;
        norm_topk_prob: the chosen weights are made to sum to one; routed_scaling_factor multiplies
        them. router_correction_bias: a bias that selects and does not weigh. router_bias: a bias of
        the router's own. num_expert_groups, topk_groups: experts are chosen within the best
        groups, judged by `group_score`, "max" or "top2" (the sum of the two best).
        num_shared_experts and shared_expert_intermediate_size (of all together): experts that
        every token visits; shared_expert_gate: behind a sigmoid of their own. expert_bias: their
        matrices have biases.
    """

    family: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float | None = None
    tie_word_embeddings: bool = False
    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    rope_scaling: Mapping[str, Any] | None = None
    initializer_range: float = 0.02
    qkv_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    layer_types: tuple[str, ...] | None = None
    qk_norm_scope: str = "head"
    block_norms: str = "pre"
    norm_type: str = "rms"
    norm_plus_one: bool = False
    scale_embedding: bool = False
    final_logit_softcap: float | None = None
    attn_logit_softcap: float | None = None
    fused_qkv: bool = False
    attention_sinks: bool = False
    query_pre_attn_scalar: float | None = None
    sub_norms: bool = False
    position_embedding: str = "rotary"
    rope_local_theta: float | None = None
    partial_rotary_factor: float = 1.0
    rope_interleave: bool = False
    q_lora_rank: int | None = None
    kv_lora_rank: int | None = None
    qk_nope_head_dim: int | None = None
    qk_rope_head_dim: int | None = None
    v_head_dim: int | None = None
    mlp_gated: bool = True
    fused_gate_up: bool = False
    swiglu_limit: float | None = None
    num_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int | None = None
    mlp_layer_types: tuple[str, ...] | None = None
    router_scoring: str = "softmax"
    norm_topk_prob: bool = False
    routed_scaling_factor: float = 1.0
    router_correction_bias: bool = False
    router_bias: bool = False
    num_expert_groups: int = 1
    topk_groups: int = 1
    group_score: str = "max"
    num_shared_experts: int = 0
    shared_expert_intermediate_size: int | None = None
    shared_expert_gate: bool = False
    expert_bias: bool = False
    router_aux_loss_coef: float = 0.0

    @property
    def q_size(self) -> int:
        """Width of all query heads together."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key heads together (and of all values, without MLA)."""
        return self.num_kv_heads * self.head_dim

    @property
    def qkv_size(self) -> int:
        """Width of queries, keys and values together."""
        return self.q_size + 2 * self.kv_size

    @property
    def value_size(self) -> int:
        """Width of what attention gives to o_proj."""
        return self.num_heads * (self.v_head_dim or self.head_dim)

    @property
    def q_norm_size(self) -> int:
        """Elements that the norm of the queries spans."""
        return self.q_size if self.qk_norm_scope == "all" else self.head_dim

    @property
    def k_norm_size(self) -> int:
        """Elements that the norm of the keys spans."""
        return self.kv_size if self.qk_norm_scope == "all" else self.head_dim

    @property
    def is_mla(self) -> bool:
        """Whether attention goes through a latent."""
        return self.kv_lora_rank is not None

    @property
    def plain_q(self) -> bool:
        """Whether an MLA model has one q_proj instead of the low-rank pair."""
        return self.is_mla and self.q_lora_rank is None

    @property
    def biased_q_a(self) -> bool:
        """Whether the first matrix of the low-rank pair has a bias."""
        return self.attention_bias and not self.plain_q

    @property
    def latent_size(self) -> int:
        """What MLA caches for a token and layer: the latent and the shared rotary key."""
        return (self.kv_lora_rank or 0) + (self.qk_rope_head_dim or 0)

    @property
    def kv_b_size(self) -> int:
        """Rows of MLA's kv_b_proj: keys without position and values of all heads."""
        return self.num_heads * ((self.qk_nope_head_dim or 0) + (self.v_head_dim or 0))

    @property
    def rotary_dim(self) -> int:
        """How many elements of each head turn."""
        if self.qk_rope_head_dim is not None:
            return self.qk_rope_head_dim
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def attention_scale(self) -> float:
        """What scores are multiplied by (rotary kinds may add a factor of their own for MLA)."""
        return float((self.query_pre_attn_scalar or self.head_dim) ** -0.5)

    @property
    def gate_up_size(self) -> int:
        """Rows of gate and up together."""
        return 2 * self.intermediate_size

    @property
    def all_layers(self) -> range:
        """The layers' numbers."""
        return range(self.num_layers)

    @property
    def sparse_layers(self) -> list[int]:
        """Layers with experts."""
        if not self.num_experts:
            return []
        kinds = self.mlp_layer_types or ("sparse",) * self.num_layers
        return [i for i, kind in enumerate(kinds) if kind == "sparse"]

    @property
    def dense_layers(self) -> list[int]:
        """Layers with a feed-forward of `intermediate_size`."""
        return sorted(set(range(self.num_layers)) - set(self.sparse_layers))

    def window(self, layer: int) -> int | None:
        """How many tokens a position of this layer sees, itself included; None for all."""
        if self.layer_types is not None and self.layer_types[layer] != SLIDING:
            return None
        return self.sliding_window

    @property
    def shortest_window(self) -> int | None:
        """The window, if it hides something: if it is shorter than the context; else None."""
        window = self.sliding_window
        used = any(self.window(layer) is not None for layer in range(self.num_layers))
        return window if window and used and window < self.max_position_embeddings else None

    def to_metadata(self) -> dict[str, Any]:
        """The canonical metadata keys and values, `family` as `architecture`."""
        contract = contracts.load(f"families/{self.family}")
        sizes, varies = contracts.load("metadata")["sizes"], contract.get("varies", [])
        out: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            # What is as in most models, and always so in this family, would only be noise.
            if value is None or (
                value == field.default and field.name not in sizes and field.name not in varies
            ):
                continue
            if isinstance(value, tuple):
                value = list(value)  # as JSON gives it back
            out["architecture" if field.name == "family" else field.name] = value
        out["hf_architecture"] = contract["hf_architecture"]
        out["hf_model_type"] = contract["hf_model_type"]
        if self.position_embedding == "rotary":
            out["rope_type"] = 2  # halves, as Hugging Face stores q and k
        return out
