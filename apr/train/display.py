"""What a person sees while a run goes on, on stderr: a live line on a terminal, else plain lines.

Every figure shown is also in `metrics.jsonl`; nothing is computed here.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

    from apr.train.balance import Balance


@dataclass(frozen=True, slots=True)
class Figures:
    """The state of a run at one step; losses in nats per token, times in seconds."""

    step: int
    num_steps: int
    loss: float
    lr: float
    grad_norm: float
    tokens_per_second: float | None
    mfu: float | None
    tokens_seen: int
    unique_tokens: int
    data_epochs: float
    seconds_left: float | None
    validation_loss: float | None = None
    validation_se: float | None = None
    bits_per_byte: float | None = None
    balance: Balance | None = None

    def parts(self) -> list[tuple[str, str]]:
        """Names and values, in the order in which they are shown."""
        speed = "-" if self.tokens_per_second is None else f"{self.tokens_per_second:,.0f}"
        mfu = "unknown" if self.mfu is None else f"{100 * self.mfu:.1f} %"
        return [
            ("step", f"{self.step:,}/{self.num_steps:,}"),
            ("loss", f"{self.loss:.4f}"),
            ("val", loss_text(self.validation_loss, self.validation_se)),
            ("bits/byte", "-" if self.bits_per_byte is None else f"{self.bits_per_byte:.3f}"),
            ("lr", f"{self.lr:.2e}"),
            ("grad", f"{self.grad_norm:.2f}"),
            *([] if self.balance is None else [("experts", self.balance.text())]),
            ("tok/s", speed),
            ("MFU", mfu),
            ("unique", count_text(self.unique_tokens)),
            ("epoch", f"{self.data_epochs:.2f}"),
            ("left", "-" if self.seconds_left is None else time_text(self.seconds_left)),
        ]


def loss_text(loss: float | None, error: float | None) -> str:
    """A validation loss with its standard error."""
    if loss is None:
        return "-"
    return f"{loss:.4f} ± {error:.4f}" if error is not None else f"{loss:.4f} ± unknown"


def count_text(count: float) -> str:
    """A count in three digits: 12.3k, 4.56M."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return f"{count:.0f}"


def time_text(seconds: float) -> str:
    """A duration: 42 s, 3:05, 2:10:00."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def escaped(text: str) -> str:
    """Text on one line, control characters spelled out, so that no sample moves the cursor."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Display(Protocol):
    """Where a run's progress goes."""

    def start(self) -> None:
        """The run begins."""

    def note(self, text: str) -> None:
        """A line that stays."""

    def figures(self, figures: Figures, *, report: bool) -> None:
        """The newest figures; `report` at each log interval."""

    def stop(self) -> None:
        """The run ends, for whatever reason."""


class Silent:
    """Shows nothing (for the Python API and the tests)."""

    def start(self) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def figures(self, figures: Figures, *, report: bool) -> None:
        """Nothing."""

    def stop(self) -> None:
        """Nothing."""


class Plain(Silent):
    """One plain line per log interval."""

    def note(self, text: str) -> None:
        """Print the line."""
        print(text, file=sys.stderr, flush=True)

    def figures(self, figures: Figures, *, report: bool) -> None:
        """Print one line at each log interval."""
        if report:
            self.note("  ".join(f"{name} {value}" for name, value in figures.parts()))


class LiveLine:
    """A bar and one row of figures that refresh in place; notes scroll above."""

    def __init__(self) -> None:
        self._live: Live | None = None
        self._last: Figures | None = None
        self._drawn = 0.0

    def start(self) -> None:
        """Take the last lines of the terminal."""
        from rich.console import Console
        from rich.live import Live

        self._live = Live(console=Console(stderr=True), auto_refresh=False, transient=False)
        self._live.start()

    def note(self, text: str) -> None:
        """Print the line above the live one."""
        if self._live is None:
            print(text, file=sys.stderr, flush=True)
        else:
            self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def figures(self, figures: Figures, *, report: bool) -> None:
        """Redraw, at most eight times a second."""
        self._last = figures
        now = time.perf_counter()
        if self._live is not None and now - self._drawn > 0.125:
            self._drawn = now
            self._live.update(_table(figures), refresh=True)

    def stop(self) -> None:
        """Leave the last figures standing and give the terminal back."""
        if self._live is not None:
            if self._last is not None:
                self._live.update(_table(self._last), refresh=True)
            self._live.stop()
            self._live = None


def _table(figures: Figures) -> Table:
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    outer = Table.grid(expand=True)
    outer.add_row(ProgressBar(total=figures.num_steps, completed=figures.step))
    row: Any = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    parts = figures.parts()
    for name, _ in parts:
        row.add_column(name, no_wrap=True)
    row.add_row(*(value for _, value in parts))
    outer.add_row(row)
    return outer


def for_terminal() -> Display:
    """A live line where stderr is a terminal, plain lines elsewhere."""
    return LiveLine() if sys.stderr.isatty() else Plain()
