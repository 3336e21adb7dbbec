"""An `.apr` file as an `OpenedModel`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from apr import architecture as arch
from apr.formats.opened import OpenedModel

if TYPE_CHECKING:
    from apr.tokenizer import Tokenizer


def open_apr(path: Path) -> OpenedModel:
    """Open an `.apr` file; its header and index are checked, its weights are not read.

    Raises:
        NotFound: there is no such file.
        InvalidFormat: not `.apr`, unknown architecture, or missing keys, by name.
        CorruptFile: a checksum or bound does not hold.
    """
    from apr.checkpoint import AprFile

    file = AprFile.open(path)

    def load_tokenizer() -> Tokenizer | None:
        from apr.tokenizer import Tokenizer

        return Tokenizer.from_metadata(file.metadata)

    return OpenedModel(
        path=path,
        format="apr",
        architecture=arch.from_metadata(file.metadata, path),
        tensors=file.tensors,
        metadata=file.metadata,
        load_tokenizer=load_tokenizer,
        size_bytes=file.size_bytes,
    )
