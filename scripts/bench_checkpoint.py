"""Measure the `.apr` file: opening and listing, writing against `cp`, verifying, peak memory.

    python scripts/bench_checkpoint.py --gigabytes 5 --dir /var/tmp

Makes a file of that size with the tensors of a real model's shapes (a 7 B Llama's, as many layers
as fit) in a fresh sub-folder of `--dir`, which is removed at the end. Each figure comes from a
process of its own, so that one's memory is not another's. A table goes to stderr, one JSON document
with a receipt to stdout.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HIDDEN, FEED_FORWARD, VOCABULARY = 4096, 11008, 32000


def shapes(target_bytes: int) -> list[tuple[str, tuple[int, int]]]:
    """Names and shapes of bf16 tensors, about `target_bytes` together."""
    out = [("model.embed_tokens.weight", (VOCABULARY, HIDDEN))]
    left = target_bytes - 2 * VOCABULARY * HIDDEN
    layer = 0
    while left > 0:
        for kind, rows, columns in (
            ("self_attn.q_proj", HIDDEN, HIDDEN),
            ("self_attn.o_proj", HIDDEN, HIDDEN),
            ("mlp.gate_proj", FEED_FORWARD, HIDDEN),
            ("mlp.down_proj", HIDDEN, FEED_FORWARD),
        ):
            rows = min(rows, max(1, left // (2 * columns)))
            if left > 0:
                out.append((f"model.layers.{layer}.{kind}.weight", (rows, columns)))
                left -= 2 * rows * columns
        layer += 1
    return out


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def child_write(path: Path, target_bytes: int) -> dict[str, Any]:
    """Write generated tensors: what training does, without its cost."""
    import numpy as np

    from apr.checkpoint import write_apr
    from apr.dtypes import DTYPES
    from apr.tensors import Bytes, Tensor

    pool = np.random.default_rng(0).integers(0, 256, 4 << 20, dtype=np.uint8)

    def tensor(name: str, shape: tuple[int, int]) -> Tensor:
        nbytes = DTYPES["BF16"].nbytes(shape)

        def stream() -> Iterator[Bytes]:
            for start in range(0, nbytes, pool.size):
                yield pool[: min(pool.size, nbytes - start)]

        def load() -> Bytes:
            raise NotImplementedError("only streamed")

        return Tensor(name, DTYPES["BF16"], shape, load, stream)

    tensors = [tensor(name, shape) for name, shape in shapes(target_bytes)]
    before = peak_mb()
    started = time.perf_counter()
    written = write_apr(path, {"model_type": "bench"}, tensors)
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "bytes": written.size_bytes,
        "peak_mb": peak_mb(),
        "base_mb": before,
    }


def child_copy(source: Path, path: Path) -> dict[str, Any]:
    """Copy tensor by tensor from a mapped file: what convert does."""
    from apr.checkpoint import AprFile, write_apr

    before = peak_mb()
    started = time.perf_counter()
    file = AprFile.open(source)
    write_apr(path, file.metadata, list(file.tensors.values()))
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "bytes": file.size_bytes, "peak_mb": peak_mb(), "base_mb": before}


def child_verify(path: Path) -> dict[str, Any]:
    from apr.checkpoint import verify

    before = peak_mb()
    report = verify(path)
    return {
        "seconds": report.seconds,
        "bytes": report.size_bytes,
        "peak_mb": peak_mb(),
        "base_mb": before,
    }


def child_open(path: Path) -> dict[str, Any]:
    """Open, and name every tensor with type and shape; the modules are loaded before the clock."""
    from apr.checkpoint import AprFile

    before = peak_mb()
    samples = []
    for _ in range(20):
        started = time.perf_counter()
        file = AprFile.open(path)
        listed = [(t.name, t.dtype.name, t.shape, t.nbytes) for t in file.tensors.values()]
        samples.append(time.perf_counter() - started)
    return {
        "seconds": statistics.median(samples),
        "first_seconds": samples[0],
        "worst_seconds": max(samples),
        "tensors": len(listed),
        "bytes": file.size_bytes,
        "peak_mb": peak_mb(),
        "base_mb": before,
    }


def in_child(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, *arguments], check=True, capture_output=True, text=True
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def timed_cp(source: Path, target: Path) -> dict[str, Any]:
    """`cp` followed by `sync` of the copy, because our writer flushes to disk too."""
    started = time.perf_counter()
    subprocess.run(["cp", str(source), str(target)], check=True)
    subprocess.run(["sync", str(target)], check=True)
    return {"seconds": time.perf_counter() - started, "bytes": target.stat().st_size}


def paired(rounds: int, folder: Path, source: Path) -> tuple[list[Any], list[Any]]:
    """Our copy and `cp` in turn, so that both meet the same disk."""
    target = folder / "copy"

    def copy() -> dict[str, Any]:
        return in_child("--child", "copy", str(source), str(target))

    def cp() -> dict[str, Any]:
        return timed_cp(source, target)

    found: dict[str, list[dict[str, Any]]] = {"copy": [], "cp": []}
    for number in range(rounds):
        order: list[tuple[str, Callable[[], dict[str, Any]]]] = [("copy", copy), ("cp", cp)]
        for name, run in order if number % 2 == 0 else order[::-1]:
            found[name].append(run())
            target.unlink()
    return found["copy"], found["cp"]


def measure(target_bytes: int, folder: Path, rounds: int) -> dict[str, Any]:
    from apr.receipt import receipt

    path = folder / "bench.apr"
    out: dict[str, Any] = {"write": in_child("--child", "write", str(path), str(target_bytes))}
    out["open_and_list"] = in_child("--child", "open", str(path))
    out["verify"] = in_child("--child", "verify", str(path))
    ours, theirs = paired(rounds, folder, path)
    out["copy"], out["cp"] = ours, theirs
    out["copy_over_cp"] = statistics.median(
        a["seconds"] / b["seconds"] for a, b in zip(ours, theirs, strict=True)
    )
    out["receipt"] = receipt()
    return out


def show(result: dict[str, Any]) -> None:
    rows = [("write (generated)", [result["write"]]), ("verify", [result["verify"]])]
    rows += [("copy (mapped .apr)", result["copy"]), ("cp and sync", result["cp"])]
    print(f"file: {result['write']['bytes'] / 1e9:.2f} GB", file=sys.stderr)
    print(f"{'':22}{'seconds':>10}{'MB/s':>10}{'peak MB':>10}", file=sys.stderr)
    for name, runs in rows:
        seconds = statistics.median(run["seconds"] for run in runs)
        peak = max(run.get("peak_mb", 0) for run in runs)
        speed = runs[0]["bytes"] / seconds / 1e6
        print(f"{name:22}{seconds:>10.2f}{speed:>10.0f}{peak or '':>10.4}", file=sys.stderr)
    opened = result["open_and_list"]
    print(
        f"open and list {opened['tensors']} tensors: median {opened['seconds'] * 1e3:.2f} ms, "
        f"first {opened['first_seconds'] * 1e3:.2f} ms, peak {opened['peak_mb']:.0f} MB "
        f"(of which {opened['base_mb']:.0f} MB python and numpy)",
        file=sys.stderr,
    )
    print(f"copy over cp, paired: {result['copy_over_cp']:.2f}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--gigabytes", type=float, default=5.0, help="size in 10^9 bytes")
    parser.add_argument("--dir", type=Path, default=None, help="where (default: TMPDIR)")
    parser.add_argument("--rounds", type=int, default=3, help="paired copies against cp")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        kind, *rest = arguments.child
        first = Path(rest[0])
        if kind == "write":
            result = child_write(first, int(rest[1]))
        elif kind == "copy":
            result = child_copy(first, Path(rest[1]))
        else:
            result = {"open": child_open, "verify": child_verify}[kind](first)
        print(json.dumps(result))
        return
    target_bytes = int(arguments.gigabytes * 1e9)
    where = arguments.dir or Path(tempfile.gettempdir())
    free, needed = shutil.disk_usage(where).free, int(2.2 * target_bytes)
    if free < needed:
        sys.exit(
            f"{where}: {free / 1e9:.1f} GB free, the file and its copy need {needed / 1e9:.1f}"
        )
    with tempfile.TemporaryDirectory(dir=where, prefix="apr-bench-") as folder:
        result = measure(target_bytes, Path(folder), arguments.rounds)
    show(result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
