"""Perplexity and bits per byte of a model, alone or beside another one on the same chunks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from apr.data.files import find_files
from apr.data.report import SourceReport
from apr.errors import InferenceError, StrPath, UsageError
from apr.eval import chunks
from apr.eval.figures import Estimate, Floats, Paired, Scores
from apr.eval.loading import Loaded, Progress, load
from apr.receipt import receipt

_ROWS = 64  # rows of logits that are widened to float64 at once


@dataclass(frozen=True)
class Row:
    """A data set: what was scored, by the model and, if there is one, by the other."""

    dataset: str
    context: int
    chunks: int
    tokens_read: int
    tokens_sha256: str
    documents: int
    scores: Scores
    against: Scores | None = None
    paired: Paired | None = None

    @property
    def bits_per_byte_difference(self) -> Estimate | None:
        """The model's less the other's; where tokens are not paired, both errors add up."""
        if self.against is None:
            return None
        ours, theirs = self.scores.bits_per_byte, self.against.bits_per_byte
        if self.paired is not None:
            total = int(self.scores.bytes.sum())
            nats = self.paired.figures()["nats_per_token_difference"]
            scale = len(self.scores.nats) / math.log(2) / total if total else math.nan
            error = None if nats.error is None else nats.error * scale
            return Estimate(nats.value * scale, error)
        errors = (ours.error, theirs.error)
        both = None if None in errors else math.hypot(*(e for e in errors if e is not None))
        return Estimate(ours.value - theirs.value, both)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready values."""
        out = {
            "dataset": self.dataset,
            "context": self.context,
            "chunks": self.chunks,
            "documents": self.documents,
            "tokens_read": self.tokens_read,
            "tokens_sha256": self.tokens_sha256,
            **self.scores.to_json(),
        }
        difference = self.bits_per_byte_difference
        if self.against is not None and difference is not None:
            out["against"] = self.against.to_json()
            out["bits_per_byte_difference"] = difference.to_json()
            out["paired"] = self.paired.to_json() if self.paired is not None else None
        return out


@dataclass(frozen=True)
class Record:
    """The evaluation of a model by perplexity, JSON-ready."""

    model: Mapping[str, Any]
    rows: tuple[Row, ...]
    receipt: Mapping[str, Any]
    against: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """One JSON document."""
        return {
            "task": "perplexity",
            **self.model,
            "results": [row.to_json() for row in self.rows],
            "against": None if self.against is None else dict(self.against),
            "notes": list(self.notes),
            "receipt": dict(self.receipt),
        }


def perplexity(
    path: StrPath,
    datasets: Sequence[str],
    *,
    against: StrPath | None = None,
    context: int | None = None,
    most_chunks: int | None = None,
    text_key: str = "text",
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Record:
    """Evaluate a model on each data set.

    Args:
        path: an `.apr` file, a GGUF file or a Hugging Face folder.
        datasets: files, folders or globs, as `apr.data` reads them; a row each.
        against: a second model, on the same chunks.
        context: tokens of a chunk; None: 512, reduced to the models' context with a note.
        most_chunks: of each data set; None takes all.
        text_key: the field of JSON records.
        device: as in `apr.engine.load`.
        dtype: likewise.
        threads: likewise.
        progress: called with a line before each step.

    Raises:
        UsageError: no data set, or a size that cannot be.
        InvalidFormat: a text that is shorter than a chunk.
        InferenceError: logits that are not finite.
        NotFound, ModelLoadError, FeatureUnavailable: see `load`.
    """
    if not datasets:
        raise UsageError("--dataset", "is missing", "name a file or folder of text")
    if most_chunks is not None and most_chunks < 1:
        raise UsageError("--chunks", f"{most_chunks} is less than 1", "leave it out to take all")
    find_files(datasets, SourceReport())  # before a large model is loaded
    ours = load(path, device, dtype, threads, progress)
    other = None if against is None else load(against, device, dtype, threads, progress)
    both = [ours] if other is None else [ours, other]
    size, notes = _context(context, min(one.engine.context for one in both))
    same = other is not None and _same_tokens(ours, other)
    if other is not None and not same:
        notes.append(
            "the tokenizers differ: each model has its own chunks, bits per byte alone compare, "
            "and the difference is not paired"
        )
    # All is read before anything is computed, so that an error in the last text costs no hours.
    read = partial(chunks.read, context=size, most=most_chunks, text_key=text_key)
    texts = [read(name, ours.tokenizer) for name in datasets]
    seconds = [] if other is None or same else [read(n, other.tokenizer) for n in datasets]
    for text in texts:
        if text.report.cuts:
            notes.append(
                f"{text.name} is so long that it was tokenized in {text.report.cuts + 1} pieces, "
                "cut at line borders; llama-perplexity tokenizes it whole"
            )
    rows = []
    for number, text in enumerate(texts):
        if other is None:
            rows.append(_row(text, _scores(ours, text, progress)))
        elif same:
            rows.append(_row(text, *_pairs(ours, other, text, progress)))
        else:
            theirs = _scores(other, seconds[number], progress)
            rows.append(_row(text, _scores(ours, text, progress), theirs))
    if other is not None and same and rows[0].paired and rows[0].paired.divergence is None:
        notes.append("the vocabularies differ in size: no KL divergence, no top-1 agreement")
    return Record(
        model=ours.to_json(),
        rows=tuple(rows),
        receipt=receipt(ours.engine.plan.device),
        against=None if other is None else other.to_json(),
        notes=tuple(notes),
    )


def _context(asked: int | None, most: int) -> tuple[int, list[str]]:
    if asked is None:
        size = min(chunks.DEFAULT_CONTEXT, most)
        if size < chunks.DEFAULT_CONTEXT:
            return size, [f"chunks of {size} tokens, not {chunks.DEFAULT_CONTEXT}: the context"]
        return size, []
    if asked > most:
        raise UsageError(
            f"--context {asked}",
            f"is more than the model's context of {most} tokens",
            f"write --context {most} or less",
        )
    if chunks.scored_per_chunk(asked) < 1:
        raise UsageError(f"--context {asked}", "leaves nothing to score", "write 3 or more")
    return asked, []


def _same_tokens(ours: Loaded, other: Loaded) -> bool:
    return (
        ours.tokenizer.fingerprint == other.tokenizer.fingerprint
        and ours.tokenizer.added_around[0] == other.tokenizer.added_around[0]
    )


def _row(text: chunks.Text, scores: Scores, *others: Any) -> Row:
    return Row(
        text.name,
        text.context,
        len(text.chunks),
        text.tokens_read,
        text.sha256,
        text.report.documents,
        scores,
        *others,
    )


def _scores(one: Loaded, text: chunks.Text, progress: Progress | None) -> Scores:
    nats = []
    for number, ids in enumerate(text.chunks):
        logits = _logits(one, ids, text)
        nats.append(_nats(logits, ids[text.first + 1 :]))
        _say(progress, text, number, nats)
    return Scores(np.concatenate(nats), _bytes(one, text))


def _pairs(
    ours: Loaded, other: Loaded, text: chunks.Text, progress: Progress | None
) -> tuple[Scores, Scores, Paired]:
    first: list[Floats] = []
    second: list[Floats] = []
    divergences: list[Floats] = []
    tops: list[Floats] = []
    same = ours.engine.architecture.vocab_size == other.engine.architecture.vocab_size
    for number, ids in enumerate(text.chunks):
        a, b = _logits(ours, ids, text), _logits(other, ids, text)
        targets = ids[text.first + 1 :]
        first.append(_nats(a, targets))
        second.append(_nats(b, targets))
        if same:
            divergences.append(_divergence(a, b))
            tops.append((a.argmax(axis=1) == b.argmax(axis=1)).astype(np.float64))
        _say(progress, text, number, first)
    nats, theirs = np.concatenate(first), np.concatenate(second)
    bytes_ = _bytes(ours, text)
    paired = Paired(
        nats - theirs,
        np.concatenate(divergences) if same else None,
        np.concatenate(tops) if same else None,
    )
    return Scores(nats, bytes_), Scores(theirs, bytes_), paired


def _logits(one: Loaded, ids: chunks.Ids, text: chunks.Text) -> Any:
    """Logits that predict the scored half, `[scored, vocab]`."""
    logits = one.engine.logits(ids.tolist(), last=text.context - text.first)[:-1]
    if not np.isfinite(logits).all():
        raise InferenceError(
            str(one.model.path),
            "gives logits that are not finite",
            "try --dtype float32, or judge the file with apr qa",
        )
    return logits


def _log_probabilities(logits: Any) -> Floats:
    """Log-softmax in float64, `[rows, vocab]`."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
    result: Floats = wide
    return result


def _nats(logits: Any, targets: chunks.Ids) -> Floats:
    """Nats of each target, `[scored]`; exponentials in float32, sums in float64, as llama.cpp."""
    out = np.empty(len(targets))
    for start in range(0, len(targets), _ROWS):
        part = logits[start : start + _ROWS]
        wanted = targets[start : start + _ROWS]
        top = part.max(axis=1)
        total = np.exp(part - top[:, None]).sum(axis=1, dtype=np.float64)
        given = part[np.arange(len(wanted)), wanted].astype(np.float64)
        out[start : start + _ROWS] = np.log(total) - (given - top)
    return out


def _divergence(logits: Any, reference: Any) -> Floats:
    """KL(reference || model) of each position, nats, `[scored]`."""
    out = np.empty(len(logits))
    for start in range(0, len(logits), _ROWS):
        p = _log_probabilities(reference[start : start + _ROWS])
        q = _log_probabilities(logits[start : start + _ROWS])
        out[start : start + _ROWS] = (np.exp(p) * (p - q)).sum(axis=1)
    return out


def _bytes(one: Loaded, text: chunks.Text) -> chunks.Ids:
    return chunks.ByteLengths(one.tokenizer).of(text.scored.ravel().tolist())


def _say(progress: Progress | None, text: chunks.Text, number: int, nats: list[Floats]) -> None:
    if progress is not None:
        sofar = math.exp(min(sum(float(n.sum()) for n in nats) / sum(map(len, nats)), 700))
        progress(f"{text.name}: chunk {number + 1}/{len(text.chunks)}, perplexity {sofar:.4f}")
