"""`AprFile`: a mapped `.apr` file whose weights are unread until somebody asks for them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from apr.checkpoint import metadata
from apr.checkpoint.layout import FOOTER_SIZE, Entry, Flag, Header
from apr.checkpoint.structure import Buffer, Index, read_header, read_index
from apr.errors import StrPath
from apr.mapped import Mapped
from apr.tensors import Bytes, Tensor


class AprFile:
    """An opened file: `header`, `metadata` (parsed on first use), `tensors` (views, by name).

    Opening checks header and index completely and reads nothing else; `verify` reads every byte.
    Views stay valid as long as they are referred to, also when the file is replaced by a rename;
    a file that is shortened in place under a reader is beyond help, which is why we never do that.
    """

    def __init__(self, path: StrPath, buffer: Buffer, size: int) -> None:
        """Check a file's bytes; `open` is the usual way in.

        Args:
            path: named in errors.
            buffer: the whole file.
            size: its length in bytes.

        Raises:
            InvalidFormat: another format, version, dtype, or a flag that cannot be honoured.
            CorruptFile: cut short, or a checksum, bound, order or size does not hold.
        """
        self.path = Path(path)
        self.buffer = buffer
        self.size_bytes = size
        self.header: Header = read_header(path, buffer, size)
        self.index: Index = read_index(path, buffer, self.header, size)

    @classmethod
    def open(cls, path: StrPath) -> AprFile:
        """Map and check a file.

        Raises:
            NotFound: it does not exist, or is not a file.
            StorageError: it cannot be read.
            InvalidFormat, CorruptFile: see `__init__`, and if it is empty.
        """
        mapped = Mapped(path)
        return cls(path, mapped.buffer, mapped.size)

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """The metadata's object.

        Raises:
            CorruptFile: it is not a JSON object.
        """
        start = self.header.metadata_offset
        raw = bytes(self.buffer[start : start + self.header.metadata_size])
        return metadata.parse(self.path, raw)

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:
        """The tensors by name, in byte order of the names."""
        whole = np.frombuffer(self.buffer, dtype=np.uint8)
        return MappingProxyType(
            {entry.name: self._tensor(whole, entry) for entry in self.index.entries}
        )

    def _tensor(self, whole: Bytes, entry: Entry) -> Tensor:
        start = self.header.data_offset + entry.offset
        return Tensor(
            entry.name, entry.dtype, entry.shape, lambda: whole[start : start + entry.size]
        )

    @property
    def flags(self) -> Flag:
        """The header's flags."""
        return Flag(self.header.flags)

    @property
    def stored_checksum(self) -> str:
        """The footer: CRC-32 of all bytes before it, as 8 hex digits. `verify` recomputes it."""
        footer = bytes(self.buffer[self.size_bytes - FOOTER_SIZE : self.size_bytes])
        return f"{int.from_bytes(footer, 'little'):08x}"
