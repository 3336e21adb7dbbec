"""The manifest of a token dataset: what it holds, what it was made of, and whether it still fits.

`manifest.json` carries the figures, the checksums of the shards and one over itself;
`sources.json` beside it lists every source file with size and time, so that a build is reused only
when nothing changed, and can say what did. docs/spec/data.md documents each key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from apr.data.files import SourceFile
from apr.data.shards import Shard
from apr.data.split import Split
from apr.errors import CorruptFile, InvalidFormat, NotFound, StrPath

FORMAT = "apr-token-dataset"
VERSION = 1
# Raised when the same sources and tokenizer would give other shards than before.
RECIPE = 1
MANIFEST = "manifest.json"
SOURCES = "sources.json"


@dataclass(frozen=True, slots=True)
class SplitCounts:
    """One side of a dataset.

    `tokens` counts the end-of-text after each document; `bytes` are the UTF-8 bytes of the texts,
    to which an end-of-text adds none.
    """

    tokens: int
    documents: int
    bytes: int
    shards: tuple[Shard, ...]

    @property
    def tokens_per_byte(self) -> float:
        """Turns nats per token into bits per byte: bits = nats / ln 2 * tokens_per_byte.

        0 if the side is empty.
        """
        return self.tokens / self.bytes if self.bytes else 0.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """What decides the shards beside the sources' content."""

    recipe: int
    tokenizer_fingerprint: str
    vocab_size: int
    end_of_text: int
    text_key: str
    fraction: float


@dataclass(frozen=True, slots=True)
class Manifest:
    """A dataset's figures. `documents` are distinct ones; `report` is the `SourceReport`."""

    recipe: Recipe
    dtype: str
    max_token_id: int
    documents: int
    duplicates: int
    duplicate_bytes: int
    split: Split
    train: SplitCounts
    validation: SplitCounts
    paths: tuple[str, ...]
    sources_sha256: str
    report: Mapping[str, Any]
    apr_version: str
    created: str

    @property
    def tokens(self) -> int:
        """Tokens of both sides."""
        return self.train.tokens + self.validation.tokens

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of both sides' texts."""
        return self.train.bytes + self.validation.bytes

    @property
    def bad_records(self) -> int:
        """Broken records that were stepped over."""
        return int(self.report["bad_records"])

    @property
    def tokenizer_fingerprint(self) -> str:
        """The fingerprint of the tokenizer that made the tokens."""
        return self.recipe.tokenizer_fingerprint

    @property
    def vocab_size(self) -> int:
        """The tokenizer's number of ids."""
        return self.recipe.vocab_size

    @property
    def end_of_text(self) -> int:
        """The id after each document."""
        return self.recipe.end_of_text

    def summary(self) -> dict[str, Any]:
        """What a checkpoint keeps about its data: figures and checksums, no list of files."""
        sides = {
            name: {"tokens": side.tokens, "documents": side.documents, "bytes": side.bytes}
            for name, side in (("train", self.train), ("validation", self.validation))
        }
        return {
            "paths": list(self.paths),
            "tokens": self.tokens,
            "documents": self.documents,
            "bytes": self.bytes,
            "duplicates": self.duplicates,
            "bad_records": self.bad_records,
            "skipped_files": sum(self.report["skipped"].values()),
            "split": asdict(self.split),
            **sides,
            "tokenizer_fingerprint": self.tokenizer_fingerprint,
            "sources_sha256": self.sources_sha256,
            "shards_sha256": self.shards_sha256,
        }

    @property
    def shards_sha256(self) -> str:
        """One checksum for the tokens of both sides, in order."""
        sums = [shard.sha256 for side in (self.train, self.validation) for shard in side.shards]
        return hashlib.sha256(" ".join(sums).encode()).hexdigest()

    def to_json(self) -> str:
        """The text of `manifest.json`, with a checksum over the rest as its last key."""
        data = {"format": FORMAT, "version": VERSION, **asdict(self)}
        data["checksum"] = _checksum(data)
        return json.dumps(data, indent=2, ensure_ascii=True) + "\n"


def read_manifest(folder: StrPath) -> Manifest:
    """The manifest of a dataset's folder.

    Raises:
        NotFound: the folder holds no dataset.
        CorruptFile: the manifest is damaged.
        InvalidFormat: it is of another kind or version.
    """
    path = Path(folder) / MANIFEST
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(folder, f"is no token dataset: it holds no {MANIFEST}") from None
    try:
        data = json.loads(text)
        if not isinstance(data, dict):
            raise ValueError
    except ValueError:
        raise CorruptFile(path, "is not a JSON object", "build the dataset again") from None
    if data.get("format") != FORMAT:
        raise InvalidFormat(path, f"format is {data.get('format')!r}, not {FORMAT!r}")
    if data.get("version") != VERSION:
        raise InvalidFormat(
            path, f"version is {data.get('version')!r}, this apr reads {VERSION}", "build it again"
        )
    if data.pop("checksum", None) != _checksum(data):
        raise CorruptFile(path, "its checksum does not hold", "build the dataset again")
    try:
        return _from_json(data)
    except (KeyError, TypeError) as error:
        raise CorruptFile(path, f"a key is missing or wrong: {error}", "build it again") from None


def _from_json(data: dict[str, Any]) -> Manifest:
    for side in ("train", "validation"):
        shards = tuple(Shard(**shard) for shard in data[side].pop("shards"))
        data[side] = SplitCounts(**data[side], shards=shards)
    del data["format"], data["version"]
    data["recipe"] = Recipe(**data["recipe"])
    data["split"] = Split(**data["split"])
    data["paths"] = tuple(data["paths"])
    return Manifest(**data)


def _checksum(data: Mapping[str, Any]) -> str:
    text = json.dumps(data, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


# --- sources -----------------------------------------------------------------------------------


def sources_json(files: Sequence[SourceFile]) -> str:
    """The text of `sources.json`: one line a file, absolute path, bytes, time in nanoseconds."""
    rows = [[str(Path(file.path).resolve()), file.size, file.mtime_ns] for file in files]
    return "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"


def sha256_of(text: str) -> str:
    """SHA-256 of a text's UTF-8, hex."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def changes(folder: Path, manifest: Manifest, recipe: Recipe, sources: str) -> list[str]:
    """What differs between a dataset and what is wanted now, as clauses; empty: reuse it."""
    old, out = manifest.recipe, []
    if old.recipe != recipe.recipe:
        out.append("this version of apr builds datasets in another way")
    if old.tokenizer_fingerprint != recipe.tokenizer_fingerprint:
        a, b = old.tokenizer_fingerprint[:8], recipe.tokenizer_fingerprint[:8]
        out.append(f"the tokenizer changed (fingerprint {a}… -> {b}…)")
    elif old.end_of_text != recipe.end_of_text:
        out.append(f"the end of text changed (id {old.end_of_text} -> {recipe.end_of_text})")
    if old.text_key != recipe.text_key:
        out.append(f"the text key changed ({old.text_key!r} -> {recipe.text_key!r})")
    if old.fraction != recipe.fraction:
        out.append(f"the validation fraction changed ({old.fraction:g} -> {recipe.fraction:g})")
    if manifest.sources_sha256 != sha256_of(sources):
        out += _source_changes(folder / SOURCES, sources)
    return out


def _source_changes(path: Path, sources: str) -> list[str]:
    try:
        old = {row[0]: tuple(row[1:]) for row in json.loads(path.read_bytes())}
    except (OSError, ValueError, TypeError, LookupError):
        return ["the sources changed (the old list of them is damaged)"]
    new = {row[0]: tuple(row[1:]) for row in json.loads(sources)}
    kinds = {
        "changed": [p for p in new if p in old and new[p] != old[p]],
        "added": [p for p in new if p not in old],
        "removed": [p for p in old if p not in new],
    }
    out = []
    for kind, found in kinds.items():
        if found:
            more = f" (and {len(found) - 1:,} more)" if len(found) > 1 else ""
            out.append(f"source {found[0]} was {kind}{more}")
    return out or ["the order of the sources changed"]
