"""The balance of experts in training: what keeps it, and how it stands.

Two ways keep it. Families with an auxiliary loss (Switch Transformer, Fedus et al. 2021, arXiv
2101.03961, equations 4 to 6; GShard, arXiv 2006.16668) add a small multiple of it to the
training loss. Families with a correction bias (DeepSeek-V3; Wang et al. 2024, arXiv 2408.15664)
have no such loss: after each step the bias of an expert with fewer tokens than the mean rises by a
fixed rate, of one with more it falls. Counts are those of a whole step, all micro-batches together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from apr.model.decoder import Decoder
from apr.model.moe import MoE, Router

BIAS_RATE = 1e-3  # gamma of arXiv 2408.15664, table 3: larger oscillates, smaller lags


@dataclass(frozen=True, slots=True)
class Balance:
    """How the tokens of a step were shared out.

    `auxiliary`: the unweighted loss, mean over layers; k (experts per token) where the shares are
    equal. `max_over_mean`: the largest share of an expert over the mean share, in the worst layer.
    `dead`: experts that no token of the step went to, in all layers together.
    """

    auxiliary: float
    max_over_mean: float
    dead: int

    def to_json(self) -> dict[str, float | int]:
        """Under the names of `metrics.jsonl` and the training record."""
        return {
            "auxiliary_loss": self.auxiliary,
            "experts_max_over_mean": self.max_over_mean,
            "experts_dead": self.dead,
        }

    def text(self) -> str:
        """For the progress line."""
        dead = f", {self.dead} dead" if self.dead else ""
        return f"max/mean {self.max_over_mean:.2f}{dead}"


class Experts:
    """Watches a model's routers: one object for the whole run, without a state of its own."""

    def __init__(self, model: Decoder, coefficient: float) -> None:
        found = [m for m in model.modules() if isinstance(m, Router)]
        self.routers: list[Router] = found
        self.coefficient = coefficient if found else 0.0
        self._counts: Tensor | None = None
        self._auxiliary: Tensor | None = None
        self._parts = 0

    def leave_uncompiled(self, model: Decoder) -> None:
        """Keep the experts out of a compiled model: how many tokens each gets is another shape at
        every step, and would be compiled anew.
        """
        for module in model.modules():
            if isinstance(module, MoE):
                eager = torch.compiler.disable(module.forward)  # type: ignore[no-untyped-call]
                module.forward = eager  # type: ignore[method-assign]

    def after_forward(self) -> Tensor | None:
        """Count the choices of the micro-batch just computed, and let go of its graph.

        Returns:
            What to add to its loss: coefficient times the load-balancing loss; None without one.
        """
        if not self.routers:
            return None
        counts, losses = [], []
        for router in self.routers:
            probabilities, chosen = router.probabilities, router.chosen
            assert probabilities is not None and chosen is not None
            router.probabilities = router.chosen = None
            if router.arch.router_scoring == "sigmoid":
                probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
            count = chosen.flatten().bincount(minlength=probabilities.shape[-1])
            counts.append(count)
            losses.append(load_balancing_loss(probabilities, count))
        stacked = torch.stack(counts)
        loss = torch.stack(losses).mean()
        self._counts = stacked if self._counts is None else self._counts + stacked
        seen = loss.detach()
        self._auxiliary = seen if self._auxiliary is None else self._auxiliary + seen
        self._parts += 1
        return self.coefficient * loss if self.coefficient else None

    def after_step(self) -> list[Tensor]:
        """Move the correction biases and forget the counts; the step's figures as scalars on the
        device, in the order of `Balance`. Empty without experts.
        """
        if self._counts is None or self._auxiliary is None:
            return []
        counts = self._counts.float()
        mean = counts.mean(dim=1, keepdim=True)
        move = BIAS_RATE * torch.sign(mean - counts)
        with torch.no_grad():
            for router, change in zip(self.routers, move, strict=True):
                if router.e_score_correction_bias is not None:
                    router.e_score_correction_bias.add_(change)
        worst = (counts.amax(dim=1) / mean.squeeze(1)).amax()
        figures = [self._auxiliary / self._parts, worst, (counts == 0).sum().float()]
        self._counts = self._auxiliary = None
        self._parts = 0
        return figures


def load_balancing_loss(probabilities: Tensor, counts: Tensor) -> Tensor:
    """One layer's load-balancing loss: experts * sum(share of tokens * mean probability).

    It equals transformers' `load_balancing_loss_func` on the logits of the layer. Given several
    layers, that function sums their shares before it multiplies, so that layers which each favour
    another expert look balanced; here each layer has its own loss, as in the paper.

    Args:
        probabilities: what the router gives every expert, `[tokens, experts]`.
        counts: tokens that went to each, `[experts]`.
    """
    tokens, experts = probabilities.shape
    share = counts.to(probabilities.dtype) / tokens
    return experts * (share * probabilities.mean(dim=0)).sum()
