"""Which files a list of paths means: files, folders (recursive) and globs, in a fixed order.

Hidden names are left out of folders, as is what is binary by its name; both are reported. A link
is followed; a folder or file met a second time (a loop, a path given twice) is left out, reported.
"""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from apr.data.report import SourceReport
from apr.errors import InvalidFormat, NotFound

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}

# In a folder, left out unopened. Everything else, and a file given by name, is judged by content.
BINARY = frozenset(
    f".{suffix}"
    for suffixes in (
        "7z bz2 lz4 rar tar tgz whl xz zip jar",
        "a class dll dylib exe lib o obj pyc pyd pyo so wasm",
        "bmp gif ico jpeg jpg png tif tiff webp",
        "avi mkv mov mp3 mp4 ogg wav webm",
        "eot otf ttf woff woff2",
        "doc docx pdf ppt pptx xls xlsx",
        "apr bin db gguf npy npz onnx pickle pkl pt pth safetensors sqlite",
    )
    for suffix in suffixes.split()
)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to read.

    `kind`: text, jsonl or parquet. `compression`: none, gzip or zstd. `named`: given by its own
    name, so that it is an error if it cannot be read as text.
    """

    path: str
    kind: str
    compression: str
    size: int
    mtime_ns: int
    named: bool


def find_files(
    paths: Sequence[str], report: SourceReport, exclude: Path | None = None
) -> list[SourceFile]:
    """Every file that `paths` mean: arguments in their order, folders sorted by path.

    `exclude`: a folder that is left out, for a dataset that is built inside its own sources.

    Raises:
        NotFound: a path does not exist, a glob matches nothing.
        InvalidFormat: a path names a file that cannot be text.
    """
    out: list[SourceFile] = []
    seen_files: set[tuple[int, int]] = set()
    seen_folders: set[tuple[int, int]] = set()
    own = exclude.resolve() if exclude is not None and exclude.is_dir() else None
    for path, named in _expand(paths):
        found = _walk(path, report, seen_folders) if Path(path).is_dir() else [path]
        named = named and not Path(path).is_dir()
        for file in found:
            if own is not None and own in Path(file).resolve().parents:
                report.skip(file, "the dataset's own folder")
                continue
            source = _classify(file, named, report)
            if source is None:
                continue
            status = Path(file).stat()
            identity = (status.st_dev, status.st_ino)
            if identity in seen_files:
                report.skip(file, "already included by another path")
                continue
            seen_files.add(identity)
            out.append(source)
    report.files = len(out)
    report.bytes_total = sum(file.size for file in out)
    return out


def _expand(paths: Sequence[str]) -> Iterator[tuple[str, bool]]:
    if not paths:
        raise NotFound("--dataset", "no path was given", "name files, folders or globs")
    for path in paths:
        path = os.fspath(path)
        if os.path.lexists(path):
            if not Path(path).exists():
                raise NotFound(path, "is a link to nothing")
            yield path, True
        elif glob.has_magic(path):
            matches = sorted(glob.glob(path, recursive=True))  # noqa: PTH207 - any pattern, any root
            if "**" in path:  # matches a folder and all that lies in it: the files say it all
                matches = [match for match in matches if not Path(match).is_dir()]
            if not matches:
                raise NotFound(path, "no file matches this pattern")
            for match in matches:
                yield match, False
        else:
            raise NotFound(path, "no such file or folder")


def _walk(top: str, report: SourceReport, seen: set[tuple[int, int]]) -> Iterator[str]:
    status = Path(top).stat()
    identity = (status.st_dev, status.st_ino)
    if identity in seen:
        report.skip(top, "already included by another path")
        return
    seen.add(identity)
    try:
        entries = sorted(os.scandir(top), key=lambda entry: entry.name)
    except OSError as error:
        report.skip(top, f"folder cannot be read ({(error.strerror or '').lower()})")
        return
    for entry in entries:
        if entry.name.startswith("."):
            report.skip(entry.path, "hidden")
        elif entry.is_dir():
            yield from _walk(entry.path, report, seen)
        else:
            yield entry.path


def _classify(path: str, named: bool, report: SourceReport) -> SourceFile | None:
    def unusable(reason: str, hint: str = "") -> None:
        if named:
            raise InvalidFormat(path, f"cannot be read as text: {reason}", hint)
        report.skip(path, reason)

    try:
        status = Path(path).stat()
    except OSError:
        unusable("link to nothing")
        return None
    if not stat.S_ISREG(status.st_mode):
        unusable("not a regular file")
        return None
    name = Path(path.lower())
    compression = COMPRESSIONS.get(name.suffix, "none")
    suffix = name.suffix if compression == "none" else Path(name.stem).suffix
    if suffix in BINARY and not named:
        unusable("binary by its name")
        return None
    kind = KINDS.get(suffix, "text")
    if kind == "parquet" and compression != "none":
        unusable("compressed Parquet (it compresses its own columns)", "unpack it first")
        return None
    return SourceFile(path, kind, compression, status.st_size, status.st_mtime_ns, named)
