"""`export`: write a model in another format, prove it, and only then put it into place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from apr import architecture as arch
from apr.atomic import refuse_existing
from apr.errors import StorageError, StrPath, UsageError
from apr.export.act import check_integrity, proof_path, write_proven
from apr.export.inexact import as_llama_cpp_computes
from apr.export.proof import Proof
from apr.export.report import Check, ExportReport
from apr.formats import open_model
from apr.formats.gguf_writer import gguf_tensors, write_gguf_into
from apr.formats.hf_writer import SHARD_BYTES, hf_tensors, write_hf_into
from apr.formats.streaming import Progress, requested_dtype

FORMATS = {"gguf": "gguf", "safetensors": "hf"}


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
    allow_inexact: bool = False,
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
        allow_inexact: write a GGUF although llama.cpp computes something else from it; what, and by
            how much, stands in the report and in the file (`apr.inexact`).
        on_write: called with the bytes written since the last call.
        on_check: called after each check.

    Raises:
        UsageError: a format, type or output name that does not fit.
        NotFound, InvalidFormat, CorruptFile: the source cannot be opened, or is damaged.
        ModelLoadError: the source lacks tokenizer or tensors.
        GateFailed: llama.cpp cannot express a property of the model, and that is not allowed (or
            it would not load the file); nothing was written.
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
    integrity, checksum = check_integrity(source)
    if on_check is not None:
        on_check(integrity)
    kind = FORMATS[format]
    inexact: list[dict[str, Any]] = []
    if kind == "gguf":
        source, inexact = as_llama_cpp_computes(source, allowed=allow_inexact, threads=threads)
    # Refuses types and pre-tokenizers that cannot be written, before anything is.
    planned = gguf_tensors(source, quantize) if kind == "gguf" else hf_tensors(source, quantize)[0]

    def write(temporary: Path) -> None:
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

    return write_proven(
        Proof(source, target, kind, peers, threads),
        planned,
        write,
        format=format,
        quantize=quantize,
        force=force,
        prove=prove,
        checks=[integrity],
        source_checksum=checksum,
        inexact=inexact,
        on_check=on_check,
    )


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
