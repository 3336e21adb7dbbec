"""The learning rate of each step: linear warm-up, then cosine, warm-up-stable-decay, or constant.

Cosine: Loshchilov and Hutter 2017. WSD: Hu et al. 2024 (MiniCPM), with the `1 - sqrt` decay of
Haegele et al. 2024, over the last `decay_fraction` of the steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Schedule:
    """`at(step)` for steps 1 to `num_steps`; a pure function, so resuming needs no state."""

    kind: str
    peak: float
    num_steps: int
    warmup_steps: int
    min_ratio: float
    decay_fraction: float

    def at(self, step: int) -> float:
        """The learning rate of `step`, counted from 1."""
        if step <= self.warmup_steps:
            return self.peak * step / self.warmup_steps
        if self.kind == "constant":
            return self.peak
        low = self.peak * self.min_ratio
        if self.kind == "cosine":
            span = max(1, self.num_steps - self.warmup_steps)
            progress = min(1.0, (step - self.warmup_steps) / span)
            return low + (self.peak - low) * 0.5 * (1.0 + math.cos(math.pi * progress))
        decay_steps = max(1, round(self.num_steps * self.decay_fraction))
        start = max(self.warmup_steps, self.num_steps - decay_steps)
        if step <= start:
            return self.peak
        progress = min(1.0, (step - start) / max(1, self.num_steps - start))
        return low + (self.peak - low) * (1.0 - math.sqrt(progress))
