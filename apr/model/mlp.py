"""Feed-forward: gated (SwiGLU and its kin; Shazeer 2020, arXiv 2002.05202) or two matrices."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apr.architecture import Architecture
from apr.model.norms import RMSNorm

# By transformers' names (its `activations.py`). gelu_new is the same approximation by tanh.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
}
_ALPHA = 1.702  # gpt-oss's sigmoid approximation of GeLU; no config varies it


def clamped_swiglu(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    """gpt-oss's gate: both sides clamped, one added to the linear one."""
    gate = gate.clamp(max=limit)
    up = up.clamp(min=-limit, max=limit)
    return (up + 1) * gate * torch.sigmoid(gate * _ALPHA)


class MLP(nn.Module):
    """One feed-forward of a given width: a dense layer's, an expert's or the shared experts'."""

    def __init__(self, arch: Architecture, width: int, *, bias: bool, fused: bool = False) -> None:
        super().__init__()
        hidden = arch.hidden_size
        self.act = ACTIVATIONS[arch.hidden_act]
        self.limit = arch.swiglu_limit
        self.gate_up_proj = self.gate_proj = self.up_proj = None
        if fused:
            self.gate_up_proj = nn.Linear(hidden, 2 * width, bias=bias)
        else:
            self.gate_proj = nn.Linear(hidden, width, bias=bias) if arch.mlp_gated else None
            self.up_proj = nn.Linear(hidden, width, bias=bias)
        self.down_proj = nn.Linear(width, hidden, bias=bias)
        self.ffn_sub_norm = RMSNorm(width, arch.rms_norm_eps) if arch.sub_norms else None

    def forward(self, x: Tensor) -> Tensor:
        """Feed forward, `[..., hidden]`."""
        if self.gate_up_proj is not None:
            gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
            y = self.act(gate) * up
        elif self.gate_proj is None:
            assert self.up_proj is not None
            y = self.act(self.up_proj(x))
        else:
            assert self.up_proj is not None
            gate, up = self.gate_proj(x), self.up_proj(x)
            y = self.act(gate) * up if self.limit is None else clamped_swiglu(gate, up, self.limit)
        if self.ffn_sub_norm is not None:
            y = self.ffn_sub_norm(y)
        result: Tensor = self.down_proj(y)
        return result
