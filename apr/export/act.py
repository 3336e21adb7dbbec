"""The act that import and export share: write, open again, compare, and only then put into place.

Which format is written, and by what, is the caller's business; nothing stays behind if the proof
fails.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from apr import receipt
from apr.atomic import atomic_directory, atomic_file, sync_file
from apr.errors import GateFailed, StrPath
from apr.export.proof import Proof
from apr.export.report import Check, ExportReport, Outcome, timed
from apr.formats import OpenedModel
from apr.tensors import Tensor


def proof_path(output: StrPath) -> Path:
    """Where the proof stands: beside the output, `OUT.proof.json`."""
    out = Path(output)
    return out.with_name(out.name + ".proof.json")


def write_proven(
    proof: Proof,
    planned: Sequence[Tensor],
    write: Callable[[Path], None],
    *,
    format: str,
    quantize: str | None,
    force: bool,
    prove: bool = True,
    checks: Sequence[Check] = (),
    source_checksum: str | None = None,
    inexact: Sequence[dict[str, Any]] = (),
    on_check: Callable[[Check], None] | None = None,
) -> ExportReport:
    """Write an output under a temporary name, prove it, and rename it into place.

    Args:
        proof: source and target, and how they are to be compared.
        planned: the tensors as they will stand in the output.
        write: makes the output at the path that it is given.
        format: the output's format, as the report shall name it.
        quantize: the type that was asked for.
        force: replace an existing output.
        prove: False only for measuring: no check, and no proof file.
        checks: what was asked of the source already.
        source_checksum: of the source's file, where it has one.
        inexact: what the output leaves out knowingly; the proof is then about the rest.
        on_check: called after each check.

    Raises:
        GateFailed: the proof failed; nothing was put into place.
        StorageError: the output exists (and not `force`), or cannot be written.
    """
    target, done = proof.target, list(checks)
    note: AbstractContextManager[Path | None] = (
        atomic_file(proof_path(target), force=force) if prove else nullcontext()
    )
    place: AbstractContextManager[Path] = (
        atomic_directory(target, force=force)
        if proof.format == "hf"
        else atomic_file(target, force=force)
    )
    # Left in reverse order: first the output is renamed into place, then its proof.
    with note as proof_file, place as temporary:
        started = time.perf_counter()
        write(temporary)
        _flush(temporary)
        written_at = time.perf_counter()
        if prove:
            _prove(replace(proof, target=temporary), done, on_check)
        report = ExportReport(
            source=proof.source.path,
            output=target,
            format=format,
            quantize=quantize,
            size_bytes=_size(temporary),
            dtypes=dict(Counter(tensor.dtype.name for tensor in planned)),
            tensor_dtypes={tensor.name: tensor.dtype.name for tensor in planned},
            write_seconds=written_at - started,
            proof_seconds=time.perf_counter() - written_at + sum(c.seconds for c in checks),
            checks=tuple(done),
            receipt=receipt.receipt("cpu"),
            source_checksum=source_checksum,
            inexact=tuple(inexact),
        )
        if report.failures:
            raise GateFailed(
                target,
                "the proof failed, nothing was written: "
                + "; ".join(f"[{c.id}] {c.outcome.message}" for c in report.failures),
                "the source is untouched; see apr qa on it",
            )
        if proof_file is not None:
            proof_file.write_text(_json(report), encoding="utf-8")
    return report


def _json(report: ExportReport) -> str:
    return json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n"


def check_integrity(source: OpenedModel) -> tuple[Check, str | None]:
    """A damaged source is never exported: every byte of an .apr file is verified first."""
    checksum: str | None = None

    def question() -> Outcome:
        nonlocal checksum
        if source.format != "apr":
            return Outcome("skip", f"a source of format {source.format} carries no checksum")
        from apr.checkpoint import verify

        result = verify(source.path)
        checksum = result.checksum
        return Outcome(
            "pass",
            f"checksum {result.checksum} over {result.size_bytes:,} bytes holds",
            {"checksum": result.checksum, "size_bytes": result.size_bytes},
        )

    return timed("source", question), checksum


def _prove(proof: Proof, checks: list[Check], on_check: Callable[[Check], None] | None) -> None:
    for check in proof.run():
        checks.append(check)
        if on_check is not None:
            on_check(check)
        if check.id == "tensors" and check.outcome.verdict == "fail":
            return  # whatever else is asked would only repeat it


def _flush(path: Path) -> None:
    """To disk, so that the time of writing is honest; the flush before renaming is then free."""
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        sync_file(file)


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(file.stat().st_size for file in files)
