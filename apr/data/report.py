"""What reading the sources met: counts, and the first cases of each kind by name.

Nothing that was asked for is left out without standing here: broken records by file and line,
files that hold no text by their reason. Bounded: counts are exact, examples are the first few.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

EXAMPLES = 20


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that could not be used; `line` counts from 1 (rows, in Parquet)."""

    source: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.source}:{self.line}: {self.reason}"


@dataclass
class SourceReport:
    """The running account of `iter_documents`; one object per pass.

    `bytes_read` counts bytes of the files as they lie on disk (compressed ones compressed), so it
    grows to `bytes_total`, the sum of their sizes. `documents` counts what was handed out.
    """

    files: int = 0
    bytes_total: int = 0
    bytes_read: int = 0
    documents: int = 0
    empty_documents: int = 0
    cuts: int = 0
    bad_records: int = 0
    bad_examples: list[BadRecord] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    skipped_examples: list[tuple[str, str]] = field(default_factory=list)

    @property
    def skipped_files(self) -> int:
        """Files and folders that were left out, all reasons together."""
        return sum(self.skipped.values())

    def bad(self, record: BadRecord) -> None:
        """Count a broken record."""
        self.bad_records += 1
        if len(self.bad_examples) < EXAMPLES:
            self.bad_examples.append(record)

    def skip(self, path: str, reason: str) -> None:
        """Count a file that is left out."""
        self.skipped[reason] += 1
        if len(self.skipped_examples) < EXAMPLES:
            self.skipped_examples.append((path, reason))

    def lines(self) -> list[str]:
        """The report for people: one line per fact that is not zero, then the examples."""
        out = [f"read {self.documents:,} documents from {self.files:,} files"]
        if self.cuts:
            out.append(f"{self.cuts:,} cuts at line borders, in documents that were too long")
        if self.empty_documents:
            out.append(f"{self.empty_documents:,} documents were empty")
        if self.bad_records:
            out.append(f"{self.bad_records:,} broken records:")
            out += [f"  {record}" for record in self.bad_examples]
            if self.bad_records > len(self.bad_examples):
                out.append(f"  and {self.bad_records - len(self.bad_examples):,} more")
        if self.skipped:
            out.append(f"{self.skipped_files:,} files and folders left out:")
            for reason, count in self.skipped.most_common():
                first = next((p for p, why in self.skipped_examples if why == reason), None)
                out.append(f"  {count:,} x {reason}" + (f", e.g. {first}" if first else ""))
        return out

    def summary(self) -> str:
        """The report in half a sentence, for an error message."""
        parts = [f"looked at {self.files:,} files"]
        if self.empty_documents:
            parts.append(f"{self.empty_documents:,} empty documents")
        if self.bad_records:
            parts.append(f"{self.bad_records:,} broken records (first: {self.bad_examples[0]})")
        if self.skipped:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.skipped.items())
            path = self.skipped_examples[0][0]
            parts.append(f"{self.skipped_files:,} left out ({reasons}; first: {path})")
        return "; ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """For the manifest; `from_json` reads it back."""
        return {
            "documents": self.documents,
            "files": self.files,
            "source_bytes": self.bytes_total,
            "empty_documents": self.empty_documents,
            "cuts": self.cuts,
            "bad_records": self.bad_records,
            "bad_examples": [[r.source, r.line, r.reason] for r in self.bad_examples],
            "skipped": dict(sorted(self.skipped.items())),
            "skipped_examples": [list(pair) for pair in self.skipped_examples],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SourceReport:
        """The report of a finished pass, from a manifest."""
        return cls(
            files=data["files"],
            bytes_total=data["source_bytes"],
            bytes_read=data["source_bytes"],
            documents=data["documents"],
            empty_documents=data["empty_documents"],
            cuts=data["cuts"],
            bad_records=data["bad_records"],
            bad_examples=[BadRecord(*row) for row in data["bad_examples"]],
            skipped=Counter(data["skipped"]),
            skipped_examples=[(path, reason) for path, reason in data["skipped_examples"]],
        )
