"""A token dataset: built from sources, reused while nothing changed, opened for training.

A build is written beside the target and renamed into place whole; an interrupted one leaves what
was there before. A dataset is reused only if sources, tokenizer and settings are those it was made
of; otherwise it is built again, and `TokenDataset.note` says why.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from apr.atomic import atomic_directory
from apr.data.build import Built, Encoder, Job, distinct_documents, write_shards
from apr.data.files import find_files
from apr.data.manifest import (
    MANIFEST,
    RECIPE,
    SOURCES,
    Manifest,
    Recipe,
    SplitCounts,
    changes,
    read_manifest,
    sha256_of,
    sources_json,
)
from apr.data.progress import Report, terminal_bar
from apr.data.report import SourceReport
from apr.data.shards import TokenArray, check_sha256, check_size, dtype_for
from apr.data.sources import ON_BAD_RECORD
from apr.data.split import Split, choose_fraction, documents_wanted
from apr.errors import AprError, InvalidFormat, StorageError, StrPath, UsageError
from apr.receipt import apr_version, now

MAX_WORKERS = 32
# What tokenizers of base models call the token between documents; an eos of another name
# (`<|im_end|>`: the end of a turn) gives way to one of these.
END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
_OURS = re.compile(r"manifest\.json|sources\.json|(train|validation)-\d{5,}\.bin")


@dataclass(frozen=True)
class TokenDataset:
    """An opened dataset. `note`: whether it was built, built again (and why) or reused."""

    path: Path
    manifest: Manifest
    train: TokenArray
    validation: TokenArray
    note: str = ""
    reused: bool = True

    def lines(self) -> list[str]:
        """What is to be told of it, for people: why it was built, what was met, what it holds."""
        m = self.manifest
        out = [self.note, *SourceReport.from_json(m.report).lines()]
        if m.duplicates:
            out.append(f"{m.duplicates:,} exact duplicates dropped ({m.duplicate_bytes:,} bytes)")
        out.append(m.split.sentence())
        for name, side in (("training", m.train), ("validation", m.validation)):
            out.append(
                f"{name}: {side.tokens:,} tokens, {side.documents:,} documents, "
                f"{side.bytes:,} bytes"
            )
        return out


def build_dataset(
    paths: Sequence[str],
    tokenizer: Encoder,
    out_dir: StrPath,
    *,
    text_key: str = "text",
    on_bad_record: str = "skip",
    validation_fraction: float | None = None,
    workers: int | None = None,
    progress: Report | None = None,
) -> TokenDataset:
    """The dataset of `paths` in `out_dir`: reused if nothing changed, else built.

    Args:
        paths: files, folders and globs.
        tokenizer: encodes; its end-of-text follows each document.
        out_dir: made if missing; a dataset there is replaced when it no longer fits.
        text_key: the key of the text in JSON lines and Parquet.
        on_bad_record: skip (count, name, go on) or stop.
        validation_fraction: share of the text held out; default 0.1 up to 64 MiB of sources,
            0.01 above.
        workers: batches encoded at a time; default the cores at hand. The result is the same.
        progress: told the state after each batch; default a bar, if stderr is a terminal.

    Raises:
        NotFound, InvalidFormat, FeatureUnavailable, UsageError: as `iter_documents`.
        StorageError: `out_dir` holds something else, or cannot be written.
    """
    if on_bad_record not in ON_BAD_RECORD:
        raise UsageError("--on-bad-record", f"{on_bad_record!r} is unknown", "write skip or stop")
    if workers is not None and workers < 1:
        raise UsageError("--workers", f"{workers} is not at least 1")
    paths = [os.fspath(path) for path in paths]
    out = Path(out_dir)
    found = SourceReport()
    files = find_files(paths, found, exclude=out)
    fraction = choose_fraction(validation_fraction, found.bytes_total)
    recipe = Recipe(
        RECIPE,
        tokenizer.fingerprint,
        tokenizer.vocab_size,
        end_of_text_id(tokenizer),
        text_key,
        fraction,
    )
    sources = sources_json(files)
    reasons = _reasons_to_build(out, recipe, sources, on_bad_record)
    if not reasons:
        return open_dataset(out, note="reused: sources and tokenizer are unchanged")
    job = Job(files, paths, text_key, on_bad_record)
    wanted = documents_wanted(fraction)
    few = distinct_documents(job, wanted, _copy(found)) < wanted
    split = Split("tails" if few else "documents", fraction)
    workers = workers or _cores()
    again = os.path.lexists(out) and any(out.iterdir())
    with atomic_directory(out, force=True) as folder:
        report = _copy(found)
        built = _run(job, tokenizer, recipe, split, folder, report, workers, progress)
        if split.mode == "documents" and not all(side.tokens for side in built.sides.values()):
            # By chance no document (or every one) fell to validation: rare, decided by content.
            split = Split("tails", fraction)
            _clear(folder)
            report = _copy(found)
            built = _run(job, tokenizer, recipe, split, folder, report, workers, progress)
        manifest = _manifest(built, recipe, split, paths, sources)
        (folder / SOURCES).write_text(sources, encoding="utf-8")
        (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    note = f"{'rebuilt' if again else 'built'}: {'; '.join(reasons)}"
    return open_dataset(out, note=note, reused=False)


def open_dataset(
    path: StrPath,
    *,
    tokenizer: Encoder | None = None,
    verify: bool = False,
    note: str = "opened",
    reused: bool = True,
) -> TokenDataset:
    """A dataset that was built before; sizes are checked, with `verify` also the checksums.

    Raises:
        NotFound: no dataset is there.
        CorruptFile: manifest or shards are damaged.
        InvalidFormat: it was made by another tokenizer than `tokenizer`.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    if tokenizer is not None and tokenizer.fingerprint != manifest.tokenizer_fingerprint:
        raise InvalidFormat(
            folder,
            f"was made by the tokenizer {manifest.tokenizer_fingerprint[:12]}…, "
            f"not by {tokenizer.fingerprint[:12]}…",
            "build it again with this tokenizer",
        )
    for side in (manifest.train, manifest.validation):
        for shard in side.shards:
            check_size(folder, shard, manifest.dtype)
            if verify:
                check_sha256(folder, shard)
    return TokenDataset(
        folder,
        manifest,
        TokenArray(folder, manifest.train.shards, manifest.dtype),
        TokenArray(folder, manifest.validation.shards, manifest.dtype),
        note,
        reused,
    )


def check_vocabulary(dataset: TokenDataset, vocab_size: int) -> None:
    """Refuse a dataset whose ids a model does not have.

    Raises:
        InvalidFormat: naming the greatest id and the model's vocab_size.
    """
    if dataset.manifest.max_token_id >= vocab_size:
        raise InvalidFormat(
            dataset.path,
            f"holds token id {dataset.manifest.max_token_id}, the model's vocab_size is "
            f"{vocab_size}",
            "use the model's own tokenizer, or a model as wide as this one's vocabulary",
        )


def end_of_text_id(tokenizer: Encoder) -> int:
    """The id that separates documents: the end known as such (END_OF_TEXT), else the first end.

    Raises:
        InvalidFormat: the tokenizer has none.
    """
    names = tokenizer.tokens()
    ends = [i for i in tokenizer.eos_token_ids if 0 <= i < len(names)]
    if not ends:
        raise InvalidFormat(
            "tokenizer",
            "has no end-of-text token, so documents cannot be told apart",
            "set eos_token in its tokenizer_config.json",
        )
    return next((i for i in ends if names[i] in END_OF_TEXT), ends[0])


def _reasons_to_build(out: Path, recipe: Recipe, sources: str, on_bad_record: str) -> list[str]:
    if not os.path.lexists(out):
        return ["there was no dataset yet"]
    if not out.is_dir():
        raise StorageError(out, "is a file, not a folder", "choose another name")
    names = sorted(entry.name for entry in out.iterdir())
    if not names:
        return ["there was no dataset yet"]
    foreign = [name for name in names if not _OURS.fullmatch(name)]
    if foreign:
        raise StorageError(
            out,
            f"holds something else than a token dataset ({foreign[0]!r})",
            "choose an empty or new folder",
        )
    try:
        dataset = open_dataset(out)
    except AprError as error:
        return [f"the dataset there cannot be used ({error.what})"]
    reasons = changes(out, dataset.manifest, recipe, sources)
    if on_bad_record == "stop" and dataset.manifest.bad_records:
        reasons.append("it stepped over broken records, and now they shall stop it")
    return reasons


def _cores() -> int:
    """The cores that this process may use, MAX_WORKERS at most."""
    if hasattr(os, "sched_getaffinity"):
        return min(len(os.sched_getaffinity(0)), MAX_WORKERS)
    return min(os.cpu_count() or 1, MAX_WORKERS)


def _copy(found: SourceReport) -> SourceReport:
    """A fresh account that begins with what finding the files met."""
    return SourceReport(
        files=found.files,
        bytes_total=found.bytes_total,
        skipped=found.skipped.copy(),
        skipped_examples=list(found.skipped_examples),
    )


def _run(
    job: Job,
    tokenizer: Encoder,
    recipe: Recipe,
    split: Split,
    folder: Path,
    report: SourceReport,
    workers: int,
    progress: Report | None,
) -> Built:
    end = recipe.end_of_text
    if progress is not None:
        return write_shards(job, tokenizer, end, split, folder, report, workers, progress)
    with terminal_bar() as bar:
        return write_shards(job, tokenizer, end, split, folder, report, workers, bar)


def _clear(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _manifest(
    built: Built, recipe: Recipe, split: Split, paths: Sequence[str], sources: str
) -> Manifest:
    sides = {
        name: SplitCounts(side.tokens, side.documents, side.bytes, tuple(side.shards))
        for name, side in built.sides.items()
    }
    return Manifest(
        recipe=recipe,
        dtype=dtype_for(recipe.vocab_size),
        max_token_id=built.max_token_id,
        documents=built.documents,
        duplicates=built.duplicates,
        duplicate_bytes=built.duplicate_bytes,
        split=split,
        train=sides["train"],
        validation=sides["validation"],
        paths=tuple(paths),
        sources_sha256=sha256_of(sources),
        report=built.report.to_json(),
        apr_version=apr_version(),
        created=now(),
    )
