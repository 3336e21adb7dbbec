"""`metrics.jsonl`: one JSON object a line, for programs; and the loss curve as a picture.

Kinds: `run` (settings and receipt, at each start), `step` (every step: loss, lr, grad_norm),
`report` (speed, at each log interval), `evaluation`, `event`, `end`. Resuming removes the lines
after the state it resumes from, so that the file reads as one run.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from apr.atomic import atomic_file, explain, write_text


class MetricsLog:
    """Appends lines; whole lines only reach the file, at `flush`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: list[str] = []

    def add(self, kind: str, **values: Any) -> None:
        """Queue one line. Non-finite figures are written as text: JSON has none."""
        self._lines.append(json.dumps({"kind": kind, **{k: _plain(v) for k, v in values.items()}}))

    def flush(self, *, durable: bool = False) -> None:
        """Write the queued lines; `durable` also waits for the disk.

        Raises:
            StorageError: the file cannot be written.
        """
        data = "".join(line + "\n" for line in self._lines).encode()
        try:
            with self.path.open("ab", buffering=0) as file:
                if data:
                    file.write(data)
                if durable:
                    os.fsync(file.fileno())
        except OSError as error:
            raise explain(error, self.path) from error
        self._lines.clear()

    def rewind(self, step: int) -> int:
        """Drop what was written after `step`, and a last line that was cut; lines dropped."""
        kept, dropped = [], 0
        for line in read_lines(self.path):
            if line.get("step", 0) <= step and line["kind"] != "end":
                kept.append(json.dumps(line))
            else:
                dropped += 1
        write_text(self.path, "".join(line + "\n" for line in kept), force=True)
        return dropped


def _plain(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file; a last line that was cut by a kill is left out."""
    out = []
    if path.exists():
        for raw in path.read_bytes().split(b"\n"):
            try:
                line = json.loads(raw)
            except ValueError:
                continue
            if isinstance(line, dict) and "kind" in line:
                out.append(line)
    return out


def draw_curve(metrics: Path, target: Path, title: str) -> None:
    """Draw training and validation loss over steps as a PNG.

    Raises:
        StorageError: the picture cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    lines = read_lines(metrics)
    steps = [(x["step"], x["loss"]) for x in lines if x["kind"] == "step"]
    steps = [(s, v) for s, v in steps if isinstance(v, float)]
    evaluations = [x for x in lines if x["kind"] == "evaluation"]
    figure = Figure(figsize=(8, 4.5), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    if steps:
        xs = [s for s, _ in steps]
        axes.plot(xs, [v for _, v in steps], color="#b8c4d6", linewidth=0.8, label="training, step")
        axes.plot(xs, _smooth([v for _, v in steps]), color="#1f4e8c", label="training, smoothed")
    if evaluations:
        axes.errorbar(
            [x["step"] for x in evaluations],
            [x["loss"] for x in evaluations],
            yerr=[x["standard_error"] or 0.0 for x in evaluations],
            color="#c2410c",
            marker="o",
            markersize=4,
            capsize=3,
            label="validation ± standard error",
        )
    axes.set(xlabel="step", ylabel="loss (nats per token)", title=title)
    axes.grid(alpha=0.25)
    if steps or evaluations:
        axes.legend()
    with atomic_file(target, force=True) as temporary:
        figure.savefig(temporary, format="png")


def _smooth(values: list[float], past: float = 0.95) -> list[float]:
    out, mean, weight = [], 0.0, 0.0
    for value in values:
        mean, weight = past * mean + (1 - past) * value, past * weight + (1 - past)
        out.append(mean / weight)
    return out
