"""The decoder: embedding, blocks of attention and feed-forward, norm, head.

Parameter names are the canonical ones (`model.layers.0.self_attn.q_proj.weight`), which are also
the names in a `.apr` file, so a state dict needs no translation. Every family's mathematics is that
of its file in transformers' `models/`, held to it within 2e-5 by the tests.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from apr.architecture import FULL, SLIDING, Architecture
from apr.model.attention import Angles, Attention
from apr.model.cache import CacheRows, KVCache, positions
from apr.model.mla import LatentAttention
from apr.model.mlp import MLP
from apr.model.moe import MoE
from apr.model.norms import make_norm
from apr.model.rotary import Rotary


class Block(nn.Module):
    """One layer: attention and feed-forward, added to the stream, with norms before or after."""

    def __init__(self, arch: Architecture, layer: int) -> None:
        super().__init__()
        kind, size = arch.block_norms, arch.hidden_size
        self.kind = SLIDING if arch.window(layer) is not None else FULL
        # The names are those of the families' files: "post_attention" comes before the
        # feed-forward in Llama's layout, and after attention where a layer has more norms.
        self.input_layernorm = make_norm(arch, size) if kind != "post" else None
        self.self_attn = LatentAttention(arch, layer) if arch.is_mla else Attention(arch, layer)
        self.post_attention_layernorm = make_norm(arch, size)
        self.pre_feedforward_layernorm = make_norm(arch, size) if kind == "both" else None
        self.mlp: nn.Module
        if layer in arch.sparse_layers:
            self.mlp = MoE(arch)
        else:
            width, fused = arch.intermediate_size, arch.fused_gate_up
            self.mlp = MLP(arch, width, bias=arch.mlp_bias, fused=fused)
        self.post_feedforward_layernorm = make_norm(arch, size) if kind != "pre" else None

    def forward(
        self, x: Tensor, tables: dict[str, Angles], cache: KVCache | CacheRows | None
    ) -> Tensor:
        """Apply the layer, `[batch, new, hidden]`."""
        y = x if self.input_layernorm is None else self.input_layernorm(x)
        y = self.self_attn(y, tables[self.kind], cache)
        result: Tensor
        if self.post_feedforward_layernorm is None:
            x = x + y
            result = x + self.mlp(self.post_attention_layernorm(x))
            return result
        x = x + self.post_attention_layernorm(y)
        y = x if self.pre_feedforward_layernorm is None else self.pre_feedforward_layernorm(x)
        result = x + self.post_feedforward_layernorm(self.mlp(y))
        return result


class Trunk(nn.Module):
    """Embedding, blocks and the last norm (`model.` in the names)."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(arch.vocab_size, arch.hidden_size)
        self.embed_positions = (
            nn.Embedding(arch.max_position_embeddings, arch.hidden_size)
            if arch.position_embedding == "learned"
            else None
        )
        self.layers = nn.ModuleList(Block(arch, i) for i in range(arch.num_layers))
        self.norm = make_norm(arch, arch.hidden_size)


class Decoder(nn.Module):
    """A decoder-only language model of the given architecture, weights uninitialised."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.architecture = arch
        self.model = Trunk(arch)
        self.lm_head = nn.Linear(arch.hidden_size, arch.vocab_size, bias=False)
        if arch.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        # Frequencies are computed, not loaded: never on the meta device.
        with torch.device("cpu"):
            self.rotary = Rotary(arch) if arch.position_embedding == "rotary" else None

    def hidden(self, ids: Tensor, cache: KVCache | CacheRows | None = None) -> Tensor:
        """States after the last norm, `[batch, new, hidden]`, for token ids `[batch, new]`.

        With a cache, `ids` continue the positions stored there; the cache grows by `new`. With
        `CacheRows` each row of `ids`, one token, continues its own.

        Raises:
            InferenceError: the model's context would be exceeded.
        """
        new = ids.shape[1]
        if cache is not None:
            cache.reserve(new)
        at = positions(cache, new, ids.device)
        x: Tensor = self.model.embed_tokens(ids)
        if self.architecture.scale_embedding:
            # The factor is rounded to the model's type, as the families' own code does.
            x = x * torch.tensor(self.architecture.hidden_size**0.5, dtype=x.dtype)
        if self.model.embed_positions is not None:
            x = x + self.model.embed_positions(at)
        tables: dict[str, Angles] = {FULL: None, SLIDING: None}
        if self.rotary is not None:
            # Rows have angles of their own, the same for all heads.
            tables.update(self.rotary.tables(at if at.ndim == 1 else at.unsqueeze(1), x.dtype))
        for block in self.model.layers:
            x = block(x, tables, cache)
        if cache is not None:
            cache.advance(new)
        result: Tensor = self.model.norm(x)
        return result

    def forward(self, ids: Tensor, cache: KVCache | CacheRows | None = None) -> Tensor:
        """Logits `[batch, new, vocab]` in the model's dtype; see `hidden`."""
        return self.logits(self.hidden(ids, cache))

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits `[..., vocab]` of states after the last norm; soft-capped in some families."""
        result: Tensor = self.lm_head(hidden)
        cap = self.architecture.final_logit_softcap
        return result if cap is None else cap * torch.tanh(result / cap)

    def canonical_state(self) -> dict[str, Tensor]:
        """The parameters under canonical names; a tied head is left out, as in the file."""
        state = dict(self.state_dict())
        if self.architecture.tie_word_embeddings:
            state.pop("lm_head.weight", None)
        return state


def initialize(model: Decoder, generator: torch.Generator | None = None) -> None:
    """Random weights: normal with `initializer_range`, the two projections that write to the
    residual stream divided by sqrt(2 * num_layers) (GPT-2, Radford et al. 2019), norms neutral.
    """
    arch = model.architecture
    std = arch.initializer_range
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(0.0 if arch.norm_plus_one else 1.0)
            elif name.endswith((".bias", "_bias")):
                parameter.zero_()
            else:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                scale = std / (2 * arch.num_layers) ** 0.5 if residual else std
                parameter.normal_(0.0, scale, generator=generator)
