"""What an export proved: one `Check` for each question, all of them in an `ExportReport`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Verdict = Literal["pass", "fail", "skip"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A verdict with its figures; `message` says what was compared, or why it was not."""

    verdict: Verdict
    message: str
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Check:
    """One executed (or skipped) check of the proof; `seconds` is wall clock."""

    id: str
    outcome: Outcome
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "id": self.id,
            "verdict": self.outcome.verdict,
            "message": self.outcome.message,
            "figures": self.outcome.figures,
            "seconds": round(self.seconds, 3),
        }


def timed(check_id: str, function: Callable[[], Outcome]) -> Check:
    """Run a check with its time."""
    started = time.perf_counter()
    outcome = function()
    return Check(check_id, outcome, time.perf_counter() - started)


def passed(message: str, **figures: Any) -> Outcome:
    """What was asked for holds."""
    return Outcome("pass", message, figures)


def failed(message: str, **figures: Any) -> Outcome:
    """It does not hold."""
    return Outcome("fail", message, figures)


def skipped(reason: str) -> Outcome:
    """It could not be asked here; not a pass."""
    return Outcome("skip", reason)


@dataclass(frozen=True)
class ExportReport:
    """What was written and how it was proven.

    `dtypes` counts the tensors of the output by storage type, `tensor_dtypes` names each one's.
    `inexact` is what was left out with --allow-inexact, each with its figures: the checks are about
    the model without it. Sizes are bytes, times seconds; `write_seconds` covers conversion, writing
    and flushing to disk.
    """

    source: Path
    output: Path
    format: str
    quantize: str | None
    size_bytes: int
    dtypes: dict[str, int]
    tensor_dtypes: dict[str, str]
    write_seconds: float
    proof_seconds: float
    checks: tuple[Check, ...]
    receipt: dict[str, Any]
    source_checksum: str | None = None
    inexact: tuple[dict[str, Any], ...] = ()

    @property
    def failures(self) -> list[Check]:
        """The checks that failed."""
        return [c for c in self.checks if c.outcome.verdict == "fail"]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready: what stands in `OUT.proof.json`."""
        return {
            "source": str(self.source),
            "source_checksum": self.source_checksum,
            "output": str(self.output),
            "format": self.format,
            "quantize": self.quantize,
            "size_bytes": self.size_bytes,
            "dtypes": self.dtypes,
            "write_seconds": round(self.write_seconds, 3),
            "proof_seconds": round(self.proof_seconds, 3),
            "passed": not self.failures,
            "inexact": list(self.inexact),
            "executed": sum(c.outcome.verdict != "skip" for c in self.checks),
            "skipped": sum(c.outcome.verdict == "skip" for c in self.checks),
            "checks": [c.to_json() for c in self.checks],
            "tensor_dtypes": self.tensor_dtypes,
            "receipt": self.receipt,
        }
