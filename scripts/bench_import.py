"""Measure `apr import` of a large random Hugging Face folder: speed against cp, and peak memory.

    python scripts/bench_import.py --work DIR [--gigabytes 3] [--repeat 5] [--keep]

Makes a folder in DIR: a Llama's shapes, random bfloat16 weights in shards of 1 GB, a tokenizer.
Copies it with cp and imports it, in turn and both flushed to disk, `--repeat` times; then imports
it once with the proof (without peers; with --peers also with them). Each import runs in a process
of its own, so that its peak resident size is its own. One JSON document with the receipt goes to
stdout; everything that was written is deleted, with --keep all but the folder and the .apr file.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from apr import families
from apr.architecture import Architecture
from apr.atomic import sync_file
from apr.receipt import receipt
from apr.tokenizer import train

SHARD = 1_000_000_000  # bytes
POOL = 1 << 24  # random values, repeated with another start for every tensor


def architecture_of(gigabytes: float) -> Architecture:
    """A Llama of TinyLlama's width, with as many layers as make that many bytes in bfloat16."""

    def shape(layers: int) -> Architecture:
        return Architecture(
            family="llama", hidden_size=2048, num_layers=layers, num_heads=32, num_kv_heads=4,
            head_dim=64, intermediate_size=5632, vocab_size=32_000, max_position_embeddings=2048,
            rms_norm_eps=1e-5, rope_theta=10_000.0,
        )  # fmt: skip

    one, two = (families.num_parameters(shape(n)) for n in (1, 2))
    return shape(max(1, round((gigabytes * 1e9 / 2 - (2 * one - two)) / (two - one))))


def make_folder(folder: Path, architecture: Architecture) -> None:
    """The folder, written without ever holding a shard."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    values = generator.standard_normal(POOL, dtype=np.float32) * np.float32(0.02)
    pool = (values.view(np.uint32) >> 16).astype("<u2").view(np.uint8)  # bfloat16, cut off
    shards: list[list[families.TensorSpec]] = [[]]
    filled = 0
    for spec in families.tensor_specs(architecture):
        size = 2 * int(np.prod(spec.shape))
        if filled and filled + size > SHARD:
            shards.append([])
            filled = 0
        shards[-1].append(spec)
        filled += size
    names = {}
    for number, specs in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        names.update({spec.name: name for spec in specs})
        _write_shard(folder / name, specs, pool, generator)
    index = {"metadata": {}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    config = families.by_name("llama", folder).to_hf(architecture)
    config["torch_dtype"] = "bfloat16"
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    text = Path(__file__).read_text(encoding="utf-8")
    train(iter([text]), 512, "qwen2").write_directory(folder)


def _write_shard(
    path: Path, specs: list[families.TensorSpec], pool: np.ndarray, generator: np.random.Generator
) -> None:
    header, position = {}, 0
    for spec in specs:
        size = 2 * int(np.prod(spec.shape))
        header[spec.name] = {
            "dtype": "BF16",
            "shape": list(spec.shape),
            "data_offsets": [position, position + size],
        }
        position += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    ones = np.full(1, 0x3F80, dtype="<u2").view(np.uint8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for spec in specs:
            left = 2 * int(np.prod(spec.shape))
            if len(spec.shape) == 1:
                file.write(np.tile(ones, left // 2).data)
                continue
            start = 2 * int(generator.integers(0, POOL))
            while left:
                piece = pool[start : start + left]
                file.write(piece.data)
                left, start = left - piece.size, 0
    sync_file(path)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    return sum(p.stat().st_size for p in path.rglob("*")) if path.is_dir() else path.stat().st_size


def remove(path: Path) -> None:
    """A file or a folder, with its proof."""
    path.with_name(path.name + ".proof.json").unlink(missing_ok=True)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def time_cp(source: Path, target: Path) -> float:
    """Seconds for cp, flushed to disk."""
    started = time.perf_counter()
    subprocess.run(["cp", "-r", source, target], check=True)
    for file in [target] if target.is_file() else target.iterdir():
        sync_file(file)
    seconds = time.perf_counter() - started
    remove(target)
    return seconds


def peak_rss_mb() -> float:
    """Peak resident size of this process (getrusage would hand down the parent's)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def act(verb: str, source: Path, target: Path, options: dict[str, Any]) -> dict[str, Any]:
    """One import or export in this process, and what it took."""
    memory: dict[str, float] = {}

    def note(check: Any) -> None:
        memory[check.id] = peak_rss_mb()

    started, clock = time.perf_counter(), time.process_time()
    if verb == "import":
        from apr.importing import import_model

        report = import_model(source, target, force=True, on_check=note, **options)
    else:
        from apr.export import export

        report = export(source, target, force=True, on_check=note, **options)
    return {
        "verb": verb,
        **options,
        "size_bytes": report.size_bytes,
        "write_seconds": report.write_seconds,
        "proof_seconds": report.proof_seconds if options["prove"] else None,
        "total_seconds": time.perf_counter() - started,
        "processor_seconds": time.process_time() - clock,
        "peak_rss_mb": peak_rss_mb(),
        "peak_rss_mb_after": memory,
        "checks": {c.id: [c.outcome.verdict, round(c.seconds, 2)] for c in report.checks},
    }


def in_child(verb: str, source: Path, target: Path, **options: Any) -> dict[str, Any]:
    """As `act`, in a fresh process."""
    request = json.dumps([verb, str(source), str(target), options])
    done = subprocess.run(
        [sys.executable, __file__, "--child", request],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def paired(verb: str, source: Path, target: Path, repeat: int, **options: Any) -> dict[str, Any]:
    """The act and cp of its source in turn, so that both meet the same disk and neighbours.

    `of_cp` is the median of cp's time over ours, scaled to the bytes that each wrote.
    """
    ours, copies, loads = [], [], []
    for number in range(repeat):
        loads.append(os.getloadavg()[0])
        for turn in ("act", "cp") if number % 2 == 0 else ("cp", "act"):
            if turn == "cp":
                copies.append(time_cp(source, target.with_name("copy")))
            else:
                remove(target)
                ours.append(in_child(verb, source, target, prove=False, **options))
    ratios = [c / o["write_seconds"] for c, o in zip(copies, ours, strict=True)]
    bytes_ratio = ours[0]["size_bytes"] / size_of(source)
    median = sorted(ours, key=lambda o: o["write_seconds"])[len(ours) // 2]
    return {
        **median,
        "write_samples": [o["write_seconds"] for o in ours],
        "peak_rss_mb": max(o["peak_rss_mb"] for o in ours),
        "cp_samples": copies,
        "cp_seconds": statistics.median(copies),
        "of_cp": statistics.median(ratios),
        "of_cp_per_byte_written": statistics.median(ratios) * bytes_ratio,
        "load_average": loads,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--work", type=Path)
    parser.add_argument("--gigabytes", type=float, default=3.0, help="size in 10^9 bytes")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        verb, source, target, rest = json.loads(options.child)
        print(json.dumps(act(verb, Path(source), Path(target), rest)))
        return
    if options.work is None:
        parser.error("--work DIR is needed: where the model and its copies may be written")
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    folder, target = work / "random-folder", work / "random.apr"
    if not folder.exists():
        make_folder(folder, architecture_of(options.gigabytes))
    try:
        result: dict[str, Any] = {
            "source_bytes": size_of(folder),
            "page_cache": "the folder's pages are in memory where they fit, for both",
            "write": paired("import", folder, target, options.repeat),
        }
        for name, peers in (("proof", False), ("proof_with_peers", True)):
            if not peers or options.peers:
                remove(target)
                result[name] = in_child("import", folder, target, prove=True, peers=peers)
        result["receipt"] = receipt("cpu")
        print(json.dumps(result, indent=1))
    finally:
        if not options.keep:
            remove(target)
            remove(folder)


if __name__ == "__main__":
    main()
