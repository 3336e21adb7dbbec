"""What a run will cost, before it starts: memory from the architecture, time from measured steps.

Time is measured, not looked up: models of the same width with one and two layers train for a few
steps on the real device, and the line through both is drawn out to the real depth; for each kind of
layer (with experts or without, with a window or without) on its own.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from apr.architecture import Architecture
from apr.data.estimate import ELEMENT_BYTES, Memory, estimate_memory
from apr.model.decoder import Decoder, initialize
from apr.model.loss import MAX_LOGITS
from apr.train.balance import Experts
from apr.train.evaluate import model_losses
from apr.train.optimizer import make_optimizer
from apr.train.settings import Settings

PROBE_TOKENS = 2048  # at most, per probed step: the rest is proportional
PROBE_STEPS = 3


@dataclass(frozen=True)
class Estimate:
    """Memory of a step and of the files in bytes; speed and time, extrapolated from the probe."""

    memory: Memory
    checkpoint_bytes: int
    state_bytes: int
    tokens_per_second: float
    seconds: float
    how: str

    def to_json(self) -> dict[str, Any]:
        """All figures, JSON-ready."""
        return {**asdict(self), "memory": self.memory.to_json()}


def estimate(architecture: Architecture, settings: Settings) -> Estimate:
    """Measure and reckon; takes a few seconds."""
    s = settings
    memory = estimate_memory(architecture, s.batch_size, s.seq_length, s.dtype)
    # The loss never holds more logits than this at once (apr/model/loss.py).
    bounded = MAX_LOGITS * (4 + ELEMENT_BYTES[s.dtype])
    memory = replace(memory, logits=min(memory.logits, bounded))
    layers = architecture.num_layers
    per_token = 0.0
    for i, count in kinds_of_layer(architecture).items():
        one = _probe(_of_layers(architecture, [i]), s)
        two = _probe(_of_layers(architecture, [i, i]), s)
        layer = max(two - one, 0.05 * one)
        # What is no layer (embedding, head, loss) is in each probe; it counts once.
        per_token += count * layer + (one - layer if per_token == 0.0 else 0.0)
    return Estimate(
        memory=memory,
        checkpoint_bytes=memory.weights,
        state_bytes=memory.weights + memory.optimizer,
        tokens_per_second=1.0 / per_token,
        seconds=s.planned_tokens * per_token,
        how=f"{PROBE_STEPS} measured steps each of a 1- and a 2-layer model of this width on "
        f"{s.device}, drawn out to {layers} layers; evaluation and saving come on top",
    )


def kinds_of_layer(architecture: Architecture) -> dict[int, int]:
    """How many layers are like each first of its kind, by that one's number."""
    a = architecture
    sparse = set(a.sparse_layers)
    kinds = [(i in sparse, a.window(i)) for i in range(a.num_layers)]
    return {kinds.index(kind): kinds.count(kind) for kind in dict.fromkeys(kinds)}


def _of_layers(architecture: Architecture, layers: list[int]) -> Architecture:
    """A model of these layers alone."""
    a = architecture
    return replace(
        a,
        num_layers=len(layers),
        layer_types=a.layer_types and tuple(a.layer_types[i] for i in layers),
        mlp_layer_types=a.mlp_layer_types and tuple(a.mlp_layer_types[i] for i in layers),
    )


def _probe(architecture: Architecture, settings: Settings) -> float:
    """Seconds per token of a training step."""
    device = torch.device(settings.device)
    seq = settings.seq_length
    batch = max(1, min(settings.batch_size, PROBE_TOKENS // seq))
    model = Decoder(architecture)
    initialize(model, torch.Generator().manual_seed(0))
    model.to(device)
    experts = Experts(model, settings.aux_loss)
    optimizer = make_optimizer(model, lr=1e-4, beta1=0.9, beta2=0.95, weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, architecture.vocab_size, (batch, seq + 1), generator=generator)
    ids = ids.to(device)
    half = settings.dtype != "float32"
    # The optimizer's part comes once a step, not once a micro-batch.
    times, tails = [], []
    for _ in range(PROBE_STEPS + 1):
        start = _clock(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = model_losses(model, model.hidden(ids[:, :-1]), ids[:, 1:]).mean()
        extra = experts.after_forward()
        torch.autograd.backward(loss if extra is None else loss + extra)
        middle = _clock(device)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        experts.after_step()
        optimizer.zero_grad(set_to_none=True)
        times.append(middle - start)
        tails.append(_clock(device) - middle)
    return min(times[1:]) / (batch * seq) + min(tails[1:]) / settings.tokens_per_step


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
