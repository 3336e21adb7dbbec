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

from apr.architecture import Architecture
from apr.native.model import OP, packed_bytes
from apr.tensors import Tensor

EMBED, PREPARE, MATMUL, GATED, NORM, STORE, ATTEND, ACT, SOFTCAP = range(9)
_ACTS = {
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
X, Q, K, V, H, SIDE, ATTENDED, Y = range(8)


def lacking(architecture: Architecture, tensors: Mapping[str, Tensor]) -> str:
    """What of this model the kernels do not compute yet, or ""."""
    if architecture.is_mla:
        return "no kernel for latent attention (MLA)"
    if architecture.num_experts:
        return "no kernel for experts"
    if architecture.hidden_act not in _ACTS:
        return f"no kernel for hidden_act {architecture.hidden_act}"
    for name, tensor in tensors.items():
        if len(tensor.shape) == 2 and packed_bytes(tensor.dtype, *tensor.shape) is None:
            return f"no kernel for {tensor.dtype.name} ({name})"
    return ""


@dataclass
class Part:
    """Rows of a stored weight: a fused matrix is several."""

    tensor: Tensor
    first: int
    rows: int


@dataclass
class Program:
    """Operations over buffers; weights and vectors are numbered through the two functions."""

    architecture: Architecture
    weight: Callable[[Part], int]
    vector: Callable[[npt.NDArray[Any]], int]
    tensors: Mapping[str, Tensor]
    ops: list[tuple[int, int, list[int], list[float]]] = field(default_factory=list)

    def build(self) -> tuple[npt.NDArray[Any], list[int]]:
        """The operations, and the widths of the buffers."""
        arch = self.architecture
        embedding = self._whole("model.embed_tokens.weight")
        positions = (
            self._whole("model.embed_positions.weight")
            if arch.position_embedding == "learned"
            else -1
        )
        factor = arch.hidden_size**0.5 if arch.scale_embedding else 0.0
        self._op(EMBED, [X, embedding, positions], [factor])
        for layer in range(arch.num_layers):
            self._attention(layer)
            self._feed_forward(f"model.layers.{layer}.")
        self._prepare(X, arch.hidden_size, "model.norm", last=True)
        head = embedding if arch.tie_word_embeddings else self._whole("lm_head.weight")
        self._op(MATMUL, [head, LOGITS, 0, -1, 0])
        if arch.final_logit_softcap:
            self._op(SOFTCAP, [LOGITS, arch.vocab_size], [arch.final_logit_softcap])
        ops = np.zeros(len(self.ops), dtype=OP)
        for number, (kind, sync, a, f) in enumerate(self.ops):
            ops[number]["kind"], ops[number]["sync"] = kind, sync
            ops[number]["a"][: len(a)], ops[number]["f"][: len(f)] = a, f
        wide = arch.intermediate_size
        return ops, [
            arch.hidden_size, arch.q_size, arch.kv_size, arch.kv_size, wide,
            wide if arch.mlp_gated else 1, arch.q_size, arch.hidden_size,
        ]  # fmt: skip

    def _attention(self, layer: int) -> None:
        arch, prefix = self.architecture, f"model.layers.{layer}."
        own = prefix + "self_attn."
        before = prefix + "input_layernorm" if arch.block_norms != "post" else None
        self._prepare(X, arch.hidden_size, before)
        sizes = {"q_proj": arch.q_size, "k_proj": arch.kv_size, "v_proj": arch.kv_size}
        start = 0
        for target, (name, rows) in zip((Q, K, V), sizes.items(), strict=True):
            fused = own + "qkv_proj" if arch.fused_qkv else own + name
            first = start if arch.fused_qkv else 0
            self._matmul(fused, target, first, rows, sync=target == V)
            start += rows
        q_norm = k_norm = -1
        if arch.qk_norm and arch.qk_norm_scope == "all":
            for buffer, name, size in ((Q, "q_norm", arch.q_size), (K, "k_norm", arch.kv_size)):
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
            [Q, K, V, layer, q_norm, k_norm, angles, int(arch.rope_interleave), arch.num_heads,
             _RMS if q_norm >= 0 else 0, arch.rotary_dim // 2],
            [arch.rms_norm_eps],
        )  # fmt: skip
        sinks = self.vector(self.tensors[own + "sinks"].float32()) if arch.attention_sinks else -1
        self._op(
            ATTEND,
            [Q, ATTENDED, layer, window or 0, sinks, arch.num_heads],
            [arch.attention_scale, arch.attn_logit_softcap or 0.0],
        )
        self._prepare(ATTENDED, arch.q_size, own + "attn_sub_norm" if arch.sub_norms else None)
        after = prefix + "post_attention_layernorm" if arch.block_norms != "pre" else None
        self._to_stream(own + "o_proj", after)

    def _feed_forward(self, prefix: str) -> None:
        arch, own = self.architecture, prefix + "mlp."
        norms = {"pre": "post_attention_layernorm", "both": "pre_feedforward_layernorm"}
        before = norms.get(arch.block_norms)
        self._prepare(X, arch.hidden_size, prefix + before if before else None)
        wide = arch.intermediate_size
        if arch.mlp_gated:
            names = ("gate_up_proj",) * 2 if arch.fused_gate_up else ("gate_proj", "up_proj")
            firsts = (0, wide if arch.fused_gate_up else 0)
            gate, up = (
                self.weight(Part(self.tensors[own + name + ".weight"], first, wide))
                for name, first in zip(names, firsts, strict=True)
            )
            biases = [
                self._bias(own + name, first, wide)
                for name, first in zip(names, firsts, strict=True)
            ]
            act = _ACTS[arch.hidden_act] if arch.swiglu_limit is None else _CLAMPED
            self._op(GATED, [gate, up, H, act, *biases, SIDE], [arch.swiglu_limit or 0.0])
        else:
            self._matmul(own + "up_proj", H, 0, wide)
            self._op(ACT, [H, H, _ACTS[arch.hidden_act], wide])
        self._prepare(H, wide, own + "ffn_sub_norm" if arch.sub_norms else None)
        after = prefix + "post_feedforward_layernorm" if arch.block_norms != "pre" else None
        self._to_stream(own + "down_proj", after)

    def _to_stream(self, name: str, norm: str | None) -> None:
        """A product added to the stream, through a norm where the family has one."""
        arch = self.architecture
        if norm is None:
            self._matmul(name, X, 0, arch.hidden_size, add=True)
            return
        self._matmul(name, Y, 0, arch.hidden_size)
        kind, scale, shift = self._norm(norm)
        self._op(
            NORM, [Y, scale, shift, arch.hidden_size, kind, X, 1, 1], [arch.rms_norm_eps]
        )

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
