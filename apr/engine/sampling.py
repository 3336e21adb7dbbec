"""Choosing the next token: greedy, or drawn after penalties, temperature and truncation.

The order is that of transformers: repetition penalty (Keskar et al. 2019, arXiv 1909.05858, over
prompt and answer), frequency and presence penalty (OpenAI's formula, over the answer alone),
temperature, top-k, top-p (nucleus sampling, Holtzman et al. 2019, arXiv 1904.09751), min-p (Nguyen
et al. 2024, arXiv 2407.01082). Each sees what the ones before it left. The draws are a function of
the seed and the logits alone, the same on every device.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from apr.errors import InferenceError, UsageError

Logits = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
_FIRST = 256  # tokens that top-p looks at first; sorting a whole vocabulary takes milliseconds


class Sampling(TypedDict, total=False):
    """The settings of a `Sampler`, by name; one that is left out has no effect."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int


def penalized(
    logits: Logits,
    seen: Sequence[int] | npt.NDArray[np.int64],
    counts: Counter[int],
    repetition: float = 1.0,
    presence: float = 0.0,
    frequency: float = 0.0,
) -> Logits:
    """Logits `[vocab]` after the penalties; the argument itself stays as it is.

    Args:
        logits: `[vocab]`.
        seen: ids that stood in prompt or answer; their logits are divided by `repetition` where
            positive and multiplied by it where negative, once however often they stood there.
        counts: how often each id was generated; its logit loses `frequency` times that, and
            `presence` once.
        repetition: 1 leaves all as it is, more than 1 discourages.
        presence: 0 leaves all as it is, less than 0 encourages.
        frequency: as `presence`.
    """
    out = logits.copy()
    if repetition != 1.0 and len(seen):
        ids = np.asarray(seen, dtype=np.int64)
        old = out[ids]
        out[ids] = np.where(old < 0, old * np.float32(repetition), old / np.float32(repetition))
    if counts and (presence or frequency):
        ids = np.fromiter(counts.keys(), np.int64, len(counts))
        often = np.fromiter(counts.values(), np.float32, len(counts))
        out[ids] -= often * np.float32(frequency) + np.float32(presence)
    return out


def probabilities(
    logits: Logits,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> Floats:
    """The distribution that is drawn from, `[vocab]`, from logits `[vocab]`.

    `top_k` keeps the most likely ones with all that equal the last of them, 0 keeps all; `top_p`
    keeps the smallest set of most likely tokens whose probability reaches it, the one that crosses
    it included, of equals the lower id; `min_p` keeps what is at least that share of the most
    likely one's probability.
    """
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max()
    if 0 < top_k < scaled.size:
        least = np.partition(scaled, scaled.size - top_k)[scaled.size - top_k]
        scaled[scaled < least] = -np.inf
    p: Floats = np.exp(scaled)
    p /= p.sum()
    if top_p < 1.0:
        kept = np.zeros_like(p)
        nucleus = _nucleus(p, top_p)
        kept[nucleus] = p[nucleus]
        p = kept / kept.sum()
    if min_p > 0.0:
        p[p < min_p * p.max()] = 0.0
        p /= p.sum()
    return p


def _nucleus(p: Floats, mass: float) -> npt.NDArray[np.int64]:
    """Ids of the fewest most likely tokens that hold `mass`, the likeliest first."""
    size = _FIRST
    while True:
        if size < p.size:
            least = np.partition(p, p.size - size)[p.size - size]
            candidates = np.flatnonzero(p >= least)
        else:
            candidates = np.arange(p.size)
        order = candidates[np.argsort(-p[candidates], kind="stable")]
        reached = np.cumsum(p[order])
        if reached[-1] >= mass or len(candidates) == p.size:
            return order[: int(np.searchsorted(reached, mass)) + 1]
        size *= 8


class Sampler:
    """Draws token ids from logits; temperature 0 takes the most likely one, after the penalties.

    It remembers what it gave out, for the penalties: one sampler serves one sequence, and `start`
    begins another.

    Raises:
        UsageError: a setting is outside its range.
    """

    def __init__(
        self,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        *,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
    ) -> None:
        if not 0.0 <= temperature < math.inf:
            raise UsageError("temperature", f"{temperature} is negative or not a number", "use 0")
        if top_k < 0:
            raise UsageError("top_k", f"{top_k} is negative", "write 0 to keep all tokens")
        if not 0.0 < top_p <= 1.0:
            raise UsageError("top_p", f"{top_p} is not above 0 and at most 1", "write 1 for all")
        if not 0.0 <= min_p <= 1.0:
            raise UsageError("min_p", f"{min_p} is not between 0 and 1", "write 0 for all")
        if not 0.0 < repetition_penalty < math.inf:
            raise UsageError(
                "repetition_penalty", f"{repetition_penalty} is not above 0", "write 1 for none"
            )
        for name, penalty in (
            ("presence_penalty", presence_penalty),
            ("frequency_penalty", frequency_penalty),
        ):
            if not math.isfinite(penalty):
                raise UsageError(name, f"{penalty} is not a number", "write 0 for none")
        if seed < 0:
            raise UsageError("seed", f"{seed} is negative", "write 0 or more")
        self.temperature, self.top_k, self.top_p, self.min_p = temperature, top_k, top_p, min_p
        self.repetition_penalty = repetition_penalty
        self.presence_penalty, self.frequency_penalty = presence_penalty, frequency_penalty
        self._random = np.random.default_rng(seed)
        self.start(())

    def start(self, prompt: Sequence[int]) -> None:
        """Begin a sequence: forget what was given out, and count the prompt as seen."""
        self._seen = dict.fromkeys(prompt)
        self._counts: Counter[int] = Counter()

    def __call__(self, logits: Logits) -> int:
        """The next token's id.

        Raises:
            InferenceError: the logits are not finite; a choice among them would be arbitrary.
        """
        if not np.isfinite(logits).all():
            raise InferenceError("logits", "are not finite", "check the weights: apr qa FILE")
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        if penalties != (1.0, 0.0, 0.0):
            logits = penalized(logits, list(self._seen), self._counts, *penalties)
        token = self._choose(logits)
        self._seen[token] = None
        self._counts[token] += 1
        return token

    def _choose(self, logits: Logits) -> int:
        if self.temperature == 0.0:
            return int(logits.argmax())
        p = probabilities(logits, self.temperature, self.top_k, self.top_p, self.min_p)
        cumulative = np.cumsum(p)
        drawn = int(np.searchsorted(cumulative, self._random.random() * cumulative[-1], "right"))
        # Rounding may step past the end, onto a token of probability 0.
        return min(drawn, int(np.flatnonzero(p)[-1]))
