"""Measure `apr export` on a large random model: its speed against cp, and its peak memory.

    python scripts/bench_export.py --work DIR [--gigabytes 1] [--with-proof]

Makes a random Llama in float32 in DIR, copies it with cp (flushed to disk), exports it, and prints
one JSON document with the receipt. Each export runs in a process of its own, so that its peak
resident size is its own. The proof is left out of the write's time and, with --with-proof, also
measured as a user sees it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from apr import families
from apr.architecture import Architecture
from apr.atomic import sync_file
from apr.checkpoint import write_checkpoint
from apr.dtypes import DTYPES
from apr.receipt import receipt
from apr.tensors import Bytes, Tensor
from apr.tokenizer import train

CASES = [("gguf", None), ("gguf", "bf16"), ("gguf", "q8_0"), ("safetensors", None)]


def make_model(path: Path, gigabytes: float) -> None:
    """A random Llama of about that many bytes in float32, its tokenizer trained on this file."""
    shape = {"hidden_size": 2048, "num_heads": 32, "num_kv_heads": 4, "head_dim": 64,
             "intermediate_size": 5632, "vocab_size": 4096, "max_position_embeddings": 2048,
             "rms_norm_eps": 1e-5, "rope_theta": 10_000.0}  # fmt: skip
    one = families.num_parameters(Architecture(family="llama", num_layers=1, **shape))
    two = families.num_parameters(Architecture(family="llama", num_layers=2, **shape))
    layers = max(1, round((gigabytes * 1e9 / 4 - (2 * one - two)) / (two - one)))
    architecture = Architecture(family="llama", num_layers=layers, **shape)
    generator = np.random.default_rng(0)

    def tensor(spec: families.TensorSpec) -> Tensor:
        def load() -> Bytes:
            values = generator.standard_normal(spec.shape, dtype=np.float32) * np.float32(0.02)
            if len(spec.shape) == 1:
                values += 1
            return values.reshape(-1).view(np.uint8)

        return Tensor(spec.name, DTYPES["F32"], spec.shape, load)

    write_checkpoint(
        path,
        architecture=architecture,
        tokenizer=train(iter([Path(__file__).read_text(encoding="utf-8")]), 512, "qwen2"),
        tensors=[tensor(spec) for spec in families.tensor_specs(architecture)],
        metadata={"name": "random"},
        force=True,
    )


def time_cp(source: Path, target: Path) -> float:
    """Seconds for cp, flushed to disk."""
    started = time.perf_counter()
    subprocess.run(["cp", source, target], check=True)
    sync_file(target)
    seconds = time.perf_counter() - started
    target.unlink()
    return seconds


def peak_rss_mb() -> float:
    """Peak resident size of this process (getrusage would hand down the parent's)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def child(source: Path, target: Path, format: str, quantize: str | None, prove: bool) -> None:
    """One export in this process; its figures as JSON on stdout."""
    from apr.export import export

    base = peak_rss_mb()
    started = time.perf_counter()
    report = export(
        source, target, format=format, quantize=quantize, force=True, prove=prove, threads=2
    )
    figures = {
        "format": format,
        "quantize": quantize,
        "size_bytes": report.size_bytes,
        "write_seconds": report.write_seconds,
        "proof_seconds": report.proof_seconds if prove else None,
        "total_seconds": time.perf_counter() - started,
        "peak_rss_mb": peak_rss_mb(),
        "rss_before_mb": base,
        "checks": {c.id: [c.outcome.verdict, round(c.seconds, 2)] for c in report.checks},
    }
    print(json.dumps(figures))


def measure(source: Path, work: Path, format: str, quantize: str | None, prove: bool) -> dict:
    """One export in a fresh process."""
    target = work / f"out.{format}-{quantize}"
    command = [sys.executable, __file__, "--child", json.dumps([str(source), str(target), format,
               quantize, prove])]  # fmt: skip
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink()
    target.with_name(target.name + ".proof.json").unlink(missing_ok=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--with-proof", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        source, target, *rest = json.loads(options.child)
        child(Path(source), Path(target), *rest)
        return
    if options.work is None:
        parser.error("--work DIR is needed: where the model and its copies may be written")
    options.work.mkdir(parents=True, exist_ok=True)
    source = options.work / f"random-{options.gigabytes:g}gb.apr"
    if not source.exists():
        make_model(source, options.gigabytes)
    size = source.stat().st_size
    copies = [time_cp(source, options.work / "copy") for _ in range(options.repeat)]
    rows = []
    for format, quantize in CASES:
        samples = [
            measure(source, options.work, format, quantize, False) for _ in range(options.repeat)
        ]
        median = sorted(samples, key=lambda s: s["write_seconds"])[len(samples) // 2]
        row = {**median, "samples": [s["write_seconds"] for s in samples]}
        row["of_cp"] = sorted(copies)[len(copies) // 2] / median["write_seconds"]
        if options.with_proof:
            row["with_proof"] = measure(source, options.work, format, quantize, True)
        rows.append(row)
        print(json.dumps(row), file=sys.stderr)
    print(
        json.dumps(
            {
                "source_bytes": size,
                "cp_seconds": sorted(copies)[len(copies) // 2],
                "cp_samples": copies,
                "load_average": os.getloadavg(),
                "exports": rows,
                "receipt": receipt("cpu"),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
