"""How fast sources become token shards: MB/s and tokens/s by workers, peak memory, receipt.

    python scripts/bench_data.py --dataset PATH... --tokenizer DIR [--workers 1 2] [--runs 3]
    python scripts/bench_data.py --generate 200 --tokenizer DIR     # 200 MB of made-up text

Each measurement is a process of its own, so that its peak memory is its own; runs of the worker
counts take turns. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from apr.receipt import receipt

TEXT = "the of and sun river stone wind 日本 über def return import self == ( ) : \n"
WORDS = TEXT.split(" ")


def generate(path: Path, megabytes: int) -> None:
    """Made-up text, every line different."""
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        written, number = 0, 0
        while written < megabytes * 1_000_000:
            number += 1
            text = f"{number} " + " ".join(rng.choices(WORDS, k=200)) + "\n"
            written += len(text.encode())
            file.write(text)


def measure_here(paths: list[str], tokenizer_dir: str, workers: int) -> None:
    """Build once; the figures as JSON on stdout."""
    from apr.data import build_dataset
    from apr.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_directory(tokenizer_dir)
    tokenizer.encode_batch(["warm"])
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        dataset = build_dataset(paths, tokenizer, Path(folder) / "out", workers=workers)
        seconds = time.perf_counter() - start
    manifest = dataset.manifest
    figures = {
        "seconds": seconds,
        "megabytes_per_second": manifest.bytes / 1e6 / seconds,
        "tokens_per_second": manifest.tokens / seconds,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "bytes": manifest.bytes,
        "tokens": manifest.tokens,
        "documents": manifest.documents,
        "split": manifest.split.mode,
        "shards_sha256": manifest.shards_sha256,
    }
    print(json.dumps(figures))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", nargs="*", default=[])
    parser.add_argument("--generate", type=int, default=0, metavar="MB")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--workers", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        measure_here(args.dataset, args.tokenizer, args.one)
        return
    with tempfile.TemporaryDirectory() as folder:
        paths = list(args.dataset)
        if args.generate:
            paths.append(str(Path(folder) / "generated.txt"))
            generate(Path(paths[-1]), args.generate)
        runs: dict[int, list[dict[str, float]]] = {workers: [] for workers in args.workers}
        for _ in range(args.runs):
            for workers in args.workers:
                command = [sys.executable, __file__, "--tokenizer", args.tokenizer]
                command += ["--one", str(workers), "--dataset", *paths]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                runs[workers].append(json.loads(done.stdout))
    out = {"results": [], "receipt": receipt()}
    for workers, samples in runs.items():
        speeds = [sample["megabytes_per_second"] for sample in samples]
        middle = statistics.median(speeds)
        out["results"].append(
            {
                "workers": workers,
                "megabytes_per_second": middle,
                "spread": (max(speeds) - min(speeds)) / middle,
                "tokens_per_second": statistics.median(s["tokens_per_second"] for s in samples),
                "peak_rss_mb": max(sample["peak_rss_mb"] for sample in samples),
                "samples": samples,
            }
        )
    print(json.dumps(out, indent=2))


if __name__ == "__main__":
    main()
