"""What a model costs: FLOPs, bytes of weights and cache, and the peaks of known hardware.

One place, so that MFU and MBU everywhere mean the same. FLOPs count a multiply-add as two and
leave out norms, activations and the embedding look-up (Kaplan et al. 2020; PaLM appendix B).
"""

from __future__ import annotations

from apr import families
from apr.architecture import Architecture

# Dense bf16 peak (FLOP/s) and memory bandwidth (bytes/s), from the makers' data sheets; looked up
# by a part of the name that the driver reports. Unknown hardware has no MFU, never a guessed one.
PEAKS: dict[str, tuple[float, float]] = {
    "A100-SXM4-40GB": (312e12, 1.555e12),
    "A100": (312e12, 2.04e12),
    "H200": (989e12, 4.8e12),
    "H100 PCIe": (756e12, 2.0e12),
    "H100": (989e12, 3.35e12),
    "B200": (2250e12, 8.0e12),
}


def peaks(device_name: str) -> tuple[float, float] | None:
    """Peak FLOP/s (dense bf16) and bytes/s of a device by its reported name; None if unknown."""
    for key, value in PEAKS.items():
        if key in device_name:
            return value
    return None


def forward_flops_per_token(architecture: Architecture, context: int) -> float:
    """FLOPs of one token's forward pass when it attends to `context` positions."""
    matrices = families.num_parameters(architecture, embedding=False, active=True)
    head = architecture.vocab_size * architecture.hidden_size
    seen = sum(
        min(context, architecture.window(layer) or context)
        for layer in range(architecture.num_layers)
    )
    attention = seen * (architecture.q_size + architecture.value_size)
    return 2.0 * (matrices + head) + 2.0 * attention


def train_flops_per_token(architecture: Architecture, seq_len: int) -> float:
    """FLOPs of forward and backward for one token of a causal sequence of `seq_len` tokens.

    Backward counts twice the forward; causal attention sees seq_len / 2 positions on average.
    """
    return 3.0 * forward_flops_per_token(architecture, seq_len // 2)


def cache_bytes_per_token(architecture: Architecture, element_bytes: int) -> int:
    """Bytes of KV cache that one token takes (for MLA the latent and the rotary key alone)."""
    if architecture.is_mla:
        return architecture.num_layers * architecture.latent_size * element_bytes
    return 2 * architecture.num_layers * architecture.kv_size * element_bytes
