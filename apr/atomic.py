"""Atomic output: a temporary name beside the target, flushed to disk, then renamed.

Every file and folder that `apr` leaves behind goes through here, so that an interrupted write
leaves the old file or none, never half of one, and nothing is overwritten unless it was asked for.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from apr.errors import StorageError, StrPath


def refuse_existing(target: StrPath, force: bool) -> None:
    """Refuse to overwrite.

    Raises:
        StorageError: `target` exists and `force` is not given.
    """
    if not force and os.path.lexists(target):
        raise StorageError(target, "exists already", "choose another name or add --force")


def explain(error: OSError, target: StrPath) -> StorageError:
    """An operating system's error as one of ours, with what to do about it."""
    hints = {
        errno.ENOSPC: "free some space or write elsewhere; nothing was left half-written",
        errno.EDQUOT: "free some space or write elsewhere; nothing was left half-written",
        errno.EROFS: "choose a folder that can be written to",
        errno.EACCES: "choose a folder that can be written to",
        errno.EPERM: "choose a folder that can be written to",
        errno.ENOTDIR: "a part of the path is a file, not a folder",
        errno.EEXIST: "a part of the path is a file, not a folder",
    }
    text = (error.strerror or str(error)).lower()
    return StorageError(target, f"cannot be written ({text})", hints.get(error.errno or 0, ""))


def _make_folder(folder: Path, made: list[Path]) -> None:
    """Make a folder and all that is missing above it; `made` gets these, the deepest first."""
    for path in (folder, *folder.parents):
        if path.exists():
            break
        made.append(path)
    folder.mkdir(parents=True, exist_ok=True)


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders that hold nothing, the deepest first; after a success they hold the target."""
    for path in folders:
        with suppress(OSError):
            path.rmdir()


def sync_directory(path: StrPath) -> None:
    """Flush a folder's entries to disk (a rename is durable only then)."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file(path: StrPath) -> None:
    """Flush a file's data to disk."""
    sync_directory(path)


@contextmanager
def atomic_file(target: StrPath, *, force: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `target`; on success it is flushed and renamed into place.

    The folder is made if it is missing. On any failure the temporary file is removed, and the
    folder if it was made for it; the old target, if there was one, is untouched.

    Raises:
        StorageError: the target exists (and not `force`), or cannot be written.
    """
    target = Path(target)
    refuse_existing(target, force)
    temporary = target.parent / f".{target.name}.tmp-{os.getpid()}"
    made: list[Path] = []
    try:
        _make_folder(target.parent, made)
        yield temporary
        sync_file(temporary)
        temporary.replace(target)
        sync_directory(target.parent)
    except OSError as error:
        raise explain(error, target) from error
    finally:
        with suppress(OSError):  # the real error is on its way already
            temporary.unlink(missing_ok=True)
        _remove_empty(made)


@contextmanager
def atomic_directory(target: StrPath, *, force: bool = False) -> Iterator[Path]:
    """As `atomic_file`, for a folder: yield an empty temporary one, renamed into place at the end.

    Raises:
        StorageError: the target exists (and not `force`), or cannot be written.
    """
    target = Path(target)
    refuse_existing(target, force)
    temporary = target.parent / f".{target.name}.tmp-{os.getpid()}"
    old = target.parent / f".{target.name}.old-{os.getpid()}"
    made: list[Path] = []
    try:
        _make_folder(target.parent, made)
        temporary.mkdir()
        yield temporary
        for path in sorted(temporary.rglob("*")):
            sync_file(path)
        sync_file(temporary)
        if os.path.lexists(target):
            target.rename(old)
        temporary.rename(target)
        sync_directory(target.parent)
    except OSError as error:
        if old.exists() and not target.exists():
            old.rename(target)
        raise explain(error, target) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old, ignore_errors=True)
        else:
            with suppress(OSError):
                old.unlink(missing_ok=True)
        _remove_empty(made)


def write_text(target: StrPath, text: str, *, force: bool = False) -> None:
    """Write a small text file atomically, UTF-8.

    Raises:
        StorageError: see `atomic_file`.
    """
    with atomic_file(target, force=force) as temporary:
        temporary.write_text(text, encoding="utf-8")
