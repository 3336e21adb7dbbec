"""The timer against a known workload: a fake engine that takes exactly the time it says."""

import math
import statistics

import numpy as np
import pytest

from apr.bench.timing import MAX_WARMUP, Samples, percentile, relative_spread, warm_up
from apr.bench.workload import Workload


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self):
        self.now = 1_700_000_000.0  # a rate divided by a start time would be far off

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class FakeSession:
    def __init__(self, engine):
        self.engine = engine

    def prefill(self, ids):
        self.engine.calls.append(("prefill", len(ids)))
        self.engine.pending += 0.002 * len(ids)
        return np.zeros(4)

    def decode(self, token_id):
        self.engine.calls.append(("decode", token_id))
        self.engine.pending += 0.05
        return np.zeros(4)


class FakeEngine:
    """2 ms a prompt token, 50 ms a step; works asynchronously, like a GPU, until synchronized."""

    def __init__(self, clock):
        self.clock, self.pending, self.calls = clock, 0.0, []

    def session(self):
        self.clock.sleep(0.003)
        return FakeSession(self)

    def synchronize(self):
        self.clock.sleep(self.pending)
        self.pending = 0.0


@pytest.fixture
def clock():
    return Clock()


def test_a_known_prompt_is_timed_to_the_millisecond_without_making_the_session(clock):
    work = Workload(FakeEngine(clock), "pp", 100, vocab=50, clock=clock)
    assert work.run() == pytest.approx(0.2)
    assert work.first_token == pytest.approx(0.203)


def test_known_decode_steps_are_timed_without_the_prompt_before_them(clock):
    engine = FakeEngine(clock)
    work = Workload(engine, "tg", 20, vocab=50, clock=clock)
    assert work.run() == pytest.approx(1.0)
    assert [name for name, _ in engine.calls] == ["prefill"] + ["decode"] * 20
    assert engine.calls[0] == ("prefill", 1)


def test_every_run_asks_the_same_ids_below_the_vocabulary(clock):
    engines = [FakeEngine(clock), FakeEngine(clock)]
    for engine in engines:
        Workload(engine, "tg", 30, vocab=7, clock=clock).run()
    assert engines[0].calls == engines[1].calls
    assert all(0 <= token < 7 for name, token in engines[0].calls if name == "decode")


def test_warm_up_ends_when_the_last_runs_agree():
    durations = iter([5.0, 2.0, 1.2, 1.0, 1.01, 1.02, 9.0])
    warm = warm_up(lambda: next(durations))
    assert (warm.runs, warm.stable) == (6, True)
    assert warm.seconds == pytest.approx(11.23)


def test_warm_up_that_never_settles_ends_at_its_limits_and_says_so():
    values = iter(range(1, 10**6))
    warm = warm_up(lambda: 1e-6 * next(values) ** 2)
    assert (warm.runs, warm.stable) == (MAX_WARMUP, False)
    warm = warm_up(lambda: 30.0, max_seconds=50.0)
    assert (warm.runs, warm.stable) == (2, False)


def test_figures_are_those_of_numpy_and_statistics():
    values = (0.11, 0.1, 0.13, 0.09, 0.1)
    samples = Samples(values)
    assert samples.median == 0.1
    assert samples.sd == pytest.approx(np.std(values, ddof=1))
    assert samples.percentile(90) == pytest.approx(np.percentile(values, 90))
    assert percentile([3.0], 10) == 3.0
    assert samples.rates(10) == pytest.approx([10 / v for v in values])
    spread = statistics.stdev(values) / 0.1
    assert relative_spread(values) == pytest.approx(spread)
    assert relative_spread((1.0,)) == 0.0
    assert Samples((1.0,)).sd == 0.0
    assert math.isfinite(samples.mean)
