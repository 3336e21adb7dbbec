"""Causal attention: grouped queries, windows, norms of heads, soft caps, sinks; and the kernel.

The mathematics is that of transformers' model files; `attend` takes torch's fused kernel wherever
it can compute the scores, and plain matrix products where it cannot (soft caps, sinks).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apr.architecture import Architecture
from apr.model.cache import CacheRows, KVCache
from apr.model.norms import RMSNorm
from apr.model.rotary import rotate

Angles = tuple[Tensor, Tensor] | None  # cosines and sines, `[new, rotary_dim]` each


class Attention(nn.Module):
    """Causal grouped-query attention."""

    def __init__(self, arch: Architecture, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = arch.head_dim
        self.sizes = (arch.q_size, arch.kv_size, arch.kv_size)
        self.window = arch.window(layer)
        self.scale = arch.attention_scale
        self.softcap = arch.attn_logit_softcap
        self.norm_all = arch.qk_norm_scope == "all"
        self.interleaved = arch.rope_interleave
        bias = arch.attention_bias or arch.qkv_bias
        self.qkv_proj = self.q_proj = self.k_proj = self.v_proj = None
        if arch.fused_qkv:
            self.qkv_proj = nn.Linear(arch.hidden_size, arch.qkv_size, bias=bias)
        else:
            self.q_proj = nn.Linear(arch.hidden_size, arch.q_size, bias=bias)
            self.k_proj = nn.Linear(arch.hidden_size, arch.kv_size, bias=bias)
            self.v_proj = nn.Linear(arch.hidden_size, arch.kv_size, bias=bias)
        self.o_proj = nn.Linear(arch.q_size, arch.hidden_size, bias=arch.attention_bias)
        self.q_norm = self.k_norm = None
        if arch.qk_norm:
            eps, plus = arch.rms_norm_eps, arch.norm_plus_one
            self.q_norm = RMSNorm(arch.q_norm_size, eps, plus_one=plus)
            self.k_norm = RMSNorm(arch.k_norm_size, eps, plus_one=plus)
        self.sinks = nn.Parameter(torch.empty(arch.num_heads)) if arch.attention_sinks else None
        self.attn_sub_norm = RMSNorm(arch.q_size, arch.rms_norm_eps) if arch.sub_norms else None

    def forward(self, x: Tensor, angles: Angles, cache: KVCache | CacheRows | None) -> Tensor:
        """Attend, `[batch, new, hidden]`; with a cache, also to the positions stored there."""
        batch, new, _ = x.shape
        heads = (batch, new, -1, self.head_dim)
        q, k, v = self._project(x)
        if self.q_norm is not None and self.k_norm is not None and self.norm_all:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = q.view(heads), k.view(heads), v.view(heads).transpose(1, 2)
        if self.q_norm is not None and self.k_norm is not None and not self.norm_all:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = q.transpose(1, 2), k.transpose(1, 2)
        if angles is not None:
            q = rotate(q, *angles, interleaved=self.interleaved)
            k = rotate(k, *angles, interleaved=self.interleaved)
        if isinstance(cache, CacheRows):
            parts = (torch.split(x, 1) for x in (q, k, v))
            rows = zip(*parts, cache.rows, strict=True)
            out = torch.cat([self._attend(*row) for row in rows])
        else:
            out = self._attend(q, k, v, cache)
        out = out.transpose(1, 2).reshape(batch, new, -1)
        if self.attn_sub_norm is not None:
            out = self.attn_sub_norm(out)
        result: Tensor = self.o_proj(out)
        return result

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, cache: KVCache | None) -> Tensor:
        past = 0
        if cache is not None:
            past = cache.length
            k, v = cache.append(self.layer, k, v)
        return attend(
            q, k, v, past, self.window, scale=self.scale, softcap=self.softcap, sinks=self.sinks
        )

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.qkv_proj is not None:
            q, k, v = self.qkv_proj(x).split(self.sizes, dim=-1)
            return q, k, v
        assert self.q_proj is not None and self.k_proj is not None and self.v_proj is not None
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    past: int,
    window: int | None = None,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Causal attention of the last positions over all, `[batch, heads, new, v_width]`.

    Args:
        q: `[batch, heads, new, width]`.
        k: `[batch, kv_heads, past + new, width]`.
        v: `[batch, kv_heads, past + new, v_width]`.
        past: positions before the first query.
        window: how many positions each sees, itself included; None for all.
        scale: of the scores.
        softcap: scores become softcap * tanh(score / softcap).
        sinks: a further score per head, `[heads]`, that takes part in the softmax alone.
    """
    new = q.shape[2]
    mask = None
    if window is not None and past + new > window:
        # Keys before the first query's window are seen by no query.
        hidden = max(0, past - window + 1)
        k, v, past = k[:, :, hidden:], v[:, :, hidden:], past - hidden
        if new > 1:
            mask = _visible(past, new, window, q.device)
    elif past and new > 1:
        # SDPA aligns is_causal at the top left; after a past it must be the bottom right.
        mask = _visible(past, new, None, q.device)
    if softcap is None and sinks is None:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=new > 1 and mask is None, scale=scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )  # fmt: skip
    if mask is None and new > 1:
        mask = _visible(past, new, None, q.device)
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = (q @ k.transpose(-1, -2)) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    if sinks is not None:
        column = sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat((scores, column), dim=-1)
    weights = scores.float().softmax(dim=-1).to(v.dtype)
    return weights[..., : v.shape[2]] @ v


def _visible(past: int, new: int, window: int | None, device: torch.device) -> Tensor:
    """Which of `past + new` keys each of the last `new` positions sees, `[new, past + new]`."""
    mask = torch.ones(new, past + new, dtype=torch.bool, device=device).tril(past)
    return mask if window is None else mask.triu(past - window + 1)
