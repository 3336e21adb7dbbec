"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), both pairings, whole or in part.

Hugging Face stores q and k so that element i pairs with i + half (`interleaved` False); GGUF's
`llama` and DeepSeek's rotary parts pair neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from apr import rope
from apr.architecture import Architecture

FULL, SLIDING = "full_attention", "sliding_attention"


class Rotary:
    """The angles of an architecture's layers.

    No module: `.to(bfloat16)` must never round the frequencies.
    """

    def __init__(self, arch: Architecture) -> None:
        """Work out the frequencies, radians per token, float32, of full and of sliding layers."""
        assert arch.rope_theta is not None
        self.full = inverse_frequencies(arch)
        self.local = (
            _frequencies(arch.rope_local_theta, arch.rotary_dim) if arch.rope_local_theta else None
        )

    def tables(self, positions: Tensor, dtype: torch.dtype) -> dict[str, tuple[Tensor, Tensor]]:
        """By kind of layer, cosines and sines, each `[positions, rotary_dim]`, in `dtype`."""
        if self.full.device != positions.device:
            self.full = self.full.to(positions.device)
            self.local = None if self.local is None else self.local.to(positions.device)
        full = cos_sin(self.full, positions, dtype)
        local = full if self.local is None else cos_sin(self.local, positions, dtype)
        return {FULL: full, SLIDING: local}


def inverse_frequencies(architecture: Architecture) -> Tensor:
    """Angular frequency of each pair, `[rotary_dim / 2]`, radians per token, float32; scaled."""
    theta = architecture.rope_theta
    assert theta is not None
    frequencies = _frequencies(theta, architecture.rotary_dim)
    divisors = rope.divisors(architecture.rope_scaling, theta, architecture.rotary_dim)
    # The quotient of float32 numbers, as in transformers: a large position magnifies a difference.
    return frequencies if divisors is None else frequencies / torch.tensor(divisors)


def _frequencies(theta: float, width: int) -> Tensor:
    exponents = torch.arange(0, width, 2, dtype=torch.int64).float()
    out: Tensor = 1.0 / (theta ** (exponents / width))
    return out


def cos_sin(
    frequencies: Tensor, positions: Tensor, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each `[..., positions, rotary_dim]`.

    Angles are computed in float32 whatever the model's dtype: in bfloat16 positions above 256
    would collide.
    """
    angles = positions.float().unsqueeze(-1) * frequencies
    doubled = torch.cat((angles, angles), dim=-1)
    return doubled.cos().to(dtype), doubled.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """Turn the first elements of each head of `x` `[batch, heads, positions, head_dim]`, as many as
    the angles `[positions, rotary_dim]` have; the rest stays.

    `interleaved`: neighbours are a pair, in the result too.
    """
    width = cos.shape[-1]
    rest = x[..., width:]
    x = x[..., :width]
    half = width // 2
    if interleaved:
        cos, sin = cos[..., :half], sin[..., :half]
        first, second = x[..., 0::2], x[..., 1::2]
        pairs = (first * cos - second * sin, second * cos + first * sin)
        out = torch.stack(pairs, dim=-1).flatten(-2)
    else:
        turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
        out = x * cos + turned * sin
    return out if rest.shape[-1] == 0 else torch.cat((out, rest), dim=-1)
