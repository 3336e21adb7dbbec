#!/usr/bin/env python3
"""Measure the CUDA engine: decode and its share of the memory's limit, prefill's of bf16 peak.

    python scripts/bench_cuda.py [--case 0.5b-BF16 ...] [--steps 128] [--prompt 2048] [--json FILE]

Weights are random and made on the GPU, so that nothing is read or written. For each case: a prompt
of 128 tokens, then steps one by one as a program would take them (`wall`: with the copy of the
logits to the host) and the step's graph alone (`graph`: replayed, timed by CUDA events); the limit
is the bytes a step must read (weights, one row of an embedding that is only looked up, the cache)
over the bandwidth, the data sheet's and that of a copy on this device. Prefill: products' FLOPs of
the prompt over the seconds, against the data sheet's dense bf16 peak. Medians.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from apr import families
from apr.architecture import Architecture
from apr.cuda.stored import Planes
from apr.dtypes import DTYPES
from apr.engine.cuda import CudaEngine
from apr.formats.opened import OpenedModel
from apr.model import costs
from apr.receipt import receipt
from apr.tensors import Tensor, from_array

SHAPES: dict[str, dict[str, Any]] = {
    "0.5b": {
        "hidden_size": 896, "num_layers": 24, "num_heads": 14, "num_kv_heads": 2, "head_dim": 64,
        "intermediate_size": 4864, "vocab_size": 32000, "max_position_embeddings": 4096,
    },
    "8b": {
        "hidden_size": 4096, "num_layers": 32, "num_heads": 32, "num_kv_heads": 8, "head_dim": 128,
        "intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 8192,
    },
    "tiny": {  # for the script's own test
        "hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16,
        "intermediate_size": 64, "vocab_size": 64, "max_position_embeddings": 64,
    },
}  # fmt: skip
CASES = ("0.5b-BF16", "0.5b-Q8_0", "0.5b-Q4_0", "8b-BF16", "8b-Q8_0", "8b-Q4_0", "8b-Q4_K")


def random_model(shape: str, dtype: str) -> OpenedModel:
    """A model of this shape whose matrices have no bytes: `random_planes` makes them."""
    arch = Architecture(
        family="llama", rms_norm_eps=1e-5, rope_theta=10_000.0, tie_word_embeddings=False,
        **SHAPES[shape],
    )  # fmt: skip
    tensors = {}
    for spec in families.tensor_specs(arch):
        name, size = spec.name, tuple(spec.shape)
        if len(size) == 1:
            tensors[name] = from_array(name, np.ones(size, dtype=np.float32))
        else:
            tensors[name] = Tensor(name, DTYPES[dtype], size, _no_bytes)
    return OpenedModel(
        path=Path(f"{shape}-{dtype}"), format="apr", architecture=arch, tensors=tensors,
        metadata={}, load_tokenizer=lambda: None, size_bytes=0,
    )  # fmt: skip


def _no_bytes() -> Any:
    raise AssertionError("random weights have no bytes")


def random_planes(target: Planes, tensor: Tensor, first: int) -> None:
    """Weights of about 0.02 in size."""
    if target.kind is None:
        target.matrix.normal_(0, 0.02)
        return
    low, high, scales, minima, supers = target.parts
    for codes in (low, high):
        if codes is not None:
            codes.view(torch.uint8).random_(0, 256)
    size = 0.02 / {8: 64, 4: 5, 2: 1}[target.kind.low]
    for part in (scales, minima):
        if part is not None and part.dtype == torch.float16:
            part.fill_(size)
        elif part is not None:
            part.view(torch.uint8).random_(0, 32)
    if supers is not None:
        supers.fill_(size / 16 if scales is not None else size)


def bandwidth(device: torch.device) -> float:
    """Bytes per second of a copy (read and written) on the device; 0 on a CPU."""
    if device.type != "cuda":
        return 0.0
    data = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    other = torch.empty_like(data)
    return 2 * data.numel() / seconds(lambda: other.copy_(data), device, 10)


def seconds(work: Any, device: torch.device, count: int) -> float:
    """Median seconds of `count` runs, by CUDA events where there are any."""
    found = []
    for _ in range(count):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            end.record()
            end.synchronize()
            found.append(start.elapsed_time(end) / 1e3)
        else:
            before = time.perf_counter()
            work()
            found.append(time.perf_counter() - before)
    return statistics.median(found)


def measure(case: str, device: torch.device, steps: int, prompt: int) -> dict[str, Any]:
    """All figures of one case."""
    shape, dtype = case.split("-", 1)
    model = random_model(shape, dtype)
    engine = CudaEngine(model, device, "float16", fill=random_planes)
    vocab, context = engine.architecture.vocab_size, engine.context
    generator = np.random.default_rng(0)
    session = engine.session()
    first = min(128, context // 2)
    session.prefill([int(i) for i in generator.integers(0, vocab, first)])
    for _ in range(3):  # compiles, records, replays
        session.decode(1)
    walls = []
    for _ in range(min(steps, context - session.length)):
        before = time.perf_counter()
        session.decode(1)
        walls.append(time.perf_counter() - before)
    wall = statistics.median(walls)
    # The last step once more: its slot holds its token and position.
    with torch.inference_mode():
        graphs = list(engine.graphs._graphs.values())
        graph = seconds(graphs[-1].replay, device, 50) if graphs else wall
    depth = session.length
    needed = engine.plan.weight_bytes - _looked_up(engine) + depth * engine.cache_bytes_per_token
    out: dict[str, Any] = {
        "case": case, "plan": engine.plan.to_json(), "depth": depth, "bytes_per_step": needed,
        "decode_wall_tok_s": 1 / wall, "decode_graph_tok_s": 1 / graph,
        "graph_replays": engine.graphs.replays,
    }  # fmt: skip
    peaks = costs.peaks(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    probed = bandwidth(device)
    if peaks:
        out["share_of_limit_wall"] = needed / wall / peaks[1]
        out["share_of_limit_graph"] = needed / graph / peaks[1]
    if probed:
        out["copy_bytes_per_second"] = probed
        out["share_of_copy_graph"] = needed / graph / probed
    count = min(prompt, context)
    ids = [int(i) for i in generator.integers(0, vocab, count)]
    times = []
    for _ in range(5 if device.type == "cuda" else 1):
        fresh = engine.session()
        before = time.perf_counter()
        fresh.prefill(ids)
        times.append(time.perf_counter() - before)
    took = min(times[1:] or times)
    flops = 2 * count * _multiplied(model)
    out |= {"prompt": count, "prefill_tok_s": count / took, "prefill_flops": flops}
    if peaks:
        out["prefill_share_of_peak"] = flops / took / peaks[0]
    return out


def _looked_up(engine: CudaEngine) -> int:
    """Bytes on the device of the embedding but one row."""
    return engine.looked_up_bytes


def _multiplied(model: OpenedModel) -> int:
    """Elements that each token of a prompt meets: all matrices but embedding and head."""
    return sum(
        t.num_elements for name, t in model.tensors.items()
        if len(t.shape) == 2 and "embed_tokens" not in name and "lm_head" not in name
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--case", action="append", help="SHAPE-TYPE, e.g. " + ", ".join(CASES))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument("--prompt", type=int, default=2048)
    parser.add_argument("--json", type=Path, help="write the figures there")
    asked = parser.parse_args()
    device = torch.device(asked.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(f"error: bench_cuda: torch {torch.__version__} sees no CUDA device", file=sys.stderr)
        return 9
    rows = []
    for case in asked.case or CASES:
        row = measure(case, device, asked.steps, asked.prompt)
        rows.append(row)
        shares = " ".join(f"{k}={v:.2f}" for k, v in row.items() if "share" in k)
        print(
            f"{case:10} decode {row['decode_wall_tok_s']:8.1f} tok/s (graph "
            f"{row['decode_graph_tok_s']:8.1f}), prefill {row['prefill_tok_s']:9.0f} tok/s "
            f"{shares}",
            flush=True,
        )
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if asked.json:
        document = {"rows": rows, "receipt": receipt()}
        asked.json.write_text(json.dumps(document, indent=1, default=str), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
