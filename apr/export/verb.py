"""`export`: write a model in another format, prove it, and only then put it into place."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from apr import architecture as arch
from apr import receipt
from apr.atomic import atomic_directory, atomic_file, refuse_existing, sync_file
from apr.errors import GateFailed, StorageError, StrPath, UsageError
from apr.export.proof import Proof
from apr.export.report import Check, ExportReport, Outcome, timed
from apr.formats import OpenedModel, open_model
from apr.formats.gguf_writer import gguf_tensors, write_gguf_into
from apr.formats.hf_writer import SHARD_BYTES, hf_tensors, write_hf_into
from apr.formats.streaming import Progress, requested_dtype

FORMATS = {"gguf": "gguf", "safetensors": "hf"}


def proof_path(output: StrPath) -> Path:
    """Where the proof stands: beside the output, `OUT.proof.json`."""
    out = Path(output)
    return out.with_name(out.name + ".proof.json")


def export(
    model_path: StrPath,
    output: StrPath,
    *,
    format: str,
    quantize: str | None = None,
    name: str | None = None,
    force: bool = False,
    peers: bool = True,
    prove: bool = True,
    shard_bytes: int = SHARD_BYTES,
    threads: int | None = None,
    on_write: Progress | None = None,
    on_check: Callable[[Check], None] | None = None,
) -> ExportReport:
    """Write a model as GGUF or as a Hugging Face folder, and prove that it is the same model.

    The output is written under a temporary name, opened again and compared with the source; only
    if nothing differs is it renamed into place, with the proof beside it as `OUT.proof.json`.

    Args:
        model_path: an .apr file, a GGUF file or a Hugging Face folder.
        output: the file (gguf) or folder (safetensors) to make.
        format: `gguf` or `safetensors`.
        quantize: f32, f16, bf16, q8_0 (gguf only); None keeps each tensor's own type.
        name: the model's name in the output; the source's own by default.
        force: replace an existing output.
        peers: let llama.cpp and transformers load the output, where installed.
        prove: False only for measuring: the writing alone, no check, and no proof file.
        shard_bytes: safetensors beyond this go into several files.
        threads: CPU threads for logits and peers.
        on_write: called with the bytes written since the last call.
        on_check: called after each check.

    Raises:
        UsageError: a format, type or output name that does not fit.
        NotFound, InvalidFormat, CorruptFile: the source cannot be opened, or is damaged.
        ModelLoadError: the source lacks tokenizer or tensors.
        GateFailed: llama.cpp cannot express a property of the model; nothing was written.
        FeatureUnavailable: GGUF has no name for what its tokenizer does.
        GateFailed: the proof failed; nothing was put into place.
        StorageError: the output exists (and not `force`), or cannot be written.
    """
    source_path, target = Path(model_path), Path(output)
    _check_request(source_path, target, format, quantize, force)
    source = open_model(source_path)
    arch.check(source.architecture, source_path)
    source.check_tensors()
    source.require_tokenizer()
    integrity, checksum = _integrity(source)
    if on_check is not None:
        on_check(integrity)
    kind = FORMATS[format]
    # Refuses types and pre-tokenizers that cannot be written, before anything is.
    planned = gguf_tensors(source, quantize) if kind == "gguf" else hf_tensors(source, quantize)[0]
    checks = [integrity]
    note: AbstractContextManager[Path | None] = (
        atomic_file(proof_path(target), force=force) if prove else nullcontext()
    )
    place: AbstractContextManager[Path] = (
        atomic_file(target, force=force)
        if kind == "gguf"
        else atomic_directory(target, force=force)
    )
    # Left in reverse order: first the output is renamed into place, then its proof.
    with note as proof_file, place as temporary:
        started = time.perf_counter()
        if kind == "gguf":
            write_gguf_into(temporary, source, quantize=quantize, name=name, progress=on_write)
        else:
            write_hf_into(
                temporary,
                source,
                quantize=quantize,
                name=name,
                shard_bytes=shard_bytes,
                progress=on_write,
            )
        _flush(temporary)
        written_at = time.perf_counter()
        if prove:
            _prove(Proof(source, temporary, kind, peers, threads), checks, on_check)
        report = ExportReport(
            source=source_path,
            output=target,
            format=format,
            quantize=quantize,
            size_bytes=_size(temporary),
            dtypes=dict(Counter(tensor.dtype.name for tensor in planned)),
            tensor_dtypes={tensor.name: tensor.dtype.name for tensor in planned},
            write_seconds=written_at - started,
            proof_seconds=time.perf_counter() - written_at + integrity.seconds,
            checks=tuple(checks),
            receipt=receipt.receipt("cpu"),
            source_checksum=checksum,
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


def _check_request(
    source: Path, target: Path, format: str, quantize: str | None, force: bool
) -> None:
    """Everything that can be refused before the source is opened."""
    if format not in FORMATS:
        raise UsageError("--format", f"{format!r} is unknown", f"write {' or '.join(FORMATS)}")
    requested_dtype(quantize, "gguf" if format == "gguf" else "hf")
    suffix = target.suffix.lower()
    if suffix == ".apr" or (format == "safetensors" and suffix in (".gguf", ".safetensors")):
        kind = "a folder" if format == "safetensors" else "a file that ends in .gguf"
        raise UsageError("-o", f"{target} cannot be the output: {format} is {kind}", "rename it")
    refuse_existing(target, force)
    refuse_existing(proof_path(target), force)
    if not target.exists():
        return
    if source.exists() and source.samefile(target):
        raise UsageError("-o", f"{target} is the source itself", "choose another name")
    if format == "gguf" and target.is_dir():
        raise StorageError(target, "is a folder, GGUF is a file", "choose another name")
    if format == "safetensors":
        # --force replaces a model, never somebody's folder of other things.
        if not target.is_dir():
            raise StorageError(
                target, "is a file, safetensors makes a folder", "rename one of them"
            )
        if any(target.iterdir()) and not (target / "config.json").is_file():
            raise StorageError(
                target,
                "exists and is no Hugging Face folder, so --force does not replace it",
                "choose another name",
            )


def _integrity(source: OpenedModel) -> tuple[Check, str | None]:
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
