"""Reading what a run left, and stopping one at a step."""

import json
import os
import signal
from pathlib import Path

from apr.train.display import Silent


def metrics(run_dir, kind: str) -> list[dict]:
    lines = (Path(run_dir) / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["kind"] == kind]


def losses(run_dir) -> list[tuple[int, float, float]]:
    return [(line["step"], line["loss"], line["grad_norm"]) for line in metrics(run_dir, "step")]


def validation_losses(run_dir) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in metrics(run_dir, "evaluation")]


class Notes(Silent):
    """Keeps what a person would have read; at `stop_at`, the signal that a person would send."""

    def __init__(self, stop_at: int | None = None, number: int = signal.SIGTERM) -> None:
        self.lines: list[str] = []
        self.stop_at, self.number = stop_at, number

    def note(self, text: str) -> None:
        self.lines.append(text)

    def figures(self, figures, *, report: bool) -> None:
        if figures.step == self.stop_at:
            self.stop_at = None  # once: a second Ctrl-C means at once
            os.kill(os.getpid(), self.number)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)
