"""What `apr export` shows: progress on stderr, the proof on stdout."""

from __future__ import annotations

import json
import re
import sys
from types import TracebackType

from apr.errors import UsageError
from apr.export import Check, ExportReport, proof_path

_MARKS = {"pass": "ok", "fail": "FAILED", "skip": "skipped"}
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30}


def bytes_of(text: str) -> int:
    """A size such as 5GB, 500MB or 2GiB, in bytes.

    Raises:
        UsageError: it is no size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?)?B?", text.strip().upper())
    if not found or not (size := int(float(found[1]) * _UNITS[found[2] or ""])):
        raise UsageError("--shard-size", f"{text!r} is no size", "write 5GB, 500MB or 2GiB")
    return size


class Watch:
    """One line on a terminal that says what is going on; silent where stderr is none."""

    def __init__(self, *, quiet: bool) -> None:
        self._live = not quiet and sys.stderr.isatty()
        self._bytes = 0

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._say("")

    def _say(self, text: str) -> None:
        if self._live:
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()

    def wrote(self, count: int) -> None:
        """Further bytes were written."""
        before = self._bytes
        self._bytes += count
        if self._bytes >> 24 != before >> 24 or not before:
            self._say(f"writing {self._bytes / 1e6:,.0f} MB")

    def checked(self, check: Check) -> None:
        """A check is done."""
        self._say(f"proving: {check.id} {_MARKS[check.outcome.verdict]}")


def show(report: ExportReport, *, as_json: bool) -> None:
    """Print a report on stdout."""
    if as_json:
        print(json.dumps(report.to_json(), ensure_ascii=False))
        return
    types = ", ".join(f"{count} x {name}" for name, count in report.dtypes.items())
    speed = report.size_bytes / 1e6 / max(report.write_seconds, 1e-9)
    print(f"  {report.output}")
    print(f"    {report.format}, {report.size_bytes / 1e6:,.1f} MB, tensors {types}")
    print(f"    written in {report.write_seconds:.2f} s ({speed:,.0f} MB/s, flushed to disk)\n")
    if report.inexact:
        print("  INEXACT, as allowed; the proof is about the model without it")
        for entry in report.inexact:
            print(f"    {entry['text']}")
        print()
    print("  Proof")
    width = max(len(check.id) for check in report.checks)
    for check in report.checks:
        mark = _MARKS[check.outcome.verdict]
        print(
            f"    {check.id:<{width}}  {mark:<7}  {check.seconds:6.2f} s  {check.outcome.message}"
        )
    print(f"\n  {proof_path(report.output)}")
