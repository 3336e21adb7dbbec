"""What a generation gave: ids, text, why it ended, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Generation:
    """What was generated. `ids` leave out prompt and stop token; times are wall-clock seconds.

    `prefill_seconds` runs to the prompt's last logits, `decode_seconds` over the `decode_steps`
    after it. `stop_reason`: `stop` (a stop token came, `stop_id`, or a stop string, `stop_string`,
    whose tokens are among the `ids` but not in the `text`), `length` (as many as asked for), or
    `context` (the model's context is full). `text` is None where no stream was given.
    `cached_tokens` of the prompt were in the session already.
    """

    ids: list[int]
    prompt_tokens: int
    prefill_seconds: float
    decode_seconds: float
    decode_steps: int
    time_to_first_token: float
    stop_reason: str
    stop_id: int | None = None
    stop_string: str | None = None
    text: str | None = None
    cached_tokens: int = 0

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens processed per second."""
        new = self.prompt_tokens - self.cached_tokens
        return new / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Decode steps per second; 0 if there was none."""
        return self.decode_steps / self.decode_seconds if self.decode_seconds else 0.0

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
        }
