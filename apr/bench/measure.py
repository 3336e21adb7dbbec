"""Rounds: every test on all sides in turns, the memory's bandwidth probed between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from apr.bench import memory
from apr.bench.record import Bandwidth, Row, probed
from apr.bench.sizes import Test
from apr.bench.timing import Samples, warm_up
from apr.errors import AprError, InferenceError
from apr.model import costs

if TYPE_CHECKING:
    from apr.engine import Engine

Progress = Callable[[str], None]


class Work(Protocol):
    """A test on one side. `run` gives seconds; after a prompt `first_token` is set."""

    first_token: float

    def run(self) -> float:
        """Seconds of one run."""


def measure(
    engines: Sequence[Engine | None],
    tests: Sequence[Test],
    sides: Sequence[Callable[[Test], Work]],
    repetitions: int,
    progress: Progress | None,
) -> list[list[Row]]:
    """Rows of every side: for each test all sides in turns, the order reversed every round.

    Args:
        engines: those that figures of weights and cache are taken of; the first is one of ours.
            None for a peer, of which they are not known: it has those of the first.
        tests: in order.
        sides: make the work of a test.
        repetitions: rounds.
        progress: called with a test's name.

    Raises:
        InferenceError: it could not be measured.
    """
    out: list[list[Row]] = [[] for _ in sides]
    main = engines[0]
    assert main is not None
    try:
        nominal = memory.known_bandwidth(main.device, main.plan.hardware)
        probe = memory.Probe(main.device, threads=main.plan.threads) if nominal is None else None
        for test in tests:
            if progress is not None:
                progress(test.name)
            work = [side(test) for side in sides]
            warm = [warm_up(w.run) for w in work]
            seconds: list[list[float]] = [[] for _ in work]
            first: list[list[float]] = [[] for _ in work]
            probes = [probe.read()] if probe else []
            for repetition in range(repetitions):
                order = range(len(work)) if repetition % 2 == 0 else reversed(range(len(work)))
                for i in order:
                    seconds[i].append(work[i].run())
                    first[i].append(work[i].first_token)
                if probe:
                    probes.append(probe.read())
            bandwidth = (
                probed(probes, probe.reader, probe.held_bytes)
                if probe
                else Bandwidth(nominal, "maker's figure")
                if nominal is not None
                else None
            )
            for i, engine in enumerate(engines):
                own = engine or main
                out[i].append(
                    Row(
                        test=test.name,
                        tokens=test.tokens * test.batch,
                        samples=Samples(tuple(seconds[i])),
                        warm_up=warm[i],
                        bytes_per_token=streamed_bytes(own, test.tokens, test.depth, test.batch),
                        flops_per_token=costs.forward_flops_per_token(
                            own.architecture, test.depth + test.tokens // 2
                        ),
                        bandwidth=bandwidth,
                        peak_flops=(costs.peaks(own.plan.hardware) or (None,))[0],
                        time_to_first_token=(
                            Samples(tuple(first[i])) if test.kind == "pp" else None
                        ),
                        depth=test.depth,
                        batch=test.batch,
                        speculation=getattr(work[i], "speculation", None),
                    )
                )
    except AprError:
        raise
    except (RuntimeError, MemoryError, OSError) as error:
        text = (str(error).splitlines() or [type(error).__name__])[0]
        raise InferenceError("bench", f"could not be measured: {text}") from error
    return out


def streamed_bytes(engine: Engine, steps: int, depth: int = 0, batch: int = 1) -> float:
    """Bytes that a decode step must read for each of its tokens: weights and cache.

    The weights count as they are stored where they are computed with as stored (whatever the
    kernels repack them to), else in the dtype that they were widened to; of an embedding that is
    only looked up, one row. The cache counts at the mean depth of `steps` steps after `depth`
    tokens, or after one.
    """
    plan = engine.plan
    weights = float(plan.weight_bytes - engine.looked_up_bytes)
    if plan.weights == "as stored":
        weights *= min(1.0, sum(plan.stored.values()) / plan.weight_bytes)
    return weights / batch + engine.cache_bytes_per_token * (max(depth, 1) + (steps + 1) / 2)
