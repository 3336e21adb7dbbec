"""Sources -> documents: text, code, JSON lines and Parquet, streamed in bounded memory.

Every file, folder and glob becomes a stream of documents in a fixed order. What is broken is
counted and named by file and line, and the run goes on or stops as it was told; what holds no text
is left out with its reason. docs/spec/data.md states the rules.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from apr.data.files import SourceFile, find_files
from apr.data.reading import Record, Unreadable, cut_text, records
from apr.data.report import BadRecord, SourceReport
from apr.errors import InvalidFormat, StorageError, UsageError

ON_BAD_RECORD = ("skip", "stop")


@dataclass(frozen=True, slots=True)
class Document:
    """A text, the file it comes from, and the line (row, in Parquet) where it begins, from 1."""

    text: str
    source: str
    line: int


def iter_documents(
    paths: Sequence[str],
    *,
    text_key: str = "text",
    on_bad_record: str = "skip",
    report: SourceReport | None = None,
) -> Iterator[Document]:
    """The documents of files, folders and globs, in a fixed order, empty ones left out.

    A text file is one document, a line of `.jsonl` and a row of Parquet are one each; a document
    above 2 MiB is cut at paragraph or line borders into pieces of up to 512 KiB. `report` is filled
    as it goes.

    Raises:
        NotFound: a path does not exist.
        InvalidFormat: a file given by its name is no text; with `on_bad_record="stop"`, the first
            broken record, as file:line; at the end, if there was no text at all.
        FeatureUnavailable: a source needs a package that is not installed.
        UsageError: `on_bad_record` is neither skip nor stop.
    """
    if on_bad_record not in ON_BAD_RECORD:
        raise UsageError("--on-bad-record", f"{on_bad_record!r} is unknown", "write skip or stop")
    report = SourceReport() if report is None else report
    files = find_files(paths, report)
    yield from read_files(
        files, text_key=text_key, on_bad_record=on_bad_record, report=report, paths=paths
    )


def read_files(
    files: Sequence[SourceFile],
    *,
    text_key: str,
    on_bad_record: str,
    report: SourceReport,
    paths: Sequence[str],
) -> Iterator[Document]:
    """The documents of files that are already found; see `iter_documents`."""
    for file in files:
        yield from _file_documents(file, text_key, on_bad_record, report)
    if report.documents == 0:
        where = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
        raise InvalidFormat(where, f"no text found: {report.summary()}")


def _file_documents(
    file: SourceFile, text_key: str, on_bad_record: str, report: SourceReport
) -> Iterator[Document]:
    before = report.bytes_read

    def progress(position: int) -> None:
        report.bytes_read = before + position

    try:
        for record in records(file, text_key, progress):
            if isinstance(record, BadRecord):
                report.bad(record)
                if on_bad_record == "stop":
                    raise InvalidFormat(
                        f"{record.source}:{record.line}",
                        f"broken record: {record.reason}",
                        "--on-bad-record skip counts it and goes on",
                    )
                continue
            yield from _pieces(record, file.path, report)
    except Unreadable as error:
        if file.named:
            raise InvalidFormat(file.path, f"cannot be read as text: {error}") from None
        report.skip(file.path, str(error))
    except OSError as error:
        reason = f"cannot be read ({(error.strerror or str(error)).lower()})"
        if file.named:
            raise StorageError(file.path, reason) from None
        report.skip(file.path, reason)
    progress(file.size)


def _pieces(record: Record, source: str, report: SourceReport) -> Iterator[Document]:
    if not record.text.strip():
        report.empty_documents += 1
        return
    pieces = cut_text(record.text)
    report.cuts += record.cut + len(pieces) - 1
    line = record.line
    for piece in pieces:
        report.documents += 1
        yield Document(piece, source, line)
