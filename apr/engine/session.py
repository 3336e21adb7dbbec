"""A sequence on PyTorch: its cache, and what a generation asks of it (`apr.engine.loop.Steps`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from apr.errors import InferenceError
from apr.model.cache import CacheRows, KVCache

if TYPE_CHECKING:
    from apr.engine.engine import Engine

Logits = npt.NDArray[np.float32]
_LEAD = 1e-3  # of the largest logit; passes of several tokens differ by some 1e-6 of it in float32


class Session:
    """One sequence: its KV cache and the position reached."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._ids: list[int] = []
        self._cache = KVCache(engine.architecture, 1, device=engine.device, dtype=engine.dtype)

    @property
    def length(self) -> int:
        """Tokens processed so far."""
        return self._cache.length

    @property
    def ids(self) -> tuple[int, ...]:
        """The tokens processed so far."""
        return tuple(self._ids)

    def prefill(self, ids: Sequence[int]) -> Logits:
        """Process further tokens in one pass; logits after the last one, `[vocab]`.

        Raises:
            InferenceError: no ids, ids outside the vocabulary, or the context is exceeded.
        """
        pending = list(ids)
        if self._engine.forgets(self.length, len(pending)):
            pending = self._ids + pending
            self._cache.length = 0
        last: Logits = self._engine.run(pending, self._cache, last=1)[-1]
        self._ids += ids
        return last

    def decode(self, token_id: int) -> Logits:
        """Process one further token; the logits after it, `[vocab]`. Errors as `prefill`."""
        return self.prefill([token_id])

    def verify(self, ids: Sequence[int]) -> Logits:
        """Process further tokens in one pass, for speculation: logits `[n, vocab]` after the first
        n of `ids`, at least one; the session then holds these alone, and the most likely token
        after each is the one that `decode` would give.

        A pass of several tokens rounds otherwise than one of a single token. Where the two most
        likely tokens are closer to each other than that could account for, the pass ends, and its
        last token is computed again alone.

        Raises:
            InferenceError: as `prefill`.
        """
        start = self.length
        logits = self._all(ids)
        if len(ids) == 1:
            return logits
        for number, row in enumerate(logits):
            second, first = np.partition(row, -2)[-2:]
            if not first - second > _LEAD * np.abs(row).max():
                if not self.rewind(start + number):
                    raise InferenceError("speculation", "the cache cannot be taken back")
                return np.concatenate([logits[:number], [self.decode(ids[number])]])
        return logits

    def _all(self, ids: Sequence[int]) -> Logits:
        """Process further tokens; logits after each of them, `[len, vocab]`."""
        logits = self._engine.run(ids, self._cache)
        self._ids += ids
        return logits

    def reset(self) -> None:
        """Forget all tokens."""
        if not self.rewind(0):
            raise InferenceError("cache", "cannot be begun anew", "leave --context-shift out")

    def rewind(self, length: int) -> bool:
        """Forget all but the first `length` tokens; False, and nothing is forgotten, where the
        cache would not be the one that those tokens alone give (angles that follow the length).
        """
        if length > self.length or (length and self._engine.changing_angles()):
            return False
        self._cache.length = length
        del self._ids[length:]
        return True

    @staticmethod
    def decode_together(engine: Engine, sessions: Sequence[Session], ids: Sequence[int]) -> Logits:
        """See `Engine.decode_batch`."""
        if any(engine.forgets(session.length, 1) for session in sessions):
            return np.stack([s.decode(id) for s, id in zip(sessions, ids, strict=True)])
        logits = engine.run_rows(ids, CacheRows([session._cache for session in sessions]))
        for session, id in zip(sessions, ids, strict=True):
            session._ids.append(id)
        return logits
