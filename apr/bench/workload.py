"""What is timed: a prompt in one pass, and single decode steps. Sampling and tokenizing are not.

As in llama-bench: random token ids, `ppN` from an empty context, `tgN` N steps after one token.
The workload sees an engine through a protocol, so that the tests time a known one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from apr.bench.timing import Clock

if TYPE_CHECKING:
    from apr.bench.sizes import Test
    from apr.engine import Engine

SEED = 1234


class SessionLike(Protocol):
    """A sequence that can be continued."""

    def prefill(self, ids: Sequence[int]) -> Any:
        """Process ids; the last logits."""

    def decode(self, token_id: int) -> Any:
        """Process one id; the logits after it."""


class EngineLike(Protocol):
    """What is measured; one with batches has `decode_batch(sessions, ids)` as well."""

    def session(self) -> SessionLike:
        """A new sequence."""

    def synchronize(self) -> None:
        """Wait until the device is done."""


@dataclass
class Continuation:
    """A text, continued greedily; the seconds are those after the first token, choosing included.

    Args:
        engine: what is measured.
        test: with a text.
    """

    engine: Engine
    test: Test
    first_token: float = 0.0
    speculation: dict[str, int] | None = None

    def run(self) -> float:
        """Seconds of one run; what became of the guesses is in `speculation` then."""
        test = self.test
        done = self.engine.generate(
            test.text, test.tokens + 1, stop_ids=(), speculate=test.speculate
        )
        if done.speculative_passes is not None:
            self.speculation = {
                "most": test.speculate or 0,
                "passes": done.speculative_passes,
                "drafted_tokens": done.drafted_tokens or 0,
                "accepted_tokens": done.accepted_tokens or 0,
            }
        return done.decode_seconds


@dataclass
class Workload:
    """One test on one engine. `run` does it once and gives its seconds.

    Every run begins with new sessions, so that nothing of an earlier one is reused.

    Args:
        engine: what is measured.
        test: `pp` or `tg`.
        tokens: prompt tokens, or decode steps.
        vocab: ids are drawn below this.
        clock: seconds, monotonic.
        depth: tokens that go before, not timed.
        batch: sequences that are decoded together.
    """

    engine: EngineLike
    test: str
    tokens: int
    vocab: int
    clock: Clock = time.perf_counter
    depth: int = 0
    batch: int = 1

    def __post_init__(self) -> None:
        # A decode begins after one token at least.
        self._before = max(self.depth, 1) if self.test == "tg" else self.depth
        count = self.tokens + self._before
        drawn = np.random.default_rng(SEED).integers(0, self.vocab, count)
        self._ids = [int(i) for i in drawn]
        self.first_token: float = 0.0

    def run(self) -> float:
        """Seconds of one run; for a prompt, `first_token` is then set as well.

        Time to first token runs from the new session to the chosen token; at a depth, from the
        timed part of the prompt on.
        """
        return self._prefill() if self.test == "pp" else self._decode()

    def _prefill(self) -> float:
        self.engine.synchronize()
        begin = self.clock()
        session = self.engine.session()
        if self._before:
            session.prefill(self._ids[: self._before])
            self.engine.synchronize()
            begin = self.clock()
        start = self.clock()
        logits = session.prefill(self._ids[self._before :])
        self.engine.synchronize()
        end = self.clock()
        int(np.argmax(logits))
        self.first_token = self.clock() - begin
        return end - start

    def _decode(self) -> float:
        sessions = [self.engine.session() for _ in range(self.batch)]
        for session in sessions:
            session.prefill(self._ids[: self._before])
        self.engine.synchronize()
        steps = self._ids[self._before :]
        if self.batch > 1:
            together: Any = self.engine.decode_batch  # type: ignore[attr-defined]
            start = self.clock()
            for token in steps:
                together(sessions, [token] * self.batch)
        else:
            (session,) = sessions
            start = self.clock()
            for token in steps:
                session.decode(token)
        self.engine.synchronize()
        return self.clock() - start
