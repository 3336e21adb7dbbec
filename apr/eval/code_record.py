"""The record of code that was generated and judged: every sample, and the figures over them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from apr.eval import passing
from apr.eval.figures import Estimate


@dataclass(frozen=True)
class Sample:
    """A completion and its verdict: one of `confined.VERDICTS`, `empty` or `prompt too long`."""

    task_id: str
    completion: str
    verdict: str
    detail: str = ""
    judge_seconds: float = 0.0
    stop_reason: str | None = None
    tokens: int = 0
    generate_seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether it counts."""
        return self.verdict == "passed"


@dataclass(frozen=True)
class CodeRecord:
    """The evaluation of a model by code, JSON-ready. `samples`: all of a problem's in a row."""

    task: str
    model: Mapping[str, Any]
    dataset: str
    dataset_sha256: str
    problems: int
    samples: tuple[Sample, ...]
    ks: tuple[int, ...]
    settings: Mapping[str, Any]
    limits: Mapping[str, Any]
    confinement: Mapping[str, str]
    receipt: Mapping[str, Any]
    floor: float | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def pass_at(self) -> dict[int, Estimate]:
        """pass@k over the problems, by k; for validity, the share that is valid is that at 1."""
        each = int(self.settings["samples"])
        passed = [
            sum(sample.passed for sample in self.samples[start : start + each])
            for start in range(0, len(self.samples), each)
        ]
        return {k: passing.estimate(each, passed, k) for k in self.ks}

    @property
    def share(self) -> float:
        """The share of samples that passed, which is pass@1."""
        return sum(sample.passed for sample in self.samples) / len(self.samples)

    @property
    def verdicts(self) -> dict[str, int]:
        """Samples by verdict, the most frequent first."""
        return dict(Counter(sample.verdict for sample in self.samples).most_common())

    @property
    def tokens(self) -> int:
        """Generated tokens of all samples."""
        return sum(sample.tokens for sample in self.samples)

    @property
    def missed(self) -> bool:
        """Whether a floor was given and does not hold."""
        return self.floor is not None and self.share < self.floor

    def to_json(self) -> dict[str, Any]:
        """One JSON document."""
        seconds = sum(sample.generate_seconds for sample in self.samples)
        return {
            "task": self.task,
            **self.model,
            "dataset": self.dataset,
            "dataset_sha256": self.dataset_sha256,
            "problems": self.problems,
            "samples_per_problem": self.settings["samples"],
            "pass_at": {str(k): figure.to_json() for k, figure in self.pass_at.items()},
            "verdicts": self.verdicts,
            "stop_reasons": dict(
                Counter(one.stop_reason for one in self.samples if one.stop_reason).most_common()
            ),
            "generated_tokens": self.tokens,
            "generated_tokens_per_second": self.tokens / seconds if seconds else None,
            "settings": dict(self.settings),
            "limits": dict(self.limits),
            "confinement": dict(self.confinement),
            "floor": None
            if self.floor is None
            else {"asked": self.floor, "measured": self.share, "passed": not self.missed},
            "results": [asdict(sample) for sample in self.samples],
            "notes": list(self.notes),
            "receipt": dict(self.receipt),
        }
