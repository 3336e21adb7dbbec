"""What a generation gave: ids, text, why it ended, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Generation:
    """What was generated. `ids` leave out prompt and stop token; times are wall-clock seconds.

    `prefill_seconds` runs to the prompt's last logits, `decode_seconds` over the `decode_steps`
    after it, which a batch shares. `time_to_first_token` counts from the call, also in a batch, and
    is None where no token came. `cached_tokens` of the prompt were in the session already.
    `text` is None where no stream was given. `stop_reason`: `stop` (a stop token came, `stop_id`,
    or a stop string, `stop_string`, whose tokens are among the `ids` but not in the `text`),
    `length` (as many as asked for), `context` (the model's is full), `interrupted` (Ctrl-C).
    `context_shifts`: how often a full context lost its older half. `drafted_tokens` were guessed,
    `accepted_tokens` of them were right, in `speculative_passes`; None without speculation, with
    which several of the `decode_steps`, one a token, share a pass.
    """

    ids: list[int]
    prompt_tokens: int
    prefill_seconds: float
    decode_seconds: float
    decode_steps: int
    time_to_first_token: float | None
    stop_reason: str
    stop_id: int | None = None
    stop_string: str | None = None
    text: str | None = None
    cached_tokens: int = 0
    context_shifts: int = 0
    speculative_passes: int | None = None
    drafted_tokens: int | None = None
    accepted_tokens: int | None = None

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens processed per second."""
        new = self.prompt_tokens - self.cached_tokens
        return new / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Decode steps per second; 0 if there was none."""
        return self.decode_steps / self.decode_seconds if self.decode_seconds else 0.0

    def __str__(self) -> str:
        new = self.prompt_tokens - self.cached_tokens
        cached = f" ({self.cached_tokens} more from the cache)" if self.cached_tokens else ""
        first = self.time_to_first_token
        more = ""
        if self.speculative_passes is not None:
            more = (
                f"; {self.accepted_tokens} of {self.drafted_tokens} guessed tokens were right, in "
                f"{self.speculative_passes} passes"
            )
        if self.context_shifts:
            more += f"; the context was shifted {self.context_shifts} x"
        after = "no token came" if first is None else f"first token after {first:.3f} s"
        return (
            f"{new} prompt tokens{cached} in {self.prefill_seconds:.3f} s, "
            f"{self.prefill_tokens_per_second:.1f} tok/s; "
            f"{len(self.ids)} generated, {self.decode_steps} steps in {self.decode_seconds:.3f} s, "
            f"{self.decode_tokens_per_second:.1f} tok/s; {after}{more}; ended by {self.ending}"
        )

    @property
    def ending(self) -> str:
        """Why it ended, in words."""
        if self.stop_id is not None:
            return f"end token {self.stop_id}"
        if self.stop_string is not None:
            return f"stop string {self.stop_string!r}"
        words = {"length": "the token limit", "context": "the model's context"}
        return words.get(self.stop_reason, "the user")

    def statistics(self) -> dict[str, Any]:
        """All but ids and text, with both rates (tok/s), as JSON-ready values."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "generated_tokens": len(self.ids),
            "prefill_seconds": self.prefill_seconds,
            "prefill_tokens_per_second": self.prefill_tokens_per_second,
            "time_to_first_token": self.time_to_first_token,
            "decode_steps": self.decode_steps,
            "decode_seconds": self.decode_seconds,
            "decode_tokens_per_second": self.decode_tokens_per_second,
            "stop_reason": self.stop_reason,
            "stop_id": self.stop_id,
            "stop_string": self.stop_string,
            "context_shifts": self.context_shifts,
            "speculative_passes": self.speculative_passes,
            "drafted_tokens": self.drafted_tokens,
            "accepted_tokens": self.accepted_tokens,
        }
