"""The norms of the families: RMS norm, with weight or 1 + weight, and layer norm with bias."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from apr.architecture import Architecture


class RMSNorm(nn.Module):
    """Root mean square norm (Zhang and Sennrich 2019), computed in float32 as Llama does.

    `plus_one` is Gemma's: the factor is 1 + weight, and the product is taken before rounding to the
    input's type.
    """

    def __init__(self, size: int, eps: float, *, plus_one: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size) if plus_one else torch.ones(size))
        self.eps = eps
        self.plus_one = plus_one

    def forward(self, x: Tensor) -> Tensor:
        """Norm over the last dimension, `[..., size]`."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        if self.plus_one:
            return (wide * (1.0 + self.weight.float())).to(x.dtype)
        return self.weight * wide.to(x.dtype)


def make_norm(arch: Architecture, size: int) -> nn.Module:
    """The norm that this architecture's blocks have, over `size` elements."""
    if arch.norm_type == "layer":
        return nn.LayerNorm(size, eps=arch.rms_norm_eps)
    return RMSNorm(size, arch.rms_norm_eps, plus_one=arch.norm_plus_one)
