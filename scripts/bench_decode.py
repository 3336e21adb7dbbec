"""Measure how fast block types become float32, beside the gguf package's own code.

    python scripts/bench_decode.py [--elements 16777216] [--repeat 9] [--types Q8_0,Q4_K] [--json]

One thread. For each type the same random blocks go through `iter_float32` (pieces that are dropped
at once: what streaming verbs do), through `decode` (into one new array: what loading does) and
through `gguf.quants.dequantize`, in turn, `--repeat` times. GB/s are given of the stored bytes that
go in and of the float32 that come out, per second of this thread's processor time, so that a busy
machine does not count as slow code (wall times stand in the JSON too): the median, and the spread
as (max - min) over it. The output of the two is compared to the bit before anything is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # before numpy is loaded

import numpy as np  # noqa: E402
from gguf import GGMLQuantizationType, quants  # noqa: E402

from apr import quant  # noqa: E402
from apr.dtypes import DTYPES, DType  # noqa: E402
from apr.quant import ggml  # noqa: E402
from apr.receipt import receipt  # noqa: E402

WIDTH = 4096  # elements of a row, as gguf gets them
WAYS = ("pieces", "whole", "gguf")


def random_blocks(dtype: DType, elements: int) -> np.ndarray:
    """Random codes and scales, `[rows, bytes of a row]`."""
    generator = np.random.default_rng(0)
    shape = (elements // dtype.block_size, dtype.block_bytes)
    out = generator.integers(0, 256, shape, dtype=np.uint8)
    if dtype.name == "MXFP4":  # its other exponents give subnormal numbers, which are slow to make
        out[:, 0] = generator.integers(100, 140, shape[0])
    return out.reshape(elements // WIDTH, -1)


def measure(dtype: DType, elements: int, repeat: int) -> dict[str, Any]:
    """Seconds and GB/s of one type."""
    rows = random_blocks(dtype, elements)
    flat, shape = rows.reshape(-1), (len(rows), WIDTH)
    kind = GGMLQuantizationType[dtype.name]

    def pieces() -> None:
        for _ in quant.iter_float32(dtype, flat, shape):
            pass

    with np.errstate(all="ignore"):
        theirs = quants.dequantize(rows, kind)
        ours = quant.decode(dtype, flat, shape)
        number = ~np.isnan(theirs)
        if not np.array_equal(np.isnan(ours), ~number) or not np.array_equal(
            ours.view(np.uint32)[number], theirs.view(np.uint32)[number]
        ):
            sys.exit(f"{dtype.name}: the two implementations differ")
        del theirs, ours, number
        runs: dict[str, Callable[[], object]] = {
            "pieces": pieces,
            "whole": lambda: quant.decode(dtype, flat, shape),
            "gguf": lambda: quants.dequantize(rows, kind),
        }
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        wall: dict[str, list[float]] = {way: [] for way in WAYS}
        for number_ in range(repeat):
            for way in WAYS if number_ % 2 == 0 else WAYS[::-1]:
                started, clock = time.perf_counter(), time.thread_time()
                runs[way]()
                seconds[way].append(time.thread_time() - clock)
                wall[way].append(time.perf_counter() - started)
    out: dict[str, Any] = {"type": dtype.name, "own_code": dtype.name in ggml.DECODABLE}
    for way, samples in seconds.items():
        median = statistics.median(samples)
        out[way] = {
            "stored_gb_per_s": rows.nbytes / median / 1e9,
            "float32_gb_per_s": 4 * elements / median / 1e9,
            "spread": (max(samples) - min(samples)) / median,
            "processor_seconds": samples,
            "wall_seconds": wall[way],
        }
    return out


def show(row: dict[str, Any]) -> None:
    """One line of the table."""
    cells = "".join(
        f"{row[way]['stored_gb_per_s']:9.2f}{row[way]['float32_gb_per_s']:7.2f}"
        f"{100 * row[way]['spread']:5.0f}%"
        for way in WAYS
    )
    mark = "" if row["own_code"] else "  (through gguf)"
    print(f"{row['type']:9}{cells}{mark}", file=sys.stderr)


def main() -> None:
    """Measure and print."""
    known = [kind.name for kind in quants._type_traits if kind.name in DTYPES]
    known.remove("BF16")
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--elements", type=int, default=1 << 24)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--types", default=",".join(known))
    parser.add_argument("--json", action="store_true", help="print the figures as JSON on stdout")
    options = parser.parse_args()
    before = os.getloadavg()
    print(f"{'':9}" + "".join(f"{way:>21}" for way in WAYS), file=sys.stderr)
    print(f"{'GB/s':9}" + f"{'stored':>9}{'f32':>7}{'+-':>5} " * len(WAYS), file=sys.stderr)
    rows = []
    for name in options.types.split(","):
        elements = options.elements // WIDTH * WIDTH
        rows.append(measure(DTYPES[name], elements, options.repeat))
        show(rows[-1])
    result = {
        "elements": options.elements,
        "repeat": options.repeat,
        "threads": 1,
        "load_average": {"before": before, "after": os.getloadavg()},
        "types": rows,
        "receipt": receipt("cpu"),
    }
    print(
        f"one thread of {result['receipt']['cpu']}, load before {before[0]:.2f}, "
        f"commit {result['receipt']['commit']}",
        file=sys.stderr,
    )
    if options.json:
        print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
