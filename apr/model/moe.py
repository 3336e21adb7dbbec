"""Mixture of experts: a router that sends each token to a few feed-forwards.

One router for all families, its variations as fields of `Architecture`: Mixtral and gpt-oss
(softmax, weights of the chosen made to sum to one), Qwen (that as an option), DeepSeek-V2 (groups
by their best expert, arXiv 2405.04434), DeepSeek-V3 and GLM-4.7 (sigmoid, a bias that selects and
does not weigh, groups by their two best, arXiv 2412.19437). Reference: transformers' model files.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apr.architecture import Architecture
from apr.model.mlp import MLP


class Router(nn.Module):
    """Chooses experts and their weights."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.arch = arch
        self.weight = nn.Parameter(torch.empty(arch.num_experts, arch.hidden_size))
        self.bias = nn.Parameter(torch.zeros(arch.num_experts)) if arch.router_bias else None
        self.e_score_correction_bias = (
            nn.Parameter(torch.zeros(arch.num_experts), requires_grad=False)
            if arch.router_correction_bias
            else None
        )
        self.probabilities: Tensor | None = None  # of the last call while training
        self.chosen: Tensor | None = None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and experts, each `[tokens, num_experts_per_tok]`, of states `[tokens, hidden]`.

        Computed in float32 whatever the model's type: a rounded score would send tokens elsewhere.
        """
        arch = self.arch
        bias = None if self.bias is None else self.bias.float()
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.float(), self.weight.float(), bias)
        scores = logits.sigmoid() if arch.router_scoring == "sigmoid" else logits.softmax(dim=-1)
        choice = scores
        if self.e_score_correction_bias is not None:
            choice = choice + self.e_score_correction_bias.float()
        if arch.num_expert_groups > 1:
            choice = self._within_groups(choice)
        chosen = choice.topk(arch.num_experts_per_tok, dim=-1).indices
        weights = scores.gather(-1, chosen)
        if arch.norm_topk_prob:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        if self.training and torch.is_grad_enabled():
            self.probabilities, self.chosen = scores, chosen
        return (weights * arch.routed_scaling_factor).to(x.dtype), chosen

    def _within_groups(self, choice: Tensor) -> Tensor:
        """Scores with those outside the best groups out of reach, `[tokens, experts]`."""
        groups = choice.view(choice.shape[0], self.arch.num_expert_groups, -1)
        if self.arch.group_score == "top2":
            worth = groups.topk(min(2, groups.shape[-1]), dim=-1).values.sum(dim=-1)
        else:
            worth = groups.amax(dim=-1)
        best = worth.topk(self.arch.topk_groups, dim=-1).indices
        outside = torch.ones_like(worth, dtype=torch.bool).scatter(-1, best, False)
        return groups.masked_fill(outside.unsqueeze(-1), float("-inf")).flatten(1)


class MoE(nn.Module):
    """A layer's experts behind their router, and the shared ones beside them."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        assert arch.moe_intermediate_size is not None
        self.gate = Router(arch)
        self.experts = nn.ModuleList(
            MLP(arch, arch.moe_intermediate_size, bias=arch.expert_bias)
            for _ in range(arch.num_experts)
        )
        shared = arch.shared_expert_intermediate_size
        self.shared_expert = MLP(arch, shared, bias=arch.mlp_bias) if shared else None
        self.shared_expert_gate = (
            nn.Linear(arch.hidden_size, 1, bias=False) if arch.shared_expert_gate else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Feed forward, `[..., hidden]`: each token through its experts."""
        flat = x.flatten(0, -2)
        weights, chosen = self.gate(flat)
        # Sorted by expert, so that each expert gets its tokens in one piece; then put back in order
        # and added up, in the same order on every device (an index_add on CUDA has none).
        flat_choice = chosen.flatten()
        order = flat_choice.argsort(stable=True)
        counts = flat_choice.bincount(minlength=len(self.experts)).tolist()
        parts = torch.split(flat[order // chosen.shape[-1]], counts)
        done = [
            expert(part) for expert, part in zip(self.experts, parts, strict=True) if part.shape[0]
        ]
        visits = torch.cat(done)[order.argsort()].view(*chosen.shape, -1)
        out: Tensor = (visits * weights.unsqueeze(-1)).sum(dim=1)
        if self.shared_expert is not None:
            shared = self.shared_expert(flat)
            if self.shared_expert_gate is not None:
                shared = shared * self.shared_expert_gate(flat).sigmoid()
            out = out + shared
        return out.view_as(x)
