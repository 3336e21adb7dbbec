"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434), with the latent as its cache.

A token's keys and values are made from one latent of `kv_lora_rank` and one rotary key that all
heads share. Without a cache they are expanded; with one, only the latents are stored, and the
expansion is absorbed: a query is carried into the latent's space, so each head attends over the
latents themselves (1 kv head of width kv_lora_rank + qk_rope_head_dim).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from apr import rope
from apr.architecture import Architecture
from apr.families.latent import EPS as LATENT_EPS
from apr.model.attention import Angles, attend
from apr.model.cache import CacheRows, KVCache
from apr.model.norms import RMSNorm
from apr.model.rotary import rotate


class LatentAttention(nn.Module):
    """Causal attention through a latent."""

    def __init__(self, arch: Architecture, layer: int) -> None:
        super().__init__()
        assert arch.kv_lora_rank and arch.v_head_dim
        assert arch.qk_nope_head_dim and arch.qk_rope_head_dim
        self.layer = layer
        self.heads, self.rank = arch.num_heads, arch.kv_lora_rank
        self.nope, self.rope_dim = arch.qk_nope_head_dim, arch.qk_rope_head_dim
        self.v_dim = arch.v_head_dim
        self.scale = arch.attention_scale * rope.softmax_mscale(arch.rope_scaling)
        self.interleaved = arch.rope_interleave
        hidden, bias = arch.hidden_size, arch.attention_bias
        self.q_proj = self.q_a_proj = self.q_a_layernorm = self.q_b_proj = None
        if arch.q_lora_rank is None:
            self.q_proj = nn.Linear(hidden, arch.q_size, bias=False)
        else:
            self.q_a_proj = nn.Linear(hidden, arch.q_lora_rank, bias=bias)
            self.q_a_layernorm = RMSNorm(arch.q_lora_rank, LATENT_EPS)
            self.q_b_proj = nn.Linear(arch.q_lora_rank, arch.q_size, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(hidden, arch.latent_size, bias=bias)
        self.kv_a_layernorm = RMSNorm(arch.kv_lora_rank, LATENT_EPS)
        self.kv_b_proj = nn.Linear(arch.kv_lora_rank, arch.kv_b_size, bias=False)
        self.o_proj = nn.Linear(arch.value_size, hidden, bias=bias)

    def forward(self, x: Tensor, angles: Angles, cache: KVCache | CacheRows | None) -> Tensor:
        """Attend, `[batch, new, hidden]`; with a cache, also to the positions stored there."""
        batch, new, _ = x.shape
        assert angles is not None
        q = self._query(x).view(batch, new, self.heads, -1).transpose(1, 2)
        q_nope, q_rope = q[..., : self.nope], q[..., self.nope :]
        q_rope = rotate(q_rope, *angles, interleaved=self.interleaved)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split((self.rank, self.rope_dim), dim=-1)
        latent = self.kv_a_layernorm(latent).unsqueeze(1)  # [batch, 1, new, rank]
        k_rope = rotate(k_rope.unsqueeze(1), *angles, interleaved=self.interleaved)
        if cache is None:
            out = self._expanded(q_nope, q_rope, latent, k_rope)
        else:
            out = self._absorbed(q_nope, q_rope, torch.cat((latent, k_rope), dim=-1), cache)
        out = out.transpose(1, 2).reshape(batch, new, -1)
        result: Tensor = self.o_proj(out)
        return result

    def _query(self, x: Tensor) -> Tensor:
        if self.q_proj is not None:
            plain: Tensor = self.q_proj(x)
            return plain
        assert self.q_a_proj is not None and self.q_a_layernorm is not None
        assert self.q_b_proj is not None
        low_rank: Tensor = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        return low_rank

    def _expanded(self, q_nope: Tensor, q_rope: Tensor, latent: Tensor, k_rope: Tensor) -> Tensor:
        batch, _, new, _ = latent.shape
        kv = self.kv_b_proj(latent.squeeze(1)).view(batch, new, self.heads, -1).transpose(1, 2)
        k_nope, v = kv.split((self.nope, self.v_dim), dim=-1)
        k = torch.cat((k_nope, k_rope.expand(-1, self.heads, -1, -1)), dim=-1)
        return attend(torch.cat((q_nope, q_rope), dim=-1), k, v, 0, scale=self.scale)

    def _absorbed(
        self, q_nope: Tensor, q_rope: Tensor, latent: Tensor, cache: KVCache | CacheRows
    ) -> Tensor:
        weight: Tensor = self.kv_b_proj.weight.view(self.heads, self.nope + self.v_dim, self.rank)
        to_k, to_v = weight[:, : self.nope], weight[:, self.nope :]
        q = torch.cat((q_nope @ to_k, q_rope), dim=-1)  # [batch, heads, new, rank + rope]
        if isinstance(cache, CacheRows):
            rows = zip(torch.split(q, 1), torch.split(latent, 1), cache.rows, strict=True)
            mixed = torch.cat([self._attend(*row) for row in rows])
        else:
            mixed = self._attend(q, latent, cache)
        out: Tensor = mixed @ to_v.transpose(1, 2)
        return out

    def _attend(self, q: Tensor, latent: Tensor, cache: KVCache) -> Tensor:
        past = cache.length
        stored = cache.append_latent(self.layer, latent)
        return attend(q, stored, stored[..., : self.rank], past, scale=self.scale)
