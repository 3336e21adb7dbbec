"""`run` and `compare`: load, hash, size the tests, measure in rounds, and make the record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from apr.bench import memory
from apr.bench import peer as peers
from apr.bench.measure import Progress, Work, measure
from apr.bench.record import Comparison, Floor, Ratio, Record, Row
from apr.bench.sizes import Sizes, Test, check, continuing, plan
from apr.bench.workload import Continuation, Workload
from apr.errors import StrPath, UsageError
from apr.receipt import file_sha256, receipt

if TYPE_CHECKING:
    from apr.engine import Engine
    from apr.formats.opened import OpenedModel

FORMATS = ("table", "md", "json", "csv")


@dataclass
class _Loaded:
    model: OpenedModel
    engine: Engine
    sha256: str
    notes: list[str]
    peak_rss: int = 0  # once it was loaded


def run(
    path: StrPath,
    sizes: Sizes | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    kernels: str | None = None,
    cache: str | None = None,
    floor: float | None = None,
    speculate: int | None = None,
    text: str | None = None,
    progress: Progress | None = None,
) -> Record:
    """Measure one file.

    Args:
        path: an `.apr` file, a GGUF file or a Hugging Face folder.
        sizes: tests and repetitions.
        device: as in `apr.engine.load`.
        dtype: likewise.
        threads: likewise.
        kernels: likewise.
        cache: likewise.
        floor: decode speed to hold the median against, tokens per second.
        speculate: also continue `text`, without guesses and with up to so many a pass.
        text: what is continued then; a real one, for random tokens repeat nothing.
        progress: called with a line before each step.

    Raises:
        UsageError: a size that does not fit into the context, or a floor without a decode test.
        InferenceError: it could not be measured.
        NotFound, InvalidFormat, ModelLoadError, FeatureUnavailable: it could not be loaded.
    """
    sizes = check(sizes or Sizes(), floor)
    loaded = _load(path, (device, dtype, threads, kernels, cache), progress)
    tests = _tests([loaded], sizes)
    if speculate is not None:
        ids = tuple(loaded.model.require_tokenizer().encode(text or ""))
        tests += continuing(ids, speculate, sizes.decodes, loaded.engine.context)
    rows = measure(
        [loaded.engine], tests, [lambda t: _work(loaded, t)], sizes.repetitions, progress
    )[0]
    return _record(loaded, rows, floor)


def compare(
    path: StrPath,
    against: StrPath,
    sizes: Sizes | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    kernels: str | None = None,
    cache: str | None = None,
    floor: float | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Measure two files in turns (A B, B A, ...) and pair their samples. As `run` otherwise."""
    sizes = check(sizes or Sizes(), floor)
    asked = (device, dtype, threads, kernels, cache)
    both = [_load(p, asked, progress) for p in (path, against)]
    tests = _tests(both, sizes)
    first, second = measure(
        [item.engine for item in both], tests,
        [lambda t: _work(both[0], t), lambda t: _work(both[1], t)], sizes.repetitions, progress,
    )  # fmt: skip
    return Comparison(
        _record(both[0], first, floor), _record(both[1], second, None), _ratios(first, second)
    )


def against_peer(
    path: StrPath,
    sizes: Sizes | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    kernels: str | None = None,
    cache: str | None = None,
    floor: float | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Measure a GGUF file in turns with llama.cpp (ours, theirs, theirs, ours, ...).

    The peer has its own process, the same file and the same number of threads. As `run` otherwise.

    Raises:
        UsageError: the model is no GGUF file, or is to run on a GPU.
        FeatureUnavailable: the peer is not installed.
    """
    from apr.formats import open_model

    sizes = check(sizes or Sizes(), floor)
    if device not in (None, "cpu"):
        raise UsageError(
            f"--against {peers.NAME}", f"runs the peer on the CPU, not on {device}",
            "write --device cpu",
        )  # fmt: skip
    peers.check(Path(path), open_model(path).format)
    ours = _load(path, ("cpu", dtype, threads, kernels, cache), progress)
    tests = _tests([ours], sizes)
    with peers.Peer(Path(path), ours.engine.plan.threads) as peer:
        first, second = measure(
            [ours.engine, None], tests,
            [lambda t: _work(ours, t), lambda t: peers.PeerWorkload(peer, t)],
            sizes.repetitions, progress,
        )  # fmt: skip
        theirs = _peer_record(ours, second, peer)
    return Comparison(_record(ours, first, floor), theirs, _ratios(first, second))


def _ratios(first: Sequence[Row], second: Sequence[Row]) -> tuple[Ratio, ...]:
    return tuple(
        Ratio(a.test, tuple(x / y for x, y in zip(a.rates, b.rates, strict=True)))
        for a, b in zip(first, second, strict=True)
    )


def _peer_record(ours: _Loaded, rows: Sequence[Row], peer: peers.Peer) -> Record:
    plan = ours.engine.plan.to_json()
    plan.update(
        engine=f"llama.cpp (llama-cpp-python {peer.facts['version']})",
        kernels="extra buffer types on" if peer.extra_buffers else "extra buffer types off",
        weights="as stored", activations="", cache="float16", reason="",
        system=peer.facts["system"], weight_bytes=None, mapped_bytes=None,
    )  # fmt: skip
    noisy = [f"{r.test} is noisy: spread {r.relative_sd:.1%}" for r in rows if r.noisy]
    return Record(
        model=peers.NAME,
        format=ours.model.format,
        size_bytes=ours.model.size_bytes,
        sha256=ours.sha256,
        parameters=sum(t.num_elements for t in ours.model.tensors.values()),
        family=ours.model.architecture.family,
        plan=plan,
        rows=tuple(rows),
        peak_rss=peer.peak_rss,
        peak_cuda=None,
        receipt=receipt("cpu"),
        notes=(*peer.notes, *noisy),
    )


def _load(
    path: StrPath,
    asked: tuple[str | None, str | None, int | None, str | None, str | None],
    progress: Progress | None,
) -> _Loaded:
    from apr import engine
    from apr.formats import open_model

    if progress is not None:
        progress(f"loading {path}")
    model = open_model(path)
    loaded = engine.load(model, *asked)
    return _Loaded(model, loaded, file_sha256(Path(path)), [], memory.peak_rss() or 0)


def _tests(loaded: Sequence[_Loaded], sizes: Sizes) -> list[Test]:
    """The tests that fit all files' contexts."""
    tests, notes = plan(sizes, min(item.engine.context for item in loaded))
    for item in loaded:
        item.notes += notes
    return tests


def _work(item: _Loaded, test: Test) -> Work:
    if test.text:
        return Continuation(item.engine, test)
    vocab = item.engine.architecture.vocab_size
    return Workload(item.engine, test.kind, test.tokens, vocab, depth=test.depth, batch=test.batch)


def _record(loaded: _Loaded, rows: Sequence[Row], floor: float | None) -> Record:
    engine, model = loaded.engine, loaded.model
    notes = list(loaded.notes)
    for row in rows:
        if row.mbu is not None and row.mbu > 1:
            notes.append(f"{row.test}: MBU over 100 %, the weights fit into a cache")
        if row.speculation is not None:
            found = row.speculation
            notes.append(
                f"{row.test}: {found['accepted_tokens']} of {found['drafted_tokens']} guesses were "
                f"right, in {found['passes']} passes"
            )
        if row.noisy:
            why = f"spread {row.relative_sd:.1%}"
            if not row.warm_up.stable:
                why += f", warm-up not stable after {row.warm_up.runs} runs"
            notes.append(f"{row.test} is noisy: {why}")
    decode = next((r for r in rows if r.is_decode), None)
    return Record(
        model=str(model.path),
        format=model.format,
        size_bytes=model.size_bytes,
        sha256=loaded.sha256,
        parameters=sum(t.num_elements for t in model.tensors.values()),
        family=model.architecture.family,
        plan=engine.plan.to_json(),
        rows=tuple(rows),
        peak_rss=_peak_without_probe(loaded, rows),
        peak_cuda=memory.peak_cuda(engine.device),
        receipt=receipt(engine.plan.device),
        notes=tuple(notes),
        floor=Floor(floor, decode.tokens_per_second) if floor is not None and decode else None,
    )


def _peak_without_probe(loaded: _Loaded, rows: Sequence[Row]) -> int | None:
    """The most memory that loading and computing took; the bandwidth's buffer is not theirs."""
    peak = memory.peak_rss()
    held = max((row.bandwidth.held_bytes for row in rows if row.bandwidth), default=0)
    return None if peak is None else max(loaded.peak_rss, peak - held)
