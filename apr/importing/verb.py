"""`import_model`: a Hugging Face folder or a GGUF as one `.apr` file, proven before it is in place.

The same act as an export (apr/export/act.py), in the other direction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from apr import families, receipt
from apr.atomic import refuse_existing
from apr.dtypes import DTYPES
from apr.errors import AprError, StorageError, StrPath, UsageError
from apr.export.act import check_integrity, proof_path, write_proven
from apr.export.proof import Proof
from apr.export.report import Check, ExportReport
from apr.formats import OpenedModel
from apr.formats.streaming import Progress, Sources
from apr.importing.problems import open_source
from apr.quant import recoded
from apr.tensors import Bytes, Tensor

# What --quantize may say, and the storage type that it means; None: as in the source.
TYPES: dict[str, str | None] = {"keep": None, "f32": "F32", "f16": "F16", "bf16": "BF16"}
_RELEASE_EVERY = 32 << 20  # bytes
# Metadata of the source that the written file states itself.
_DERIVED = ("hf_architecture", "hf_model_type", "import", "created_at")


def import_model(
    source_path: StrPath,
    output: StrPath,
    *,
    quantize: str = "keep",
    name: str | None = None,
    force: bool = False,
    peers: bool = True,
    prove: bool = True,
    threads: int | None = None,
    on_write: Progress | None = None,
    on_check: Callable[[Check], None] | None = None,
) -> ExportReport:
    """Write a model as a self-contained `.apr` file, and prove that it is the same model.

    The output is written under a temporary name, opened again and compared with the source; only
    if nothing differs is it renamed into place, with the proof beside it as `OUT.proof.json`.

    Args:
        source_path: a Hugging Face folder or a GGUF file.
        output: the `.apr` file to make.
        quantize: `keep` leaves every tensor as it is stored, blocks included; f32, f16 or bf16
            decodes and rounds all of them to that type.
        name: the model's name; the source's own by default.
        force: replace an existing output.
        peers: let transformers (a folder) or llama.cpp (a GGUF) load the source, where installed.
        prove: False only for measuring: the writing alone, no check, and no proof file.
        threads: CPU threads for logits and peers.
        on_write: called with the bytes written since the last call.
        on_check: called after each check.

    Raises:
        UsageError: an unknown type, an output not named `.apr`, or a source that is one already.
        NotFound, InvalidFormat, CorruptFile, ModelLoadError: see `open_source`.
        GateFailed: the proof failed; nothing was put into place.
        StorageError: the output exists (and not `force`), or cannot be written.
    """
    path, target = Path(source_path), Path(output)
    _check_request(path, target, quantize, force)
    source = open_source(path)
    integrity, checksum = check_integrity(source)
    if on_check is not None:
        on_check(integrity)
    planned = apr_tensors(source, quantize)

    def write(temporary: Path) -> None:
        from apr.checkpoint import write_checkpoint

        sources = Sources()
        try:
            write_checkpoint(
                temporary,
                architecture=source.architecture,
                tokenizer=source.require_tokenizer(),
                tensors=[
                    _streamed(tensor, sources, on_write)
                    for tensor in apr_tensors(source, quantize, sources)
                ],
                metadata=apr_metadata(source, quantize, name),
            )
        except AprError as error:  # it names the temporary file, which nobody has heard of
            where = target if Path(error.where) == temporary else error.where
            raise type(error)(where, error.what, error.hint) from error

    return write_proven(
        Proof(source, target, "apr", peers, threads),
        planned,
        write,
        format="apr",
        quantize=None if quantize == "keep" else quantize,
        force=force,
        prove=prove,
        checks=[integrity],
        source_checksum=checksum,
        on_check=on_check,
    )


def apr_tensors(source: OpenedModel, quantize: str, sources: Sources | None = None) -> list[Tensor]:
    """The tensors as they will stand in the file, still lazy."""
    asked = TYPES[quantize]
    out = []
    for spec in families.tensor_specs(source.architecture):
        tensor = source.tensors[spec.name]
        watched = sources.watch(tensor) if sources else tensor
        out.append(recoded(watched, DTYPES[asked]) if asked else watched)
    return out


def apr_metadata(source: OpenedModel, quantize: str, name: str | None) -> dict[str, Any]:
    """What the source says, and where the file comes from: `import` is the receipt of this act."""
    path = source.path
    kept = {key: value for key, value in source.metadata.items() if key not in _DERIVED}
    called = path.resolve().name if path.is_dir() else path.stem
    tokens = source.require_tokenizer().vocab_size
    return {
        **kept,
        "name": name or kept.get("name") or called,
        "source": kept.get("source") or path.resolve().name,
        "created_at": receipt.now(),
        "import": {
            "path": str(path),
            "format": kept.get("original_format", source.format),
            "quantize": quantize,
            "size_bytes": source.size_bytes,
            "filler_tokens": source.architecture.vocab_size - tokens,
            "receipt": receipt.receipt("cpu"),
        },
    }


def _streamed(tensor: Tensor, sources: Sources, progress: Progress | None) -> Tensor:
    """The same tensor, giving back the pages that were read while it is written."""

    def stream() -> Iterator[Bytes]:
        pending = 0
        for piece in tensor.chunks():
            size = piece.size
            yield piece
            if progress is not None:
                progress(size)
            pending += size
            if pending >= _RELEASE_EVERY:
                sources.release()
                pending = 0
        sources.release(forget=True)

    return replace(tensor, stream=stream)


def _check_request(source: Path, target: Path, quantize: str, force: bool) -> None:
    """Everything that can be refused before the source is opened."""
    if quantize not in TYPES:
        raise UsageError("--quantize", f"{quantize!r} is unknown", f"write {', '.join(TYPES)}")
    if target.suffix.lower() != ".apr":
        raise UsageError(
            "-o",
            f"{target} cannot be the output: import writes an .apr file",
            "end its name in .apr; other formats are written by apr export",
        )
    if source.exists() and target.exists() and source.samefile(target):
        raise UsageError("-o", f"{target} is the source itself", "choose another name")
    refuse_existing(target, force)
    refuse_existing(proof_path(target), force)
    if target.is_dir():
        raise StorageError(target, "is a folder, .apr is a file", "choose another name")
