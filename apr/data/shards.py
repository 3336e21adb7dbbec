"""Token shards: raw little-endian u16 or u32 ids in files of bounded size, mapped for reading.

A shard has no header: the manifest beside it holds its length, type and checksum. Ids below 65,536
take two bytes.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from apr.errors import CorruptFile, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SHARD_TOKENS = 64 << 20
DTYPES = {"u16": "<u2", "u32": "<u4"}


def dtype_for(vocab_size: int) -> str:
    """The narrowest type that holds every id of a vocabulary."""
    return "u16" if vocab_size <= 1 << 16 else "u32"


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of a split: its name in the dataset's folder, its tokens, its SHA-256."""

    file: str
    tokens: int
    sha256: str


class ShardWriter:
    """Appends tokens to a split's files, beginning a new one when one is full."""

    def __init__(self, folder: Path, split: str, dtype: str, shard_tokens: int | None = None):
        self._folder = folder
        self._split = split
        self._dtype = DTYPES[dtype]
        self._limit = shard_tokens or SHARD_TOKENS
        self._file: IO[bytes] | None = None
        self._hash = hashlib.sha256()
        self._tokens = 0
        self._shards: list[Shard] = []

    def append(self, ids: npt.NDArray[np.integer[Any]]) -> None:
        """Write token ids, `[n]`, after those that are there."""
        while len(ids):
            if self._file is None:
                self._file = (self._folder / self._name()).open("wb")
            part = ids[: self._limit - self._tokens]
            data = part.astype(self._dtype).tobytes()
            self._file.write(data)
            self._hash.update(data)
            self._tokens += len(part)
            ids = ids[len(part) :]
            if self._tokens == self._limit:
                self._finish()

    def close(self) -> list[Shard]:
        """Finish the last file; the shards in order."""
        self._finish()
        return self._shards

    def abandon(self) -> None:
        """Close the open file after a failure; its folder is about to be removed."""
        if self._file is not None:
            self._file.close()

    def _name(self) -> str:
        return f"{self._split}-{len(self._shards):05d}.bin"

    def _finish(self) -> None:
        if self._file is None:
            return
        self._file.close()
        self._shards.append(Shard(self._name(), self._tokens, self._hash.hexdigest()))
        self._file, self._hash, self._tokens = None, hashlib.sha256(), 0


class TokenArray:
    """The tokens of a split as one array, mapped from its shards; nothing is read before use."""

    def __init__(self, folder: Path, shards: Sequence[Shard], dtype: str) -> None:
        import numpy as np

        self._starts = [0]
        self._maps: list[npt.NDArray[np.integer[Any]]] = []
        for shard in shards:
            self._maps.append(
                np.memmap(folder / shard.file, dtype=DTYPES[dtype], mode="r", shape=(shard.tokens,))
            )
            self._starts.append(self._starts[-1] + shard.tokens)

    def __len__(self) -> int:
        return self._starts[-1]

    def slice(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Tokens `start` to `stop` as a copy, int64 `[stop - start]`; spans shards.

        Raises:
            UsageError: the range is not inside the array.
        """
        import numpy as np

        if not 0 <= start <= stop <= len(self):
            raise UsageError(
                "token range", f"{start} to {stop} is not inside the {len(self)} tokens"
            )
        out = np.empty(stop - start, dtype=np.int64)
        shard = bisect_right(self._starts, start) - 1
        at = start
        while at < stop:
            first, end = self._starts[shard], min(stop, self._starts[shard + 1])
            out[at - start : end - start] = self._maps[shard][at - first : end - first]
            at = end
            shard += 1
        return out


def check_size(folder: Path, shard: Shard, dtype: str) -> None:
    """Refuse a shard whose file is missing or of another size.

    Raises:
        CorruptFile: naming both sizes.
    """
    path = folder / shard.file
    expected = shard.tokens * (2 if dtype == "u16" else 4)
    if not path.is_file():
        raise CorruptFile(
            path, "the manifest names this shard, but it is missing", "build it again"
        )
    size = path.stat().st_size
    if size != expected:
        raise CorruptFile(
            path, f"has {size} bytes, the manifest says {expected}", "build the dataset again"
        )


def check_sha256(folder: Path, shard: Shard) -> None:
    """Read a shard whole and compare its checksum.

    Raises:
        CorruptFile: it differs.
    """
    with (folder / shard.file).open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != shard.sha256:
        raise CorruptFile(
            folder / shard.file,
            f"checksum is {found[:12]}…, the manifest says {shard.sha256[:12]}…",
            "build the dataset again",
        )
