"""What the loop works with, and where it stands: the pieces that are injected, and the progress.

`Parts` is made once, by `apr.train.session`; `Progress` is all of a run's own state that is no
tensor, and goes into every resume state as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from apr.model.decoder import Decoder
from apr.train.display import Display
from apr.train.evaluate import Windows
from apr.train.log import MetricsLog
from apr.train.settings import Settings

if TYPE_CHECKING:
    from apr.tokenizer import Tokenizer


class BatchSource(Protocol):
    """What is needed of `apr.data.Batches`."""

    tokens_seen: int

    @property
    def epoch(self) -> int:
        """Passes over the data that are finished."""

    @property
    def unique_tokens(self) -> int:
        """Distinct tokens given out so far."""

    def next(self) -> npt.NDArray[np.int64]:
        """The next `[batch, seq + 1]` ids; raises `DataExhausted`."""

    def state(self) -> dict[str, Any]:
        """The exact position."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a position."""


@dataclass
class Parts:
    """What the loop works with."""

    run_dir: Path
    name: str
    model: Decoder
    tokenizer: Tokenizer
    optimizer: torch.optim.Optimizer
    batches: BatchSource
    windows: Windows
    settings: Settings
    log: MetricsLog
    display: Display
    record: Callable[[dict[str, Any]], dict[str, Any]]  # figures -> the training record
    saved_values: dict[str, Any]  # what state.json holds beside the loop's own
    exhausted: type[Exception]


@dataclass
class Progress:
    """Where the run stands; all of it is in the state."""

    step: int = 0
    epoch: int = 0
    train_seconds: float = 0.0
    seconds: float = 0.0
    last_loss: float = float("nan")
    best_loss: float | None = None
    best_step: int = 0
    best_epoch: int = 0
    last_checkpoint: str | None = None
    last_evaluation: dict[str, Any] | None = None
    best_evaluation: dict[str, Any] | None = None
    passes_reported: int = 0
