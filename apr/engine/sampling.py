"""Choosing the next token: greedy, or drawn after temperature, top-k and top-p.

Order and meaning are those of transformers' logits warpers: temperature, then top-k, then top-p
(nucleus sampling, Holtzman et al. 2019, arXiv 1904.09751). The draws are a function of the seed
and the logits alone, the same on every device.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from apr.errors import InferenceError, UsageError

Logits = npt.NDArray[np.float32]


def probabilities(
    logits: Logits, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> npt.NDArray[np.float64]:
    """The distribution that is drawn from, `[vocab]`, from logits `[vocab]`.

    `top_k` 0 keeps all; `top_p` keeps the smallest set of most likely tokens whose probability
    reaches it, the one that crosses it included. Ties go to the lower id.
    """
    wide = logits.astype(np.float64) / temperature
    p: npt.NDArray[np.float64] = np.exp(wide - wide.max())
    p /= p.sum()
    if 0 < top_k < p.size or top_p < 1.0:
        order = np.argsort(-p, kind="stable")
        keep = order[:top_k] if 0 < top_k < p.size else order
        if top_p < 1.0:
            mass = np.cumsum(p[keep]) / p[keep].sum()
            keep = keep[: int(np.searchsorted(mass, top_p)) + 1]
        kept = np.zeros_like(p)
        kept[keep] = p[keep]
        p = kept / kept.sum()
    return p


class Sampler:
    """Draws token ids from logits; temperature 0 takes the most likely one.

    Raises:
        UsageError: a setting is outside its range.
    """

    def __init__(
        self, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, seed: int = 0
    ) -> None:
        if not 0.0 <= temperature < float("inf"):
            raise UsageError("temperature", f"{temperature} is negative or not a number", "use 0")
        if top_k < 0:
            raise UsageError("top_k", f"{top_k} is negative", "write 0 to keep all tokens")
        if not 0.0 < top_p <= 1.0:
            raise UsageError("top_p", f"{top_p} is not above 0 and at most 1", "write 1 for all")
        if seed < 0:
            raise UsageError("seed", f"{seed} is negative", "write 0 or more")
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self._random = np.random.default_rng(seed)

    def __call__(self, logits: Logits) -> int:
        """The next token's id.

        Raises:
            InferenceError: the logits are not finite; a choice among them would be arbitrary.
        """
        if not np.isfinite(logits).all():
            raise InferenceError("logits", "are not finite", "check the weights: apr qa FILE")
        if self.temperature == 0.0:
            return int(logits.argmax())
        p = probabilities(logits, self.temperature, self.top_k, self.top_p)
        cumulative = np.cumsum(p)
        drawn = int(np.searchsorted(cumulative, self._random.random() * cumulative[-1], "right"))
        # Rounding may step past the end, onto a token of probability 0.
        return min(drawn, int(np.flatnonzero(p)[-1]))
