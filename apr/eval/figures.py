"""Figures of scored tokens: perplexity, bits per byte, differences, each with a standard error.

Standard errors take tokens as independent, as llama-perplexity does: from the sum of squares over
`n (n - 1)`. A ratio's (bits per byte) is that of its residuals, the delta method.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Estimate:
    """A figure and its standard error (None where one sample has none)."""

    value: float
    error: float | None

    def to_json(self) -> dict[str, float | None]:
        """JSON-ready values; what is not finite is null."""
        return {"value": _finite(self.value), "standard_error": _finite(self.error)}

    def __str__(self) -> str:
        return f"{self.value:.4f}" + ("" if self.error is None else f" ± {self.error:.4f}")


def mean(values: Floats) -> Estimate:
    """Mean of independent values, `[n]`."""
    n = len(values)
    error = float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else None
    return Estimate(float(values.mean()), error)


def exponential(estimate: Estimate) -> Estimate:
    """Exponential of an estimate, to first order."""
    try:
        value = math.exp(estimate.value)
    except OverflowError:
        value = math.inf
    return Estimate(value, None if estimate.error is None else value * estimate.error)


def ratio(above: Floats, below: Ints) -> Estimate:
    """Sum over sum, `[n]` each."""
    n, total = len(above), float(below.sum())
    if total == 0:
        return Estimate(math.nan, None)
    value = float(above.sum()) / total
    if n < 2:
        return Estimate(value, None)
    residuals = above - value * below
    return Estimate(value, math.sqrt(n / (n - 1) * float(np.square(residuals).sum())) / total)


@dataclass(frozen=True)
class Scores:
    """Every scored token of a text: nats, `[n]`, and bytes, `[n]`."""

    nats: Floats
    bytes: Ints

    @property
    def loss(self) -> Estimate:
        """Nats per token."""
        return mean(self.nats)

    @property
    def perplexity(self) -> Estimate:
        """Exponential of the nats per token."""
        return exponential(self.loss)

    @property
    def bits_per_byte(self) -> Estimate:
        """All nats as bits, over the bytes of the scored text."""
        return ratio(self.nats / math.log(2), self.bytes)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            "scored_tokens": len(self.nats),
            "scored_bytes": int(self.bytes.sum()),
            "perplexity": self.perplexity.to_json(),
            "nats_per_token": self.loss.to_json(),
            "bits_per_byte": self.bits_per_byte.to_json(),
        }


@dataclass(frozen=True)
class Paired:
    """Two models on the same tokens; differences are the model's less the other's.

    `divergence` (nats, `[n]`): KL of the model's distribution from the other's, which is the
    reference; `same_top`, `[n]`: whether both rank the same token first. None where the
    vocabularies differ in size.
    """

    difference: Floats
    divergence: Floats | None
    same_top: Floats | None

    def figures(self) -> Mapping[str, Estimate]:
        """The figures by name."""
        found = mean(self.difference)
        out = {"nats_per_token_difference": found, "perplexity_ratio": exponential(found)}
        if self.divergence is not None and self.same_top is not None:
            out["kl_divergence"] = mean(self.divergence)
            out["same_top"] = mean(self.same_top)
        return out

    def to_json(self) -> dict[str, Any]:
        """JSON-ready values, with percentiles of the divergence."""
        out: dict[str, Any] = {name: e.to_json() for name, e in self.figures().items()}
        if self.divergence is not None:
            points = np.quantile(self.divergence, [0.5, 0.9, 0.99, 1.0])
            out["kl_percentiles"] = dict(
                zip(("50", "90", "99", "max"), map(float, points), strict=True)
            )
        return out


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
