"""The one timer of `apr bench`: warm-up until stable, then samples and their spread.

A sample is the wall-clock time of one call, by a monotonic clock that the tests replace. Nothing is
divided by anything but this duration.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Clock = Callable[[], float]

NOISY = 0.05  # relative spread above which a figure is flagged
STABLE_RUNS = 3  # this many consecutive warm-up runs within NOISY of each other: stable
MAX_WARMUP = 12  # runs
MAX_WARMUP_SECONDS = 20.0


@dataclass(frozen=True)
class Samples:
    """Durations in seconds, in the order in which they were taken."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median, seconds."""
        return statistics.median(self.seconds)

    @property
    def mean(self) -> float:
        """Mean, seconds."""
        return statistics.fmean(self.seconds)

    @property
    def sd(self) -> float:
        """Standard deviation of the samples, seconds; 0 for a single one."""
        return statistics.stdev(self.seconds) if len(self.seconds) > 1 else 0.0

    def percentile(self, percent: float) -> float:
        """A percentile by linear interpolation between the samples, seconds."""
        return percentile(self.seconds, percent)

    def rates(self, amount: float) -> tuple[float, ...]:
        """`amount` per second for every sample."""
        return tuple(amount / s for s in self.seconds)


def percentile(values: Sequence[float], percent: float) -> float:
    """A percentile of any values, by linear interpolation."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def relative_spread(values: Sequence[float]) -> float:
    """Standard deviation over median; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    return statistics.stdev(values) / statistics.median(values)


@dataclass(frozen=True)
class WarmUp:
    """How many runs went before the first sample, and whether they settled."""

    runs: int
    stable: bool
    seconds: float


def timed(call: Callable[[], None], clock: Clock = time.perf_counter) -> float:
    """Seconds that one call takes."""
    start = clock()
    call()
    return clock() - start


def warm_up(
    sample: Callable[[], float],
    *,
    max_runs: int = MAX_WARMUP,
    max_seconds: float = MAX_WARMUP_SECONDS,
) -> WarmUp:
    """Repeat until the last runs agree within 5 %, or a limit is reached.

    Args:
        sample: does the work once and returns its seconds.
        max_runs: at most so many runs.
        max_seconds: no further run once so much time went by (measured work alone).
    """
    seconds: list[float] = []
    while len(seconds) < max_runs and sum(seconds) < max_seconds:
        seconds.append(sample())
        last = seconds[-STABLE_RUNS:]
        if len(last) == STABLE_RUNS and max(last) <= min(last) * (1 + NOISY):
            return WarmUp(len(seconds), True, sum(seconds))
    return WarmUp(len(seconds), False, sum(seconds))
