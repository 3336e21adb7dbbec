"""The progress bar of a build: on stderr, and only where that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """How far a build is: bytes of the source files as they lie on disk, documents, tokens."""

    bytes_read: int
    bytes_total: int
    documents: int
    tokens: int


Report = Callable[[BuildProgress], None]


@contextmanager
def terminal_bar(title: str = "tokenizing") -> Iterator[Report]:
    """Yield a function that draws the state it is given; it does nothing without a terminal."""
    if not sys.stderr.isatty():
        yield lambda state: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[tokens]:,} tokens"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None, tokens=0)

        def draw(state: BuildProgress) -> None:
            bar.update(
                task,
                completed=state.bytes_read,
                total=state.bytes_total,
                tokens=state.tokens,
            )

        yield draw
