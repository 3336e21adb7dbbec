"""What a measurement is: frozen data, JSON-ready, every figure beside what it was taken on."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from apr.bench.timing import NOISY, Samples, WarmUp, percentile, relative_spread


@dataclass(frozen=True)
class Bandwidth:
    """Bytes/s that memory can be read at: the maker's figure, or probes around the measurement.

    `held_bytes` is what the probe itself kept in memory meanwhile.
    """

    bytes_per_second: float
    source: str
    before: float | None = None
    after: float | None = None
    reader: str = ""
    probes: tuple[float, ...] = ()
    held_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """The bandwidth as JSON-ready values; `probes` before, between and after the rounds."""
        return {
            "bytes_per_second": self.bytes_per_second,
            "source": self.source,
            "reader": self.reader,
            "before": self.before,
            "after": self.after,
            "probes": list(self.probes),
        }


def probed(probes: Sequence[float], reader: str, held_bytes: int = 0) -> Bandwidth:
    """The median of probes taken before, between and after the rounds."""
    return Bandwidth(
        statistics.median(probes), "probed", probes[0], probes[-1], reader, tuple(probes),
        held_bytes,
    )  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One test: `pp128` is a prompt of 128 tokens in one pass, `tg64` 64 single decode steps.

    `tokens` counts those of all `batch` sequences. `bytes_per_token` 0: not known (a peer's).
    `speculation`: what became of guessed tokens in the last run; None where none were asked for.
    """

    test: str
    tokens: int
    samples: Samples
    warm_up: WarmUp
    bytes_per_token: float
    flops_per_token: float
    bandwidth: Bandwidth | None
    peak_flops: float | None
    time_to_first_token: Samples | None = None
    depth: int = 0
    batch: int = 1
    speculation: Mapping[str, int] | None = None

    @property
    def is_decode(self) -> bool:
        """Whether this is the decode test."""
        return self.test.startswith("tg")

    @property
    def rates(self) -> tuple[float, ...]:
        """Tokens per second of every sample."""
        return self.samples.rates(self.tokens)

    @property
    def tokens_per_second(self) -> float:
        """Median of the samples' rates."""
        return statistics.median(self.rates)

    @property
    def sd(self) -> float:
        """Standard deviation of the rates, tokens per second."""
        return statistics.stdev(self.rates) if len(self.rates) > 1 else 0.0

    @property
    def relative_sd(self) -> float:
        """Spread: standard deviation over median."""
        return relative_spread(self.rates)

    @property
    def noisy(self) -> bool:
        """A spread over 5 %, or a warm-up that never settled."""
        return self.relative_sd > NOISY or not self.warm_up.stable

    @property
    def mbu(self) -> float | None:
        """Share of the memory bandwidth that streaming weights and cache takes (decode only)."""
        if not self.is_decode or self.bandwidth is None or not self.bytes_per_token:
            return None
        if self.speculation is not None:  # a pass streams them for several tokens
            return None
        return self.bytes_per_token * self.tokens_per_second / self.bandwidth.bytes_per_second

    @property
    def mfu(self) -> float | None:
        """Share of the peak FLOP/s, where the peak is known."""
        if self.peak_flops is None:
            return None
        return self.flops_per_token * self.tokens_per_second / self.peak_flops

    def to_json(self) -> dict[str, Any]:
        """The row as JSON-ready values."""
        first = self.time_to_first_token
        return {
            "test": self.test,
            "tokens": self.tokens,
            "depth": self.depth,
            "batch": self.batch,
            "speculation": None if self.speculation is None else dict(self.speculation),
            "repetitions": len(self.samples.seconds),
            "tokens_per_second": self.tokens_per_second,
            "mean_tokens_per_second": statistics.fmean(self.rates),
            "sd_tokens_per_second": self.sd,
            "relative_sd": self.relative_sd,
            "noisy": self.noisy,
            "warm_up": {"runs": self.warm_up.runs, "stable": self.warm_up.stable},
            "median_ms": 1000 * self.samples.median,
            "mean_ms": 1000 * self.samples.mean,
            "std_dev_ms": 1000 * self.samples.sd,
            "p10_ms": 1000 * self.samples.percentile(10),
            "p90_ms": 1000 * self.samples.percentile(90),
            "samples_ms": [1000 * s for s in self.samples.seconds],
            "samples_tokens_per_second": list(self.rates),
            "time_to_first_token_ms": None
            if first is None
            else {
                "median": 1000 * first.median,
                "p90": 1000 * percentile(first.seconds, 90),
                "samples": [1000 * s for s in first.seconds],
            },
            "bytes_per_token": self.bytes_per_token if self.is_decode else None,
            "bandwidth": self.bandwidth and self.bandwidth.to_json(),
            "mbu": self.mbu,
            "mfu": self.mfu,
        }


@dataclass(frozen=True)
class Floor:
    """The decode speed that was asked for, tokens per second, and the one that was measured."""

    asked: float
    measured: float

    @property
    def held(self) -> bool:
        """Whether the median reaches it."""
        return self.measured >= self.asked


@dataclass(frozen=True)
class Record:
    """A file, measured. Memory in bytes; `notes` say what was adapted or is not as it seems."""

    model: str
    format: str
    size_bytes: int
    sha256: str
    parameters: int
    family: str
    plan: Mapping[str, Any]
    rows: tuple[Row, ...]
    peak_rss: int | None
    peak_cuda: int | None
    receipt: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    floor: Floor | None = None

    @property
    def decode(self) -> Row | None:
        """The decode row, if it was measured."""
        return next((row for row in self.rows if row.is_decode), None)

    @property
    def storage(self) -> str:
        """The file's storage types, the largest share first."""
        return "+".join(self.plan["stored"])

    def to_json(self) -> dict[str, Any]:
        """The record as JSON-ready values."""
        decode = self.decode
        first = next((r.time_to_first_token for r in self.rows if r.time_to_first_token), None)
        return {
            "model": self.model,
            "format": self.format,
            "size_bytes": self.size_bytes,
            "model_sha256": self.sha256,
            "architecture": self.family,
            "parameters": self.parameters,
            "stored": dict(self.plan["stored"]),
            "computed": self.plan["activations"],
            "tokens_per_second": decode.tokens_per_second if decode else None,
            "time_to_first_token_ms": 1000 * first.median if first else None,
            "results": [row.to_json() for row in self.rows],
            "peak_rss_bytes": self.peak_rss,
            "peak_cuda_bytes": self.peak_cuda,
            "floor": None
            if self.floor is None
            else {
                "asked": self.floor.asked,
                "measured": self.floor.measured,
                "passed": self.floor.held,
            },
            "notes": list(self.notes),
            "engine": dict(self.plan),
            "receipt": dict(self.receipt),
        }


@dataclass(frozen=True)
class Ratio:
    """Tokens per second of the first file over the second, pair by pair."""

    test: str
    pairs: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median of the paired ratios."""
        return statistics.median(self.pairs)

    @property
    def noisy(self) -> bool:
        """A spread over 5 %."""
        return relative_spread(self.pairs) > NOISY

    def to_json(self) -> dict[str, Any]:
        """The ratio as JSON-ready values."""
        return {
            "test": self.test,
            "median": self.median,
            "relative_sd": relative_spread(self.pairs),
            "min": min(self.pairs),
            "max": max(self.pairs),
            "pairs": list(self.pairs),
            "noisy": self.noisy,
        }


@dataclass(frozen=True)
class Comparison:
    """Two files measured in turns within one run."""

    first: Record
    second: Record
    ratios: tuple[Ratio, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """The first file's record with the second's and the ratios beside it."""
        return {
            **self.first.to_json(),
            "against": self.second.to_json(),
            "ratios": [ratio.to_json() for ratio in self.ratios],
        }
