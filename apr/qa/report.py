"""What a qa run found: frozen data, and its JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Verdict = Literal["pass", "fail", "skip"]
Figure = float | int | str | None


class Skip(Exception):
    """Raised by a gate that has nothing to check; the text is the reason."""


@dataclass(frozen=True)
class Finding:
    """What one gate measured. `value` is held against `threshold`; `details`: further ones."""

    passed: bool
    message: str
    value: Figure = None
    threshold: Figure = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class GateResult:
    """One gate's line in the report. `reason` says why it was skipped."""

    id: str
    name: str
    verdict: Verdict
    message: str
    value: Figure = None
    threshold: Figure = None
    duration_ms: float = 0.0
    reason: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The line as JSON-ready values; `passed` is null for a skipped gate."""
        return {
            "id": self.id,
            "name": self.name,
            "passed": None if self.verdict == "skip" else self.verdict == "pass",
            "verdict": self.verdict,
            "message": self.message,
            "value": self.value,
            "threshold": self.threshold,
            "duration_ms": round(self.duration_ms, 3),
            "skipped": self.verdict == "skip",
            "reason": self.reason,
            "details": dict(self.details),
        }


@dataclass(frozen=True)
class Report:
    """All gates of one run."""

    model: str
    format: str
    gates: tuple[GateResult, ...]
    min_executed: int
    duration_ms: float
    timestamp: str
    system: Mapping[str, Any]
    plan: Mapping[str, Any] | None
    against: str | None = None

    @property
    def executed(self) -> int:
        """Gates that ran."""
        return sum(g.verdict != "skip" for g in self.gates)

    @property
    def failed(self) -> list[str]:
        """Names of the gates that failed."""
        return [g.name for g in self.gates if g.verdict == "fail"]

    @property
    def passed(self) -> bool:
        """Every executed gate passed, and enough were executed."""
        return not self.failed and self.executed >= self.min_executed

    @property
    def summary(self) -> str:
        """The verdict in one sentence."""
        skipped = len(self.gates) - self.executed
        if self.failed:
            return f"{len(self.failed)} of {self.executed} gates failed: {', '.join(self.failed)}"
        if self.executed < self.min_executed:
            return (
                f"only {self.executed} gates were executed, at least {self.min_executed} must be "
                f"({skipped} skipped)"
            )
        return f"all {self.executed} executed gates passed, {skipped} skipped"

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-ready values."""
        return {
            "model": self.model,
            "format": self.format,
            "against": self.against,
            "passed": self.passed,
            "gates": [g.to_json() for g in self.gates],
            "gates_executed": self.executed,
            "gates_skipped": len(self.gates) - self.executed,
            "min_executed": self.min_executed,
            "total_duration_ms": round(self.duration_ms, 3),
            "timestamp": self.timestamp,
            "summary": self.summary,
            "engine": self.plan,
            "system_info": dict(self.system),
        }
