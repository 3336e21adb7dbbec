"""What a training run will take: memory by its parts, and time where the speed is known.

Estimates for `apr pretrain --plan`, before anything is allocated. The activations are counted from
what the decoder's operators keep for the backward pass (tests/data/test_estimate.py holds the count
to what torch really saves); allocator overhead and temporary buffers come on top.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from apr import families
from apr.architecture import Architecture
from apr.errors import UsageError
from apr.model.costs import train_flops_per_token

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a training step, by part."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(asdict(self).values())

    def to_json(self) -> dict[str, int]:
        """The parts and their sum."""
        return {**asdict(self), "total": self.total}


def estimate_memory(
    architecture: Architecture, batch_size: int, seq_len: int, dtype: str = "float32"
) -> Memory:
    """Memory of one step of AdamW on `[batch_size, seq_len]` tokens, bytes.

    Weights, gradients and both moments are float32 (16 bytes a parameter); `dtype` is that of the
    activations, under autocast, which keeps a copy of the weights in it. Attention by a fused
    kernel: no matrix of seq_len^2 is kept. `logits` are the head's output, the loss' float32
    log-probabilities, and their gradient, which are alive at once when backward begins.

    Raises:
        UsageError: `dtype` is unknown.
    """
    if dtype not in ELEMENT_BYTES:
        raise UsageError("--dtype", f"{dtype!r} is unknown", f"write {', '.join(ELEMENT_BYTES)}")
    parameters = families.num_parameters(architecture)
    tokens = batch_size * seq_len
    return Memory(
        weights=(4 if dtype == "float32" else 4 + ELEMENT_BYTES[dtype]) * parameters,
        gradients=4 * parameters,
        optimizer=8 * parameters,
        activations=tokens * _saved_bytes_per_token(architecture, seq_len, ELEMENT_BYTES[dtype]),
        logits=tokens * architecture.vocab_size * 3 * 4,
    )


def _saved_bytes_per_token(architecture: Architecture, seq_len: int, element: int) -> int:
    """Bytes that forward keeps for backward, for each token, all layers."""
    a = architecture
    h = a.hidden_size
    # A norm keeps its float32 input, the scaled one, and the result that the next matrices read.
    # A layer norm keeps no scaled one. A norm after the matrices gives what is only added.
    norm = h * (4 + element + (4 if a.norm_type == "rms" else 0))
    norms = 4 * norm - 2 * h * element if a.block_norms == "both" else 2 * norm
    experts = len(a.sparse_layers) * _experts_bytes(a, element)
    dense = len(a.dense_layers) * _mlp_elements(a, a.intermediate_size) * element
    return a.num_layers * (norms + _attention_bytes(a, seq_len, element)) + dense + experts + norm


def _attention_bytes(a: Architecture, seq_len: int, element: int) -> int:
    # Rotated q and k, v, the attention's result and its float32 log-sum per head.
    out = (a.q_size + 2 * a.kv_size + a.q_size) * element + 4 * a.num_heads
    if a.is_mla:  # keys and values of all heads; both latents, through norms of their own
        latents = (a.q_lora_rank or 0) + (a.kv_lora_rank or 0)
        out = (2 * a.q_size + 2 * a.value_size) * element + latents * (8 + element)
        out += 4 * a.num_heads
        if a.v_head_dim != a.head_dim:  # no fused kernel for values of another width
            out += a.num_heads * seq_len * element
    if a.fused_qkv:  # v is a part of the one result, which stays whole for it
        out += (a.q_size + a.kv_size) * element
    if a.sub_norms:
        out += a.q_size * 8
    if a.qk_norm:
        out += (a.q_size + a.kv_size) * (4 + element)
    if a.attention_sinks or a.attn_logit_softcap is not None:
        # Not fused: a row of scores for each head, as softmax gives it and as tanh does; k and v
        # repeated for every query head.
        rows = 4 + (element if element < 4 else 0) + (element if a.attn_logit_softcap else 0)
        out += a.num_heads * seq_len * rows + 2 * (a.q_size - a.kv_size) * element
    return out


def _mlp_elements(a: Architecture, width: int) -> int:
    # gate, silu(gate), up, their product; without a gate, what goes in and comes out of it.
    # Clamps keep what they clamp.
    kept = 7 if a.swiglu_limit is not None else 4 if a.mlp_gated else 2
    return (kept + (2 if a.sub_norms else 0)) * width


def _experts_bytes(a: Architecture, element: int) -> int:
    # Each visited expert has its own copy of the token, and what it gives is kept to be weighed.
    visited = a.num_experts_per_tok
    width = a.moe_intermediate_size or 0
    out = visited * (2 * a.hidden_size + _mlp_elements(a, width)) * element
    out += _mlp_elements(a, a.shared_expert_intermediate_size or 0) * element
    return out + a.num_experts * 4


def estimate_seconds(
    architecture: Architecture,
    planned_tokens: int,
    seq_len: int,
    flops_per_second: float | None,
) -> float | None:
    """Seconds of training at a speed that was measured on this device; None if it is not known."""
    if not flops_per_second:
        return None
    return planned_tokens * train_flops_per_token(architecture, seq_len) / flops_per_second
