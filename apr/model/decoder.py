"""The decoder: embedding, blocks of attention and feed-forward, norm, head.

Parameter names are exactly Hugging Face's (`model.layers.0.self_attn.q_proj.weight`), which are
also the names in a `.apr` file, so a state dict needs no translation. The mathematics is
that of transformers' `models/llama`, `qwen2`, `qwen3` and `mistral`, held to it within 2e-5 by the
tests.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apr.architecture import Architecture
from apr.model.cache import KVCache
from apr.model.rotary import cos_sin, inverse_frequencies, rotate


class RMSNorm(nn.Module):
    """Root mean square norm (Zhang and Sennrich 2019), computed in float32 as Llama does."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Norm over the last dimension, `[..., size]`."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class Attention(nn.Module):
    """Causal grouped-query attention by torch's scaled_dot_product_attention."""

    def __init__(self, arch: Architecture, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = arch.head_dim
        self.window = arch.window(layer)
        bias = arch.attention_bias or arch.qkv_bias
        self.q_proj = nn.Linear(arch.hidden_size, arch.q_size, bias=bias)
        self.k_proj = nn.Linear(arch.hidden_size, arch.kv_size, bias=bias)
        self.v_proj = nn.Linear(arch.hidden_size, arch.kv_size, bias=bias)
        self.o_proj = nn.Linear(arch.q_size, arch.hidden_size, bias=arch.attention_bias)
        self.q_norm = RMSNorm(arch.head_dim, arch.rms_norm_eps) if arch.qk_norm else None
        self.k_norm = RMSNorm(arch.head_dim, arch.rms_norm_eps) if arch.qk_norm else None
        self.groups = arch.num_heads // arch.num_kv_heads

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None) -> Tensor:
        """Attend, `[batch, new, hidden]`; with a cache, also to the positions stored there."""
        batch, new, _ = x.shape
        heads = (batch, new, -1, self.head_dim)
        q = self.q_proj(x).view(heads)
        k = self.k_proj(x).view(heads)
        v = self.v_proj(x).view(heads).transpose(1, 2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q = rotate(q.transpose(1, 2), cos, sin)
        k = rotate(k.transpose(1, 2), cos, sin)
        past = 0
        if cache is not None:
            past = cache.length
            k, v = cache.append(self.layer, k, v)
        mask = None
        causal = new > 1
        if self.window is not None and past + new > self.window:
            # Keys before the first query's window are seen by no query.
            hidden = max(0, past - self.window + 1)
            k, v, past = k[:, :, hidden:], v[:, :, hidden:], past - hidden
            if new > 1:
                mask = _visible(past, new, self.window, x.device)
        elif past and new > 1:
            # SDPA aligns is_causal at the top left; after a past it must be the bottom right.
            mask = _visible(past, new, None, x.device)
        causal = causal and mask is None
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=self.groups > 1
        )
        out = out.transpose(1, 2).reshape(batch, new, -1)
        result: Tensor = self.o_proj(out)
        return result


def _visible(past: int, new: int, window: int | None, device: torch.device) -> Tensor:
    """Which of `past + new` keys each of the last `new` positions sees, `[new, past + new]`."""
    mask = torch.ones(new, past + new, dtype=torch.bool, device=device).tril(past)
    return mask if window is None else mask.triu(past - window + 1)


class MLP(nn.Module):
    """SwiGLU feed-forward (Shazeer 2020)."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        bias = arch.mlp_bias
        self.gate_proj = nn.Linear(arch.hidden_size, arch.intermediate_size, bias=bias)
        self.up_proj = nn.Linear(arch.hidden_size, arch.intermediate_size, bias=bias)
        self.down_proj = nn.Linear(arch.intermediate_size, arch.hidden_size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Feed forward, `[..., hidden]`."""
        result: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return result


class Block(nn.Module):
    """One layer: attention and feed-forward, each behind a norm and added to the stream."""

    def __init__(self, arch: Architecture, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(arch.hidden_size, arch.rms_norm_eps)
        self.self_attn = Attention(arch, layer)
        self.post_attention_layernorm = RMSNorm(arch.hidden_size, arch.rms_norm_eps)
        self.mlp = MLP(arch)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None) -> Tensor:
        """Apply the layer, `[batch, new, hidden]`."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache)
        result: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return result


class Trunk(nn.Module):
    """Embedding, blocks and the last norm (`model.` in the names)."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(arch.vocab_size, arch.hidden_size)
        self.layers = nn.ModuleList(Block(arch, i) for i in range(arch.num_layers))
        self.norm = RMSNorm(arch.hidden_size, arch.rms_norm_eps)


class Decoder(nn.Module):
    """A decoder-only language model of the given architecture, weights uninitialised."""

    frequencies: Tensor

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.architecture = arch
        self.model = Trunk(arch)
        self.lm_head = nn.Linear(arch.hidden_size, arch.vocab_size, bias=False)
        if arch.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        # A plain attribute, not a buffer: `.to(bfloat16)` must not round the frequencies.
        self.frequencies = inverse_frequencies(arch)

    def hidden(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """States after the last norm, `[batch, new, hidden]`, for token ids `[batch, new]`.

        With a cache, `ids` continue the positions stored there; the cache grows by `new`.

        Raises:
            InferenceError: the model's context would be exceeded.
        """
        new = ids.shape[1]
        past = 0
        if cache is not None:
            cache.reserve(new)
            past = cache.length
        if self.frequencies.device != ids.device:
            self.frequencies = self.frequencies.to(ids.device)
        positions = torch.arange(past, past + new, device=ids.device)
        x: Tensor = self.model.embed_tokens(ids)
        cos, sin = (t.to(x.dtype) for t in cos_sin(self.frequencies, positions))
        for block in self.model.layers:
            x = block(x, cos, sin, cache)
        if cache is not None:
            cache.advance(new)
        result: Tensor = self.model.norm(x)
        return result

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits `[batch, new, vocab]` in the model's dtype; see `hidden`."""
        result: Tensor = self.lm_head(self.hidden(ids, cache))
        return result

    def canonical_state(self) -> dict[str, Tensor]:
        """The parameters under canonical names; a tied head is left out, as in the file."""
        state = dict(self.state_dict())
        if self.architecture.tie_word_embeddings:
            state.pop("lm_head.weight", None)
        return state


def initialize(model: Decoder, generator: torch.Generator | None = None) -> None:
    """Random weights: normal with `initializer_range`, the two projections that write to the
    residual stream divided by sqrt(2 * num_layers) (GPT-2, Radford et al. 2019), norms one.
    """
    arch = model.architecture
    std = arch.initializer_range
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
            elif name.endswith(".bias"):
                parameter.zero_()
            else:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                scale = std / (2 * arch.num_layers) ** 0.5 if residual else std
                parameter.normal_(0.0, scale, generator=generator)
