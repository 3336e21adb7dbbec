"""Batches of token windows in an order that is a function of (seed, epoch) alone.

An epoch cuts the tokens into windows that do not overlap, from an offset of its own, and visits
each once, in the order of a permutation that is computed, not stored. The position is therefore a
handful of numbers, and a resumed run goes on exactly where it was. That the data ran out is an
event with a policy chosen before the start, never a silent wrap-around.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from apr.data.permutation import Permutation, mixed
from apr.errors import GateFailed, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from apr.data.dataset import TokenDataset

ON_EXHAUSTED = ("repeat", "stop", "error")


class DataExhausted(GateFailed):
    """The policy is "stop" and every window was seen: an event, to be caught by the trainer."""


class Tokens(Protocol):
    """What batches are cut from (`TokenArray` is one)."""

    def __len__(self) -> int: ...

    def slice(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Tokens `start` to `stop`, int64."""


class Batches:
    """Training batches, `[batch_size, seq_len + 1]`: the targets are the inputs shifted by one.

    An epoch ends in the middle of a batch when its windows are no multiple of `batch_size`: with
    "repeat" the batch is filled from the next epoch, so no window is ever left out; with "stop" and
    "error" that last, incomplete batch is not given out.

    Args:
        tokens: the training tokens.
        batch_size: windows in a batch.
        seq_len: predicted tokens in a window.
        seed: with the epoch's number it decides the order.
        on_exhausted: "repeat" goes on with the next epoch; "stop" raises `DataExhausted` after one;
            "error" raises `GateFailed`.

    Raises:
        UsageError: a wrong value, or fewer tokens than one batch needs.
    """

    def __init__(
        self,
        tokens: Tokens,
        batch_size: int,
        seq_len: int,
        seed: int = 0,
        on_exhausted: str = "repeat",
    ) -> None:
        if on_exhausted not in ON_EXHAUSTED:
            raise UsageError(
                "--on-exhausted", f"{on_exhausted!r} is unknown", f"write {', '.join(ON_EXHAUSTED)}"
            )
        check_train_tokens(len(tokens), batch_size, seq_len)
        self._tokens = tokens
        self.batch_size = batch_size
        self.seq_len = seq_len
        self.seed = seed
        self.on_exhausted = on_exhausted
        self.tokens_seen = 0
        # Targets of finished epochs lie between these two, without a gap: all epochs cover the
        # middle, and differ at both ends by less than a window.
        self._covered = (0, 0)
        self._order: Permutation
        self._start_epoch(0)

    @property
    def epoch(self) -> int:
        """Epochs that are finished: 0 during the first."""
        return self._epoch

    @property
    def windows_left(self) -> int:
        """Windows of the present epoch that were not given out."""
        return len(self._order) - self._window

    @property
    def unique_tokens(self) -> int:
        """Distinct target tokens given out so far.

        Exact through the first epoch and at the end of each; in between it leaves out what a later
        epoch adds at the two ends, less than a window each.
        """
        in_first = self._window * self.seq_len if self._epoch == 0 else 0
        return in_first + self._covered[1] - self._covered[0]

    def next(self) -> npt.NDArray[np.int64]:
        """The next batch, int64 `[batch_size, seq_len + 1]`.

        Raises:
            DataExhausted: policy "stop", and the epoch has no whole batch left.
            GateFailed: the same with policy "error".
        """
        import numpy as np

        if self.windows_left < self.batch_size and self.on_exhausted != "repeat":
            self._exhausted()
        out = np.empty((self.batch_size, self.seq_len + 1), dtype=np.int64)
        row = 0
        while row < self.batch_size:
            count = min(self.batch_size - row, self.windows_left)
            for window in self._order.at(self._window, self._window + count):
                start = self._offset + int(window) * self.seq_len
                out[row] = self._tokens.slice(start, start + self.seq_len + 1)
                row += 1
            self._window += count
            self.tokens_seen += count * self.seq_len
            if self.windows_left == 0 and self.on_exhausted == "repeat":
                self._finish_epoch()
        return out

    def state(self) -> dict[str, Any]:
        """The exact position, for `restore`; JSON-ready."""
        return {
            "seed": self.seed,
            "tokens": len(self._tokens),
            "batch_size": self.batch_size,
            "seq_len": self.seq_len,
            "epoch": self._epoch,
            "window": self._window,
            "tokens_seen": self.tokens_seen,
            "covered": list(self._covered),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go to a position that `state` gave.

        Raises:
            UsageError: it was taken with other data or settings, so the order would differ.
        """
        now = self.state()
        for key in ("seed", "tokens", "batch_size", "seq_len"):
            if state.get(key) != now[key]:
                raise UsageError(
                    "--resume",
                    f"the run had {key} {state.get(key)}, now it is {now[key]}",
                    "resume with the data and settings of the run, or start a new one",
                )
        self._start_epoch(int(state["epoch"]))
        if not 0 <= int(state["window"]) <= len(self._order):
            raise UsageError("--resume", f"position {state['window']} is not in the epoch")
        self._window = int(state["window"])
        self.tokens_seen = int(state["tokens_seen"])
        low, high = state["covered"]
        self._covered = (int(low), int(high))

    def _start_epoch(self, epoch: int) -> None:
        self._epoch = epoch
        self._window = 0
        length = len(self._tokens)
        # The first batch must be whole whatever the offset.
        room = min(self.seq_len, length - self.batch_size * self.seq_len)
        self._offset = mixed(self.seed, epoch, 0) % room
        windows = (length - 1 - self._offset) // self.seq_len
        self._order = Permutation(windows, mixed(self.seed, epoch, 1))

    def _finish_epoch(self) -> None:
        low = self._offset + 1
        high = low + len(self._order) * self.seq_len
        if self._epoch:
            low, high = min(low, self._covered[0]), max(high, self._covered[1])
        self._covered = (low, high)
        self._start_epoch(self._epoch + 1)

    def _exhausted(self) -> None:
        kind = DataExhausted if self.on_exhausted == "stop" else GateFailed
        left = f" ({self.windows_left} windows left make no batch)" if self.windows_left else ""
        raise kind(
            "training data",
            f"exhausted after one epoch: {self.tokens_seen:,} tokens were seen once{left}",
            "more text, or the policy that repeats it, lets the run go on",
        )


def check_train_tokens(tokens: int, batch_size: int, seq_len: int) -> None:
    """Refuse a split that does not fill one batch.

    Raises:
        UsageError: naming both figures; or sizes below 1.
    """
    for name, value in (("--batch-size", batch_size), ("--seq-length", seq_len)):
        if value < 1:
            raise UsageError(name, f"{value} is not at least 1")
    needed = batch_size * (seq_len + 1)
    if tokens < needed:
        raise UsageError(
            "--dataset",
            f"the corpus has {tokens:,} training tokens, one batch needs "
            f"{batch_size} x {seq_len + 1} = {needed:,}",
            "use more text, a smaller --batch-size or a shorter --seq-length",
        )


def check_enough(dataset: TokenDataset, batch_size: int, seq_len: int) -> None:
    """Refuse a dataset with less than one training batch, or nothing to validate on.

    Raises:
        UsageError: with the figures and what to change.
    """
    check_train_tokens(len(dataset.train), batch_size, seq_len)
    if len(dataset.validation) < 2:
        raise UsageError(
            "--dataset",
            f"the corpus has {len(dataset.validation)} validation tokens, 2 are the least",
            "use more text or a larger validation fraction",
        )


def validation_windows(tokens: int, seq_len: int, max_tokens: int | None) -> tuple[int, int]:
    """(windows, tokens that are predicted) of a validation pass over `tokens` tokens.

    What is left at the end and fills no window is left out, except where it is all there is: then
    it is one shorter window.
    """
    length = min(seq_len, max(tokens - 1, 0))
    windows = (tokens - 1) // length if length else 0
    if max_tokens is not None:
        windows = min(windows, max(max_tokens // max(length, 1), 1))
    return windows, windows * length


def validation_batches(
    tokens: Tokens, batch_size: int, seq_len: int, max_tokens: int | None = None
) -> Iterator[npt.NDArray[np.int64]]:
    """Validation batches, int64 `[rows, seq_len + 1]`: the same at each call, in order, disjoint.

    All of the set, or, with `max_tokens`, that many predicted tokens in windows spread evenly over
    it (at least one window). The last batch may have fewer rows than `batch_size`. See
    `validation_windows` for what is left out.
    """
    import numpy as np

    length = min(seq_len, max(len(tokens) - 1, 0))
    whole, _ = validation_windows(len(tokens), seq_len, None)
    count, _ = validation_windows(len(tokens), seq_len, max_tokens)
    for first in range(0, count, batch_size):
        rows = []
        for index in range(first, min(first + batch_size, count)):
            start = index * whole // count * length
            rows.append(tokens.slice(start, start + length + 1))
        yield np.stack(rows)
