"""A tokenizer learned from sources: documents in, a folder out, with a record of what it saw."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from apr.atomic import atomic_directory, refuse_existing
from apr.data.report import SourceReport
from apr.data.sources import iter_documents
from apr.errors import StrPath
from apr.receipt import receipt
from apr.tokenizer import Tokenizer, train
from apr.tokenizer.training import check_request


@dataclass(frozen=True)
class Learned:
    """A trained tokenizer, the folder it was written to, what it was made of, seconds of all."""

    path: Path
    tokenizer: Tokenizer
    report: SourceReport
    seconds: float

    @property
    def shortfall(self) -> str | None:
        """Why there are fewer tokens than asked for; None if there are as many."""
        record = self.tokenizer.record
        if record["vocab_size"] == record["asked_vocab_size"]:
            return None
        return (
            f"asked for {record['asked_vocab_size']:,} tokens, the text gives "
            f"{record['vocab_size']:,}: no further pair occurs {record['min_frequency']} times"
        )

    def to_json(self) -> dict[str, Any]:
        """For programs: the record, where it is, the sources' report, the receipt."""
        return {
            "path": str(self.path),
            "fingerprint": self.tokenizer.fingerprint,
            "shortfall": self.shortfall,
            **self.tokenizer.record,
            "sources": self.report.to_json(),
            "seconds": round(self.seconds, 3),
        }


def learn_tokenizer(
    paths: Sequence[StrPath],
    out_dir: StrPath,
    *,
    vocab_size: int,
    pre: str,
    text_key: str = "text",
    on_bad_record: str = "skip",
    force: bool = False,
) -> Learned:
    """Train byte-level BPE on the documents of `paths` and write its folder, whole or not at all.

    Raises:
        UsageError: `vocab_size`, `pre` or `on_bad_record` cannot be.
        NotFound, InvalidFormat, FeatureUnavailable: as `iter_documents`.
        StorageError: `out_dir` exists (and not `force`), or cannot be written.
    """
    check_request(vocab_size, pre)
    refuse_existing(out_dir, force)
    start = time.perf_counter()
    report = SourceReport()
    documents = iter_documents(
        [str(path) for path in paths], text_key=text_key, on_bad_record=on_bad_record, report=report
    )
    tokenizer = train((document.text for document in documents), vocab_size, pre)
    record = {
        **tokenizer.record,
        "dataset": [str(path) for path in paths],
        "bad_records": report.bad_records,
        "skipped_files": report.skipped_files,
        "receipt": receipt(),
    }
    tokenizer = replace(tokenizer, record=record)
    with atomic_directory(out_dir, force=force) as folder:
        tokenizer.write_directory(folder)
    return Learned(Path(out_dir), tokenizer, report, time.perf_counter() - start)
