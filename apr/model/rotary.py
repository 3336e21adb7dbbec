"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864): every kind of scaling, both
pairings, whole heads or a part of each.

Hugging Face stores q and k so that element i pairs with i + half (`interleaved` False); GGUF's
`llama` and DeepSeek's rotary parts pair neighbours. Reference: transformers'
`modeling_rope_utils.py`, followed to the order of its float32 operations, because a large position
magnifies a difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from apr import rope
from apr.architecture import FULL, SLIDING, Architecture

_CPU = torch.device("cpu")  # frequencies are computed there, whatever the default device is


class Rotary:
    """The angles of an architecture's layers.

    No module: `.to(bfloat16)` must never round the frequencies.

    The kinds in `rope.BY_LENGTH` follow the largest position of a call, as transformers' do: keys
    that a cache holds keep the angles of the call that stored them (see `stale`). There is no
    memory of earlier calls; transformers' `dynamic` keeps the base of the longest sequence so far
    until one fits into the context again.
    """

    def __init__(self, arch: Architecture) -> None:
        """Work out the frequencies, radians per token, float32, of full and of sliding layers."""
        self.theta, self.width = arch.rope_theta, arch.rotary_dim
        self.scaling, self.context = arch.rope_scaling, arch.max_position_embeddings
        self.factor = rope.attention_factor(arch.rope_scaling, arch.max_position_embeddings)
        # Phi3ForCausalLM alone throws its cache away where the other list of factors sets in.
        self.forgets = arch.family == "phi3" and self.kind == "longrope"
        self.full = self.local = self.long = None
        if self.theta is not None:
            self.full = inverse_frequencies(arch)
            if self.kind == "longrope":
                assert self.scaling is not None
                self.long = _stretched(self.theta, self.width, self.scaling["long_factor"])
        if arch.rope_local_theta:
            self.local = _frequencies(arch.rope_local_theta, self.width)

    @property
    def kind(self) -> str:
        """The kind of scaling, "default" where there is none."""
        return "default" if self.scaling is None else str(self.scaling["rope_type"])

    def stale(self, past: int, total: int) -> bool:
        """Whether a cache of `past` positions must be computed anew before it grows to `total`,
        because transformers does: phi3's, when longrope's other list of factors sets in.
        """
        if not self.forgets or self.scaling is None:
            return False
        return 0 < past <= int(self.scaling[rope.POSITIONS]) < total

    def tables(self, positions: Tensor, dtype: torch.dtype) -> dict[str, tuple[Tensor, Tensor]]:
        """By kind of layer, cosines and sines of positions `[..., positions]`, each
        `[..., positions, rotary_dim]`, in `dtype`; none without a rotary embedding.
        """
        if self.full is None:
            return {}
        if self.full.device != positions.device:
            for name in ("full", "local", "long"):
                held = getattr(self, name)
                setattr(self, name, None if held is None else held.to(positions.device))
        full = cos_sin(self._at_length(positions), positions, dtype, self.factor)
        local = full if self.local is None else cos_sin(self.local, positions, dtype)
        return {FULL: full, SLIDING: local}

    def _at_length(self, positions: Tensor) -> Tensor:
        """The frequencies for sequences that end with the largest of these positions, each its own,
        `[rotary_dim / 2]` or `[..., 1, rotary_dim / 2]`.
        """
        assert self.full is not None
        if self.scaling is None or self.kind not in rope.BY_LENGTH:
            return self.full
        # A tensor, never a number: nobody has to wait for the device.
        length = positions.amax(-1, keepdim=True).unsqueeze(-1) + 1
        if self.long is not None:
            return torch.where(length > self.scaling[rope.POSITIONS], self.long, self.full)
        assert self.theta is not None
        factor = self.scaling["factor"]
        seen = torch.clamp(length, min=self.context)
        growth = (factor * seen / self.context) - (factor - 1)
        base = self.theta * growth ** (self.width / (self.width - 2))
        grown = _frequencies(base, self.width, positions.device)
        return torch.where(length > self.context, grown, self.full)


def inverse_frequencies(architecture: Architecture) -> Tensor:
    """Angular frequency of each pair, `[rotary_dim / 2]`, radians per token, float32; scaled. For
    the kinds in `rope.BY_LENGTH`, those within the original context.
    """
    theta, width, scaling = (
        architecture.rope_theta,
        architecture.rotary_dim,
        architecture.rope_scaling,
    )
    assert theta is not None
    kind = None if scaling is None else scaling["rope_type"]
    if scaling is not None and kind == "longrope":
        return _stretched(theta, width, scaling["short_factor"])
    if scaling is not None and kind == "yarn":
        return _yarn(theta, width, scaling)
    frequencies = _frequencies(theta, width)
    divisors = rope.divisors(scaling, theta, width)
    if divisors is None:
        return frequencies
    return frequencies / torch.tensor(divisors, device=_CPU)


def _powers(theta: float | Tensor, width: int, device: torch.device = _CPU) -> Tensor:
    """The base to the power 2 i / width for each pair i, float32."""
    exponents = torch.arange(0, width, 2, dtype=torch.int64, device=device).float() / width
    out: Tensor = theta**exponents
    return out


def _frequencies(theta: float | Tensor, width: int, device: torch.device = _CPU) -> Tensor:
    out: Tensor = 1.0 / _powers(theta, width, device)
    return out


def _stretched(theta: float, width: int, factors: list[float]) -> Tensor:
    by_pair = torch.tensor(factors, dtype=torch.float32, device=_CPU)
    out: Tensor = 1.0 / (by_pair * _powers(theta, width))
    return out


def _yarn(theta: float, width: int, scaling: Mapping[str, Any]) -> Tensor:
    """Slow pairs are interpolated, fast ones kept, between them a ramp (arXiv 2309.00071)."""
    low, high = rope.yarn_range(scaling, theta, width)
    powers = _powers(theta, width)
    kept, slowed = 1.0 / powers, 1.0 / (scaling["factor"] * powers)
    ramp = torch.clamp((torch.arange(width // 2, device=_CPU).float() - low) / (high - low), 0, 1)
    keep = 1 - ramp
    out: Tensor = slowed * (1 - keep) + kept * keep
    return out


def cos_sin(
    frequencies: Tensor,
    positions: Tensor,
    dtype: torch.dtype = torch.float32,
    factor: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Cosines and sines times `factor`, each `[..., positions, rotary_dim]`.

    Angles are computed in float32 whatever the model's dtype: in bfloat16 positions above 256
    would collide.
    """
    angles = positions.float().unsqueeze(-1) * frequencies
    doubled = torch.cat((angles, angles), dim=-1)
    if doubled.device.type == "cpu":
        # In float32 torch's cosines are off by a last bit in some processes and not in others (its
        # threads' first call), and the same file gave two perplexities. Rounded from float64 they
        # are always the same.
        doubled = doubled.double()
    return (doubled.cos() * factor).to(dtype), (doubled.sin() * factor).to(dtype)


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
