"""Mapping a file: read-only, no byte read before it is used, every failure one of our errors.

Also gives pages back to the operating system, so that a verb that walks through a file of any size
keeps a flat resident size: file-backed pages that were read once would otherwise count as ours.
"""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np

from apr.errors import InvalidFormat, NotFound, StorageError, StrPath
from apr.tensors import Bytes, Tensor


class Mapped:
    """A mapped file: `buffer` for parsing, `view` for zero-copy arrays, `size` in bytes."""

    def __init__(self, path: StrPath) -> None:
        """Map `path`.

        Raises:
            NotFound: it does not exist, or is not a regular file.
            InvalidFormat: it is empty.
            StorageError: it cannot be read.
        """
        self.path = Path(path)
        require_file(self.path)
        try:
            with self.path.open("rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                if self.size == 0:
                    raise InvalidFormat(path, "is empty (0 bytes)")
                self.buffer = mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_READ)
        except OSError as error:
            raise unreadable(error, path) from error

    def view(self, start: int, length: int) -> Bytes:
        """The bytes from `start`, as a read-only array that shares the file's pages."""
        return np.frombuffer(self.buffer, dtype=np.uint8, count=length, offset=start)


def require_file(path: StrPath) -> None:
    """Refuse what is not a file (opening a pipe would wait for ever).

    Raises:
        NotFound: it does not exist, or is not a regular file.
        StorageError: a folder on the way to it may not be entered.
    """
    try:
        mode = Path(path).stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(path, "does not exist") from None
    except (OSError, ValueError) as error:
        raise StorageError(path, f"cannot be read ({error})") from error
    if not stat.S_ISREG(mode):
        raise NotFound(path, "is a folder, not a file" if stat.S_ISDIR(mode) else "is not a file")


def unreadable(error: OSError, path: StrPath) -> StorageError:
    """An operating system's error on reading as one of ours."""
    return StorageError(path, f"cannot be read ({(error.strerror or str(error)).lower()})")


def mapping_of(array: np.ndarray[Any, Any]) -> mmap.mmap | None:
    """The mapping that an array is a view of; None where it is a view of ordinary memory."""
    base: Any = array
    while base is not None:
        if isinstance(base, mmap.mmap):
            return base
        base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    return None


def release(array: np.ndarray[Any, Any]) -> None:
    """Give an array's pages back, if it is a read-only view of a mapped file.

    The array stays valid: its pages are read again when touched. Does nothing otherwise, because
    dropping pages of ordinary memory would lose them.
    """
    mapping = None if array.flags.writeable else mapping_of(array)
    if mapping is None or not hasattr(mapping, "madvise") or array.nbytes == 0:
        return
    if not memoryview(mapping).readonly:  # a private writable mapping would lose its changes
        return
    origin = np.frombuffer(mapping, dtype=np.uint8, count=1).__array_interface__["data"][0]
    start = array.__array_interface__["data"][0] - origin
    first = start // mmap.PAGESIZE * mmap.PAGESIZE
    last = min(start + array.nbytes, len(mapping))
    mapping.madvise(mmap.MADV_DONTNEED, first, last - first)


def same_stored(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors have the same type, shape and bytes; memory stays flat."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    ours, theirs = first.raw(), second.raw()
    step, same = 16 << 20, True
    for start in range(0, ours.size, step):
        a, b = ours[start : start + step], theirs[start : start + step]
        same = same and bool(np.array_equal(a, b))
        release(a)
        release(b)
    return same
