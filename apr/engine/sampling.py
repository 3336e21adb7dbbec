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
Ids = npt.NDArray[np.int64]
_BLOCK = 64
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
    ids, weights = _kept(logits, temperature, top_k, top_p, min_p)
    p: Floats = np.zeros(logits.size)
    p[ids] = weights / weights.sum()
    return p


# A vocabulary may have 150,000 entries, and a step of a small model takes less time than sorting
# them: what is not kept is looked at in float32 alone, and as few times as may be.


def _kept(
    logits: Logits, temperature: float, top_k: int, top_p: float, min_p: float
) -> tuple[Ids, Floats]:
    """The tokens that may be drawn, and their probabilities relative to the likeliest one's."""
    total = None
    if 0 < top_k < logits.size:
        ids = _largest(logits, top_k)
    elif top_p < 1.0:
        ids, total = _holding(logits, temperature, top_p)
    elif min_p > 0.0:
        slack = 1e-3 * temperature  # for float32; the exact comparison follows
        least = logits.max() + np.float32(temperature * math.log(min_p) - slack)
        ids = np.flatnonzero(logits >= least)
    else:
        ids = np.arange(logits.size)
    weights = _weights(logits[ids], logits.max(), temperature)
    if top_p < 1.0:
        order = np.argsort(-weights, kind="stable")
        reached = np.cumsum(weights[order])
        mass = top_p * (reached[-1] if total is None else total)
        order = order[: int(np.searchsorted(reached, mass)) + 1]
        ids, weights = ids[order], weights[order]
    if min_p > 0.0:
        likely = weights >= min_p
        ids, weights = ids[likely], weights[likely]
    return ids, weights


def _weights(logits: Logits, largest: np.float32, temperature: float) -> Floats:
    out: Floats = np.exp((logits.astype(np.float64) - largest) / temperature)
    return out


def _rough_weights(logits: Logits, temperature: float) -> Logits:
    """All of them, in float32. None is below 1e-35, which no sum notices: processors take many
    times longer for numbers that are smaller still.
    """
    with np.errstate(over="ignore"):
        scaled = (logits - logits.max()) / np.float32(temperature)
    out: Logits = np.exp(np.maximum(scaled, -80))
    return out


def _largest(logits: Logits, count: int) -> Ids:
    """Ids of the `count` largest, with all that equal the last of them, ascending.

    The largest of each column of a table bounds them from below: `count` columns have one that is
    at least the `count`-th largest of these. What is left is a few times `count`, quickly sorted.
    """
    columns = logits.size // _BLOCK
    candidates = None
    if columns >= 2 * count:
        tops = logits[: columns * _BLOCK].reshape(_BLOCK, columns).max(axis=0)
        bound = np.partition(tops, columns - count)[columns - count]
        candidates = np.flatnonzero(logits >= bound)
    values = logits if candidates is None else logits[candidates]
    least = np.partition(values, values.size - count)[values.size - count]
    found = np.flatnonzero(values >= least)
    return found if candidates is None else candidates[found]


def _holding(logits: Logits, temperature: float, mass: float) -> tuple[Ids, float]:
    """Enough of the likeliest tokens to have `mass` of the probability; the weight of all."""
    rough = _rough_weights(logits, temperature)
    total = float(rough.sum(dtype=np.float64))
    size = _FIRST
    while size < logits.size:
        ids = _largest(logits, size)
        # A little more than enough, for these are rough.
        if rough[ids].sum(dtype=np.float64) >= min(1.0, mass + 1e-5) * total:
            return ids, total
        size *= 8
    return np.arange(logits.size), total


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

    @property
    def greedy(self) -> bool:
        """Whether it takes the most likely token, and nothing else matters."""
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return self.temperature == 0.0 and penalties == (1.0, 0.0, 0.0)

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
        if self.top_k == 0 and self.top_p == 1.0 and self.min_p == 0.0:
            # The block first, then the token in it: two short sums in place of a long one.
            rough = _rough_weights(logits, self.temperature)
            whole = rough.size - rough.size % _BLOCK
            blocks = rough[:whole].reshape(-1, _BLOCK).sum(axis=1)
            blocks = np.append(blocks, rough[whole:].sum()).astype(np.float64)
            start = self._draw(blocks) * _BLOCK
            return start + self._draw(rough[start : start + _BLOCK].astype(np.float64))
        ids, weights = _kept(logits, self.temperature, self.top_k, self.top_p, self.min_p)
        return int(ids[self._draw(weights)])

    def _draw(self, weights: Floats) -> int:
        """A place, with probabilities in proportion to the weights."""
        cumulative = np.cumsum(weights)
        drawn = int(np.searchsorted(cumulative, self._random.random() * cumulative[-1], "right"))
        # Rounding may step past the end, onto a weight of 0.
        return min(drawn, int(np.flatnonzero(weights)[-1]))
