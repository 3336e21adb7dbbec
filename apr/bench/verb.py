"""`run` and `compare`: load, hash, size the tests, measure in rounds, and make the record."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from apr.bench import memory
from apr.bench.record import Bandwidth, Comparison, Floor, Ratio, Record, Row
from apr.bench.timing import Samples, warm_up
from apr.bench.workload import Workload
from apr.errors import AprError, InferenceError, StrPath, UsageError
from apr.model import costs
from apr.receipt import file_sha256, receipt

if TYPE_CHECKING:
    from apr.engine import Engine
    from apr.formats.opened import OpenedModel

FORMATS = ("table", "md", "json", "csv")
DEFAULT_PROMPT, DEFAULT_DECODE, DEFAULT_REPETITIONS = 512, 128, 5
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Sizes:
    """Tests to run: tokens of each prompt and of each decode; empty leaves the kind out.

    None: the default, reduced to the context with a note. What was asked for is never reduced.
    """

    prompts: tuple[int, ...] | None = None
    decodes: tuple[int, ...] | None = None
    repetitions: int = DEFAULT_REPETITIONS


@dataclass
class _Loaded:
    model: OpenedModel
    engine: Engine
    sha256: str
    notes: list[str]


def run(
    path: StrPath,
    sizes: Sizes | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    floor: float | None = None,
    progress: Progress | None = None,
) -> Record:
    """Measure one file.

    Args:
        path: an `.apr` file, a GGUF file or a Hugging Face folder.
        sizes: tests and repetitions.
        device: as in `apr.engine.load`.
        dtype: likewise.
        threads: likewise.
        floor: decode speed to hold the median against, tokens per second.
        progress: called with a line before each step.

    Raises:
        UsageError: a size that does not fit into the context, or a floor without a decode test.
        InferenceError: it could not be measured.
        NotFound, InvalidFormat, ModelLoadError, FeatureUnavailable: it could not be loaded.
    """
    sizes = _check(sizes or Sizes(), floor)
    loaded = _load(path, device, dtype, threads, progress)
    tests = _tests([loaded], sizes)
    rows = _measure([loaded], tests, sizes.repetitions, progress)[0]
    return _record(loaded, rows, floor)


def compare(
    path: StrPath,
    against: StrPath,
    sizes: Sizes | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    floor: float | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Measure two files in turns (A B, B A, ...) and pair their samples. As `run` otherwise."""
    sizes = _check(sizes or Sizes(), floor)
    both = [_load(p, device, dtype, threads, progress) for p in (path, against)]
    tests = _tests(both, sizes)
    first, second = _measure(both, tests, sizes.repetitions, progress)
    ratios = tuple(
        Ratio(a.test, tuple(x / y for x, y in zip(a.rates, b.rates, strict=True)))
        for a, b in zip(first, second, strict=True)
    )
    return Comparison(_record(both[0], first, floor), _record(both[1], second, None), ratios)


def _check(sizes: Sizes, floor: float | None) -> Sizes:
    for flag, values in (("-p", sizes.prompts), ("-n", sizes.decodes)):
        if any(n < 0 for n in values or ()):
            raise UsageError(flag, "a number of tokens is not negative", "write 0 to leave it out")
    if sizes.repetitions < 1:
        raise UsageError("-r", f"{sizes.repetitions} is less than 1", "write 1 or more")
    trimmed = replace(
        sizes,
        prompts=sizes.prompts and tuple(n for n in sizes.prompts if n),
        decodes=sizes.decodes and tuple(n for n in sizes.decodes if n),
    )
    if trimmed.prompts == () and trimmed.decodes == ():
        raise UsageError("-p 0 -n 0", "leaves nothing to measure", "give one of them")
    if floor is not None:
        if trimmed.decodes == ():
            raise UsageError("--floor", "holds for decoding, which -n 0 leaves out", "drop -n 0")
        if not (math.isfinite(floor) and floor > 0):
            raise UsageError("--floor", f"{floor} is no speed", "write tokens per second above 0")
    return trimmed


def _load(
    path: StrPath,
    device: str | None,
    dtype: str | None,
    threads: int | None,
    progress: Progress | None,
) -> _Loaded:
    from apr import engine
    from apr.formats import open_model

    if progress is not None:
        progress(f"loading {path}")
    model = open_model(path)
    loaded = engine.load(model, device, dtype, threads)
    return _Loaded(model, loaded, file_sha256(Path(path)), [])


def _tests(loaded: Sequence[_Loaded], sizes: Sizes) -> list[tuple[str, int]]:
    """The tests that fit all files' contexts."""
    context = min(item.engine.context for item in loaded)
    out: list[tuple[str, int]] = []
    # A decode of n steps begins after one token.
    for kind, flag, asked, default, room in (
        ("pp", "-p", sizes.prompts, DEFAULT_PROMPT, context),
        ("tg", "-n", sizes.decodes, DEFAULT_DECODE, context - 1),
    ):
        if asked is None:
            fits = min(default, room)
            if fits < default:
                note = f"{kind}{fits} instead of {kind}{default}: the context has {context} tokens"
                for item in loaded:
                    item.notes.append(note)
            asked = (fits,) if fits > 0 else ()
        for tokens in asked:
            if tokens > room:
                raise UsageError(
                    f"{flag} {tokens}",
                    f"does not fit into the context of {context} tokens",
                    f"write {flag} {room} or less",
                )
            out.append((kind, tokens))
    if not out:
        raise InferenceError("bench", f"a context of {context} tokens leaves nothing to measure")
    return out


def _measure(
    loaded: Sequence[_Loaded],
    tests: Sequence[tuple[str, int]],
    repetitions: int,
    progress: Progress | None,
) -> list[list[Row]]:
    """Rows of every file: for each test all files in turns, the order reversed every round."""
    out: list[list[Row]] = [[] for _ in loaded]
    try:
        device = loaded[0].engine.device
        nominal = memory.known_bandwidth(device, loaded[0].engine.plan.hardware)
        probe = memory.Probe(device) if nominal is None else None
        for kind, tokens in tests:
            if progress is not None:
                progress(f"{kind}{tokens}")
            work = [
                Workload(i.engine, kind, tokens, i.engine.architecture.vocab_size) for i in loaded
            ]
            before = probe.read() if probe else None
            warm = [warm_up(w.run) for w in work]
            seconds: list[list[float]] = [[] for _ in work]
            first: list[list[float]] = [[] for _ in work]
            for repetition in range(repetitions):
                order = range(len(work)) if repetition % 2 == 0 else reversed(range(len(work)))
                for i in order:
                    seconds[i].append(work[i].run())
                    first[i].append(work[i].first_token)
            after = probe.read() if probe else None
            bandwidth = (
                Bandwidth(nominal, "maker's figure")
                if nominal is not None
                else Bandwidth((before + after) / 2, "probed", before, after)
                if before and after
                else None
            )
            for i, item in enumerate(loaded):
                out[i].append(
                    Row(
                        test=f"{kind}{tokens}",
                        tokens=tokens,
                        samples=Samples(tuple(seconds[i])),
                        warm_up=warm[i],
                        bytes_per_token=streamed_bytes(item.engine, tokens),
                        flops_per_token=costs.forward_flops_per_token(
                            item.engine.architecture, tokens // 2
                        ),
                        bandwidth=bandwidth,
                        peak_flops=(costs.peaks(item.engine.plan.hardware) or (None,))[0],
                        time_to_first_token=Samples(tuple(first[i])) if kind == "pp" else None,
                    )
                )
    except AprError:
        raise
    except (RuntimeError, MemoryError, OSError) as error:
        text = (str(error).splitlines() or [type(error).__name__])[0]
        raise InferenceError("bench", f"could not be measured: {text}") from error
    return out


def streamed_bytes(engine: Engine, steps: int) -> float:
    """Bytes that a decode step reads: all weights but the looked-up embedding, and the cache.

    The cache counts at the mean depth of `steps` steps after one token. A tied embedding is the
    head as well, so it is read whole.
    """
    plan, arch = engine.plan, engine.architecture
    element = engine.dtype.itemsize
    weights = float(plan.weight_bytes)
    if not arch.tie_word_embeddings:
        weights -= (arch.vocab_size - 1) * arch.hidden_size * element
    return weights + costs.cache_bytes_per_token(arch, element) * (steps + 3) / 2


def _record(loaded: _Loaded, rows: Sequence[Row], floor: float | None) -> Record:
    engine, model = loaded.engine, loaded.model
    notes = list(loaded.notes)
    for row in rows:
        if row.mbu is not None and row.mbu > 1:
            notes.append(f"{row.test}: MBU over 100 %, the weights fit into a cache")
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
        peak_rss=memory.peak_rss(),
        peak_cuda=memory.peak_cuda(engine.device),
        receipt=receipt(engine.plan.device),
        notes=tuple(notes),
        floor=Floor(floor, decode.tokens_per_second) if floor is not None and decode else None,
    )
