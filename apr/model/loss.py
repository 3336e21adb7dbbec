"""The language-model loss from hidden states, without ever holding all logits in float32.

With a large vocabulary the logits are the largest thing in training: 16,384 tokens x 151,936
entries take 10 GB in float32, and as much again for their gradient. Above a bound the tokens are
split and each part's logits are computed again in the backward pass.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

MAX_LOGITS = 1 << 28  # elements held at once: 1 GiB in float32


def token_losses(
    hidden: Tensor, head: Tensor, targets: Tensor, softcap: float | None = None
) -> Tensor:
    """Cross-entropy in nats of every position, `[batch, seq]`, float32.

    Args:
        hidden: states after the last norm, `[batch, seq, hidden]`.
        head: weight of the head, `[vocab, hidden]`.
        targets: token ids, `[batch, seq]`.
        softcap: logits become softcap * tanh(logit / softcap), as in `Decoder.logits`.
    """
    flat, wanted = hidden.flatten(0, 1), targets.flatten()
    rows = max(1, MAX_LOGITS // head.shape[0])
    if flat.shape[0] <= rows:
        losses = _losses(flat, head, wanted, softcap)
    else:
        losses = torch.cat(
            [
                _part(part, head, ids, softcap)
                for part, ids in zip(
                    torch.split(flat, rows), torch.split(wanted, rows), strict=True
                )
            ]
        )
    return losses.view(targets.shape)


def _part(hidden: Tensor, head: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
    if not torch.is_grad_enabled():
        return _losses(hidden, head, targets, softcap)
    result: Tensor = checkpoint(_losses, hidden, head, targets, softcap, use_reentrant=False)
    return result


def _losses(hidden: Tensor, head: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
    logits = F.linear(hidden, head).float()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, targets, reduction="none")
