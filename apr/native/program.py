"""From an architecture to the operations of a pass, in the order that the library walks through.

Purpose: the one place that says which models the kernels compute and how. Promise: what is not
listed in `lacking` computes what apr/model/decoder.py computes; the kinds of operations and their
fields are those of native/src/runtime.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from apr import rope
from apr.architecture import Architecture
from apr.families.latent import EPS as LATENT_EPS
from apr.native.model import OP, packed_bytes
from apr.tensors import Tensor

EMBED, PREPARE, MATMUL, GATED, NORM, STORE, ATTEND, ACT, SOFTCAP = range(9)
EXPERTS, ADD, ABSORB, LATENT, EXPAND = range(9, 14)
ACTS = {
    "silu": 0,
    "gelu": 1,
    "gelu_new": 2,
    "gelu_pytorch_tanh": 2,
    "relu": 3,
    "relu2": 4,
}
_CLAMPED = 5
_RMS = 1
LOGITS = -1
X = 0


def lacking(architecture: Architecture, tensors: Mapping[str, Tensor]) -> str:
    """What of this model the kernels do not compute yet, or ""."""
    if architecture.hidden_act not in ACTS:
        return f"no kernel for hidden_act {architecture.hidden_act}"
    for name, tensor in tensors.items():
        if len(tensor.shape) == 2 and packed_bytes(tensor.dtype, *tensor.shape) is None:
            return f"no kernel for {tensor.dtype.name} ({name})"
    return ""


@dataclass
class Part:
    """Rows of a stored weight: a fused matrix is several.

    `exact`: read row by row in a floating type, decoded to float32 where it is stored in blocks or
    (routers) must not meet rounded numbers.
    """

    tensor: Tensor
    first: int
    rows: int
    exact: bool = False


@dataclass
class Program:
    """Operations over buffers; weights and vectors are numbered through the two functions."""

    architecture: Architecture
    weight: Callable[[Part], int]
    vector: Callable[[npt.NDArray[Any]], int]
    tensors: Mapping[str, Tensor]
    ops: list[tuple[int, int, list[int], list[float]]] = field(default_factory=list)
    buffers: dict[tuple[str, int], int] = field(default_factory=dict)

    def build(self) -> tuple[npt.NDArray[Any], list[int]]:
        """The operations, and the widths of the buffers."""
        arch = self.architecture
        assert self._buffer("stream", arch.hidden_size) == X
        embedding = self._whole("model.embed_tokens.weight")
        positions = (
            self._whole("model.embed_positions.weight")
            if arch.position_embedding == "learned"
            else -1
        )
        factor = arch.hidden_size**0.5 if arch.scale_embedding else 0.0
        self._op(EMBED, [X, embedding, positions], [factor])
        sparse = set(arch.sparse_layers)
        for layer in range(arch.num_layers):
            if arch.is_mla:
                self._latent_attention(layer)
            else:
                self._attention(layer)
            self._feed_forward(f"model.layers.{layer}.", sparse=layer in sparse)
        self._prepare(X, arch.hidden_size, "model.norm", last=True)
        head = embedding if arch.tie_word_embeddings else self._whole("lm_head.weight")
        self._op(MATMUL, [head, LOGITS, 0, -1, 0])
        if arch.final_logit_softcap:
            self._op(SOFTCAP, [LOGITS, arch.vocab_size], [arch.final_logit_softcap])
        ops = np.zeros(len(self.ops), dtype=OP)
        for number, (kind, sync, a, f) in enumerate(self.ops):
            ops[number]["kind"], ops[number]["sync"] = kind, sync
            ops[number]["a"][: len(a)], ops[number]["f"][: len(f)] = a, f
        return ops, [width for _, width in self.buffers]

    def _buffer(self, name: str, width: int) -> int:
        """The number of a buffer, `width` float32 a token."""
        return self.buffers.setdefault((name, width), len(self.buffers))

    def _attention(self, layer: int) -> None:
        arch, prefix = self.architecture, f"model.layers.{layer}."
        own = prefix + "self_attn."
        before = prefix + "input_layernorm" if arch.block_norms != "post" else None
        self._prepare(X, arch.hidden_size, before)
        sizes = {"q": arch.q_size, "k": arch.kv_size, "v": arch.kv_size}
        q, k, v = (self._buffer(name, width) for name, width in sizes.items())
        start = 0
        for target, (name, rows) in zip((q, k, v), sizes.items(), strict=True):
            fused = own + "qkv_proj" if arch.fused_qkv else own + name + "_proj"
            first = start if arch.fused_qkv else 0
            self._matmul(fused, target, first, rows, sync=target == v)
            start += rows
        q_norm = k_norm = -1
        if arch.qk_norm and arch.qk_norm_scope == "all":
            for buffer, name, size in ((q, "q_norm", arch.q_size), (k, "k_norm", arch.kv_size)):
                scale = self._norm_vector(own + name)
                fields = [buffer, scale, -1, size, _RMS, buffer, 0, 1]
                self._op(NORM, fields, [arch.rms_norm_eps])
        elif arch.qk_norm:
            q_norm, k_norm = self._norm_vector(own + "q_norm"), self._norm_vector(own + "k_norm")
        window = arch.window(layer)
        angles = 0
        if arch.position_embedding == "rotary" and arch.rope_theta is not None:
            angles = 1 if window is None else 2
        self._op(
            STORE,
            [q, k, v, layer, q_norm, k_norm, angles, int(arch.rope_interleave), arch.num_heads,
             _RMS if q_norm >= 0 else 0, arch.rotary_dim // 2],
            [arch.rms_norm_eps],
        )  # fmt: skip
        sinks = self.vector(self.tensors[own + "sinks"].float32()) if arch.attention_sinks else -1
        self._op(
            ATTEND,
            [q, attended := self._buffer("attended", arch.q_size), layer, window or 0, sinks,
             arch.num_heads],
            [arch.attention_scale, arch.attn_logit_softcap or 0.0],
        )  # fmt: skip
        self._prepare(attended, arch.q_size, own + "attn_sub_norm" if arch.sub_norms else None)
        after = prefix + "post_attention_layernorm" if arch.block_norms != "pre" else None
        self._to_stream(own + "o_proj", after)

    def _latent_attention(self, layer: int) -> None:
        """MLA with absorbed projections, as apr/model/mla.py's with a cache."""
        arch, prefix = self.architecture, f"model.layers.{layer}."
        own = prefix + "self_attn."
        assert arch.kv_lora_rank and arch.qk_nope_head_dim and arch.qk_rope_head_dim
        rank, nope, turning = arch.kv_lora_rank, arch.qk_nope_head_dim, arch.qk_rope_head_dim
        value = arch.value_size // arch.num_heads
        self._prepare(X, arch.hidden_size, prefix + "input_layernorm")
        latent, q = self._buffer("latent", arch.latent_size), self._buffer("q", arch.q_size)
        self._matmul(own + "kv_a_proj_with_mqa", latent, 0, arch.latent_size, sync=False)
        if arch.q_lora_rank is None:
            self._matmul(own + "q_proj", q, 0, arch.q_size)
        else:
            low = self._buffer("low", arch.q_lora_rank)
            self._matmul(own + "q_a_proj", low, 0, arch.q_lora_rank)
            scale = self._norm_vector(own + "q_a_layernorm")
            fields = [low, scale, -1, arch.q_lora_rank, _RMS, 0, 0, 0, 0]
            self._op(PREPARE, fields, [LATENT_EPS], sync=False)
            self._matmul(own + "q_b_proj", q, 0, arch.q_size)
        half, pairs = turning // 2, int(arch.rope_interleave)
        scale = self._norm_vector(own + "kv_a_layernorm")
        self._op(LATENT, [latent, layer, scale, rank, 1, pairs, half], [LATENT_EPS], sync=False)
        kv_b = self.weight(Part(self.tensors[own + "kv_b_proj.weight"], 0, arch.kv_b_size, True))
        absorbed = self._buffer("absorbed", arch.num_heads * (rank + turning))
        fields = [q, absorbed, kv_b, arch.num_heads, nope, turning, value, rank, 1, pairs, half]
        self._op(ABSORB, fields)
        mixed = self._buffer("mixed", arch.num_heads * rank)
        factor = arch.attention_scale * rope.softmax_mscale(arch.rope_scaling)
        self._op(ATTEND, [absorbed, mixed, layer, 0, -1, arch.num_heads], [factor, 0.0])
        attended = self._buffer("attended", arch.value_size)
        self._op(EXPAND, [mixed, attended, kv_b, arch.num_heads, nope, value, rank])
        self._prepare(attended, arch.value_size, None)
        self._to_stream(own + "o_proj", None)

    def _feed_forward(self, prefix: str, *, sparse: bool) -> None:
        arch = self.architecture
        norms = {"pre": "post_attention_layernorm", "both": "pre_feedforward_layernorm"}
        before = norms.get(arch.block_norms)
        norm = prefix + before if before else None
        after = prefix + "post_feedforward_layernorm" if arch.block_norms != "pre" else None
        if sparse:
            self._experts(prefix + "mlp.", norm, after)
            return
        self._prepare(X, arch.hidden_size, norm)
        self._dense(prefix + "mlp.", arch.intermediate_size, fused=arch.fused_gate_up)
        self._to_stream(prefix + "mlp.down_proj", after)

    def _dense(self, own: str, wide: int, *, fused: bool) -> None:
        """A feed-forward of what is prepared, up to its last product, which is prepared."""
        arch = self.architecture
        inner = self._buffer("inner", wide)
        if arch.mlp_gated:
            names = ("gate_up_proj",) * 2 if fused else ("gate_proj", "up_proj")
            firsts = (0, wide if fused else 0)
            gate, up = (
                self.weight(Part(self.tensors[own + name + ".weight"], first, wide))
                for name, first in zip(names, firsts, strict=True)
            )
            biases = [
                self._bias(own + name, first, wide)
                for name, first in zip(names, firsts, strict=True)
            ]
            fields = [gate, up, inner, self._act(), *biases, self._buffer("side", wide)]
            self._op(GATED, fields, [arch.swiglu_limit or 0.0])
        else:
            self._matmul(own + "up_proj", inner, 0, wide)
            self._op(ACT, [inner, inner, self._act(), wide])
        self._prepare(inner, wide, own + "ffn_sub_norm" if arch.sub_norms else None)

    def _experts(self, own: str, norm: str | None, after: str | None) -> None:
        """Router and experts, the shared ones beside them, as apr/model/moe.py's."""
        arch, hidden = self.architecture, self.architecture.hidden_size
        assert arch.moe_intermediate_size is not None
        wide, chosen = arch.moe_intermediate_size, arch.num_experts_per_tok
        self._prepare(X, hidden, norm)
        # Float32, however it is stored: a rounded score would send tokens to other experts.
        scores = self.tensors[own + "gate.weight"]
        router = self._buffer("router", arch.num_experts)
        number = self.weight(Part(scores, 0, arch.num_experts, True))
        self._op(MATMUL, [number, router, 0, self._bias(own + "gate", 0, arch.num_experts), 0])
        first = first_bias = -1
        for expert in range(arch.num_experts):
            for name, rows in (("gate_proj", wide), ("up_proj", wide), ("down_proj", hidden)):
                path = f"{own}experts.{expert}.{name}"
                number = self.weight(Part(self.tensors[path + ".weight"], 0, rows))
                first = number if first < 0 else first
                bias = self._bias(path, 0, rows) if arch.expert_bias else -1
                first_bias = bias if first_bias < 0 else first_bias
        kind, scale, shift = (0, -1, -1) if norm is None else self._norm(norm)
        correction = self.tensors.get(own + "gate.e_score_correction_bias")
        out = self._buffer("experts", hidden)
        self._op(
            EXPERTS,
            [X, out, router, first, scale, shift, kind, self._act(), wide, arch.num_experts, chosen,
             first_bias, int(arch.router_scoring == "sigmoid"),
             -1 if correction is None else self.vector(correction.float32()),
             arch.num_expert_groups, arch.topk_groups, int(arch.group_score == "top2"),
             int(arch.norm_topk_prob), self._buffer("gates", chosen * wide),
             self._buffer("ups", chosen * wide), self._buffer("results", chosen * hidden), hidden],
            [arch.rms_norm_eps, arch.routed_scaling_factor, arch.swiglu_limit or 0.0],
        )  # fmt: skip
        if arch.shared_expert_intermediate_size:
            shared, gate = own + "shared_expert.", -1
            self._prepare(X, hidden, norm)
            if arch.shared_expert_gate:
                gate = self._buffer("shared gate", 1)
                self._matmul(own + "shared_expert_gate", gate, 0, 1, sync=False)
            self._dense(shared, arch.shared_expert_intermediate_size, fused=False)
            side = self._buffer("shared", hidden)
            self._matmul(shared + "down_proj", side, 0, hidden)
            self._op(ADD, [side, out, hidden, gate])
        if after is None:
            self._op(ADD, [out, X, hidden, -1])
            return
        kind, scale, shift = self._norm(after)
        self._op(NORM, [out, scale, shift, hidden, kind, X, 1, 1], [arch.rms_norm_eps])

    def _act(self) -> int:
        arch = self.architecture
        return ACTS[arch.hidden_act] if arch.swiglu_limit is None else _CLAMPED

    def _to_stream(self, name: str, norm: str | None) -> None:
        """A product added to the stream, through a norm where the family has one."""
        arch = self.architecture
        if norm is None:
            self._matmul(name, X, 0, arch.hidden_size, add=True)
            return
        side = self._buffer("side stream", arch.hidden_size)
        self._matmul(name, side, 0, arch.hidden_size)
        kind, scale, shift = self._norm(norm)
        self._op(NORM, [side, scale, shift, arch.hidden_size, kind, X, 1, 1], [arch.rms_norm_eps])

    def _prepare(self, buffer: int, width: int, norm: str | None, *, last: bool = False) -> None:
        kind, scale, shift = (0, -1, -1)
        if norm is not None:
            # Norms inside a block (`sub_norms`) are RMS norms in every family that has them.
            kind, scale, shift = self._norm(norm)
        fields = [buffer, scale, shift, width, kind, 0, 0, 0, int(last)]
        self._op(PREPARE, fields, [self.architecture.rms_norm_eps], sync=False)

    def _matmul(
        self, name: str, target: int, first: int, rows: int, *, add: bool = False, sync: bool = True
    ) -> None:
        number = self.weight(Part(self.tensors[name + ".weight"], first, rows))
        bias = self._bias(name, first, rows)
        self._op(MATMUL, [number, target, 0, bias, int(add)], sync=sync)

    def _norm(self, name: str) -> tuple[int, int, int]:
        """Kind, weight and bias of a norm over the stream."""
        layer = self.architecture.norm_type == "layer"
        shift = self.vector(self.tensors[name + ".bias"].float32()) if layer else -1
        return 2 if layer else _RMS, self._norm_vector(name), shift

    def _norm_vector(self, name: str) -> int:
        values = self.tensors[name + ".weight"].float32()
        return self.vector(values + np.float32(1) if self.architecture.norm_plus_one else values)

    def _bias(self, name: str, first: int, rows: int) -> int:
        tensor = self.tensors.get(name + ".bias")
        return -1 if tensor is None else self.vector(tensor.float32()[first : first + rows])

    def _whole(self, name: str) -> int:
        tensor = self.tensors[name]
        return self.weight(Part(tensor, 0, tensor.shape[0]))

    def _op(
        self, kind: int, a: list[int], f: list[float] | None = None, *, sync: bool = True
    ) -> None:
        self.ops.append((kind, int(sync), a, f or []))
