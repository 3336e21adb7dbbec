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
        activations=tokens * _saved_bytes_per_token(architecture, ELEMENT_BYTES[dtype]),
        logits=tokens * architecture.vocab_size * 3 * 4,
    )


def _saved_bytes_per_token(architecture: Architecture, element: int) -> int:
    """Bytes that forward keeps for backward, for each token, all layers."""
    h, ffn = architecture.hidden_size, architecture.intermediate_size
    q, kv = architecture.q_size, architecture.kv_size
    # A norm keeps its float32 input, the scaled one, and the result that the next matrices read.
    norm = h * (4 + 4 + element)
    # Rotated q and k, v, the attention's result and its float32 log-sum per head.
    attention = (2 * q + 2 * kv) * element + 4 * architecture.num_heads
    # gate, silu(gate), up, their product.
    feed_forward = 4 * ffn * element
    return architecture.num_layers * (2 * norm + attention + feed_forward) + norm


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
