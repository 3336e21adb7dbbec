"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), pairs in halves.

Hugging Face stores q and k so that element i pairs with i + head_dim / 2; GGUF's `llama` pairs
neighbours instead, and the exporter reorders rows for it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from apr import rope
from apr.architecture import Architecture


def inverse_frequencies(architecture: Architecture) -> Tensor:
    """Angular frequency of each pair, `[head_dim / 2]`, radians per token, float32; scaled."""
    exponents = torch.arange(0, architecture.head_dim, 2, dtype=torch.int64).float()
    frequencies: Tensor = 1.0 / (architecture.rope_theta ** (exponents / architecture.head_dim))
    divisors = rope.divisors(
        architecture.rope_scaling, architecture.rope_theta, architecture.head_dim
    )
    # The quotient of float32 numbers, as in transformers: a large position magnifies a difference.
    return frequencies if divisors is None else frequencies / torch.tensor(divisors)


def cos_sin(frequencies: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each `[..., positions, head_dim]`, float32.

    Angles are computed in float32 whatever the model's dtype: in bfloat16 positions above 256
    would collide.
    """
    angles = positions.float().unsqueeze(-1) * frequencies
    doubled = torch.cat((angles, angles), dim=-1)
    return doubled.cos(), doubled.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn `x` `[batch, heads, positions, head_dim]` by the angles `[positions, head_dim]`."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin
