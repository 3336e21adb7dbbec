"""When a run stops before its last step, and why: divergence and early stopping.

Both judge by measured figures only. Divergence is judged on the smoothed training loss, early
stopping on the difference of two evaluations against that difference's own standard error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

SMOOTHING = 0.95  # weight of the past in the running mean: about the last 20 steps
ABOVE_UNIFORM = 1.0  # nats above ln(vocab), the loss of guessing
ABOVE_BEST = 2.0  # times the best smoothed loss, and at least one nat above it
PATIENT_STEPS = 10  # consecutive steps, so that one spike ends no run


@dataclass
class Divergence:
    """Watches the training loss of each step.

    Diverged: a loss or gradient norm that is not finite; or, after warm-up, a smoothed loss that
    for 10 steps in a row lies above ln(vocab) + 1 (worse than guessing), or above twice its best
    and a nat over it.
    """

    vocab_size: int
    warmup_steps: int
    smoothed: float = 0.0
    weight: float = 0.0
    best: float = math.inf
    above: int = 0

    def judge(self, step: int, loss: float, grad_norm: float) -> str | None:
        """What is wrong after this step, as a sentence; None if nothing."""
        if not math.isfinite(loss):
            return f"the loss of step {step} is {loss}"
        if not math.isfinite(grad_norm):
            return f"the gradient norm of step {step} is {grad_norm} (loss {loss:.4f})"
        self.smoothed = SMOOTHING * self.smoothed + (1 - SMOOTHING) * loss
        self.weight = SMOOTHING * self.weight + (1 - SMOOTHING)
        if step <= self.warmup_steps or step < PATIENT_STEPS:
            return None
        mean = self.smoothed / self.weight
        self.best = min(self.best, mean)
        uniform = math.log(self.vocab_size) + ABOVE_UNIFORM
        limit = min(uniform, max(ABOVE_BEST * self.best, self.best + 1.0))
        self.above = self.above + 1 if mean > limit else 0
        if self.above >= PATIENT_STEPS:
            return (
                f"the smoothed loss has been above {limit:.3f} for {PATIENT_STEPS} steps "
                f"(now {mean:.3f}, best {self.best:.3f}, guessing {math.log(self.vocab_size):.3f})"
            )
        return None

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {
            "smoothed": self.smoothed,
            "weight": self.weight,
            "best": None if math.isinf(self.best) else self.best,
            "above": self.above,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state()`."""
        self.smoothed, self.weight = state["smoothed"], state["weight"]
        self.best = math.inf if state["best"] is None else state["best"]
        self.above = state["above"]


@dataclass
class EarlyStop:
    """Counts evaluations in a row that are worse than the best one beyond noise.

    Noise is the standard error of the paired difference over the same sequences, which is far
    smaller than the standard error of either loss. Two of it make a rise count.
    """

    patience: int | None
    worse: int = 0
    reason: str = field(default="", compare=False)

    def judge(self, rise: float, rise_se: float) -> bool:
        """True when the run should stop; `rise` is this loss minus the best one, in nats."""
        self.worse = self.worse + 1 if rise > 2 * rise_se else 0
        if self.patience is None or self.worse < self.patience:
            return False
        self.reason = (
            f"the validation loss has been above its best for {self.worse} evaluations, "
            f"last by {rise:.4f} +/- {rise_se:.4f} nats"
        )
        return True
