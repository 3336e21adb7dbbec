#!/usr/bin/env python3
"""Reproduce the table of the CPU engine against llama.cpp: same file, same threads, in turns.

    python scripts/bench_engine.py --write                      everything (about 20 minutes)
    python scripts/bench_engine.py --types q8_0,q4_0 --write    a slice, merged into the table

Makes two llama models of random weights (0.4 B and 15 M parameters) in a temporary folder (--folder
keeps them), in each storage type, and measures on each file: pp128 and tg64 alternating with
llama.cpp, the memory's bandwidth between the rounds, load to first token and peak memory of both
(a fresh process each, file in the page cache). --write puts the table into
docs/spec/performance.md; the figures behind it stand in docs/spec/performance.json, from which
slices are merged. --json prints the slice on stdout.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# hidden, layers, heads, kv heads, feed-forward, vocabulary
SHAPES = {
    "0.4B": (896, 24, 14, 2, 4864, 32000),
    "15M": (256, 8, 4, 2, 768, 16384),
}
# llama.cpp's numbers of file types.
FILE_TYPES = {"f16": 1, "q8_0": 7, "q4_0": 2, "q4_k": 15, "q6_k": 18, "tq2_0": 37,
              "q4_1": 3, "q5_0": 8, "q5_1": 9, "q5_k": 17, "tq1_0": 36}  # fmt: skip
TYPES = ("bf16", "f16", "q8_0", "q4_0", "q4_k", "q6_k", "tq2_0")
PROMPT, STEPS = 128, 64
# What issue 4 asks: decode ratio, share of a memory read, prefill ratio.
TARGETS = {
    "bf16": (1.05, 0.90, 1.3), "f16": (1.05, 0.90, 1.3), "q8_0": (1.5, 0.90, 1.5),
    "q4_0": (1.25, 0.80, 1.2), "q4_k": (1.2, 0.75, 1.2), "q6_k": (1.2, 0.75, 1.2),
    "tq2_0": (1.3, 0.75, 1.2),
}  # fmt: skip
PAGE = ROOT / "docs" / "spec" / "performance.md"
FIGURES = PAGE.with_suffix(".json")
BEGIN, END = "<!-- bench_engine: begin -->", "<!-- bench_engine: end -->"


def make(path: Path, shape: tuple[int, ...]) -> None:
    """A llama model of random BF16 weights as GGUF, through the gguf package."""
    import gguf
    import numpy as np

    hidden, layers, heads, kv, ffn, vocab = shape
    width = hidden // heads
    rng = np.random.default_rng(0)
    out = gguf.GGUFWriter(str(path), "llama")
    out.add_block_count(layers)
    out.add_context_length(4096)
    out.add_embedding_length(hidden)
    out.add_feed_forward_length(ffn)
    out.add_head_count(heads)
    out.add_head_count_kv(kv)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_freq_base(10_000.0)
    out.add_rope_dimension_count(width)
    out.add_vocab_size(vocab)
    out.add_file_type(32)
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)]
    tokens += [f"t{i}" for i in range(vocab - len(tokens))]
    out.add_tokenizer_model("llama")
    out.add_tokenizer_pre("default")
    out.add_token_list(tokens)
    out.add_token_scores([-float(i) for i in range(vocab)])
    out.add_token_types([2, 3, 3] + [6] * 256 + [1] * (vocab - 259))
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_unk_token_id(0)
    out.add_add_bos_token(True)

    def matrix(name: str, rows: int, columns: int) -> None:
        values = rng.standard_normal((rows, columns), dtype=np.float32) * np.float32(0.02)
        bits = ((values.view(np.uint32) + 0x8000) >> 16).astype(np.uint16)
        out.add_tensor(name, bits.view(np.uint8), raw_shape=(rows, columns * 2),
                       raw_dtype=gguf.GGMLQuantizationType.BF16)  # fmt: skip

    def norm(name: str) -> None:
        out.add_tensor(name, np.ones(hidden, dtype=np.float32))

    matrix("token_embd.weight", vocab, hidden)
    for layer in range(layers):
        at = f"blk.{layer}."
        norm(at + "attn_norm.weight")
        matrix(at + "attn_q.weight", hidden, hidden)
        matrix(at + "attn_k.weight", kv * width, hidden)
        matrix(at + "attn_v.weight", kv * width, hidden)
        matrix(at + "attn_output.weight", hidden, hidden)
        norm(at + "ffn_norm.weight")
        matrix(at + "ffn_gate.weight", ffn, hidden)
        matrix(at + "ffn_up.weight", ffn, hidden)
        matrix(at + "ffn_down.weight", hidden, ffn)
    norm("output_norm.weight")
    matrix("output.weight", vocab, hidden)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def model(folder: Path, name: str, kind: str) -> Path:
    """The GGUF file of a shape and type, made where it is not there yet."""
    target = folder / f"{name}.{kind}.gguf"
    if target.exists():
        return target
    say(f"making {target.name}")
    temporary = target.with_suffix(".part")
    if kind == "bf16":
        make(temporary, SHAPES[name])
    else:
        source = model(folder, name, "bf16")
        command = [sys.executable, __file__, "--quantize", str(source), str(temporary), kind]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"error: {kind} could not be made: {done.stderr.splitlines()[-1:]}")
    temporary.rename(target)
    return target


def quantize(source: str, target: str, kind: str) -> None:
    """In a process of its own: every matrix in one type, by llama.cpp."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = FILE_TYPES[kind], 2
    params.pure = params.quantize_output_tensor = True
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)):
        sys.exit("error: llama_model_quantize failed")


def first_token(path: str, threads: int) -> None:
    """In a process of its own: our seconds from the file to the first token, and peak memory."""
    import numpy as np

    from apr import engine
    from apr.bench.memory import peak_rss, resident
    from apr.bench.workload import SEED
    from apr.cli.main import COLLECTIONS

    gc.set_threshold(*COLLECTIONS)  # as in every command of apr
    before = resident()
    started = time.perf_counter()
    loaded = engine.load(path, device="cpu", threads=threads, kernels="native")
    ids = np.random.default_rng(SEED).integers(0, loaded.architecture.vocab_size, PROMPT)
    session = loaded.session()
    int(np.argmax(session.prefill([int(i) for i in ids])))
    seconds = time.perf_counter() - started
    for _ in range(STEPS):
        session.decode(7)
    peak = peak_rss()
    print(json.dumps({"seconds": seconds, "memory": (peak or 0) - (before or 0)}))


def load_ours(path: Path, threads: int) -> dict[str, float]:
    """As `first_token`, of a fresh process."""
    command = [sys.executable, __file__, "--first-token", str(path), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: {path.name}: {(done.stderr.splitlines() or ['?'])[-1]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def load_peer(path: Path, threads: int, extra_buffers: bool) -> dict[str, float]:
    """The same of llama.cpp: loading, a context, the prompt, the chosen token."""
    from apr.bench.peer import Peer
    from apr.bench.sizes import Test

    with Peer(path, threads, extra_buffers=extra_buffers) as peer:
        _, first = peer.run(Test("pp", PROMPT))
        peer.run(Test("tg", STEPS))
        memory = (peer.peak_rss or 0) - (peer.facts["resident_before"] or 0)
        return {"seconds": peer.facts["load_seconds"] + first, "memory": memory}


def measure(path: Path, name: str, kind: str, threads: int, repeat: int) -> dict[str, Any]:
    """A row of the table: `apr bench --against llama.cpp`, and the loads in turns."""
    from apr.bench import against_peer
    from apr.bench.sizes import Sizes
    from apr.formats import open_model
    from apr.model import costs

    result = against_peer(
        path, Sizes((PROMPT,), (STEPS,), repeat), device="cpu", threads=threads, kernels="native"
    )
    ours, theirs = result.first, result.second
    extra = theirs.plan["kernels"].endswith("on")
    loads: dict[str, list[dict[str, float]]] = {"ours": [], "peer": []}
    for turn in range(min(3, repeat)):
        for side in ("ours", "peer") if turn % 2 == 0 else ("peer", "ours"):
            loads[side].append(
                load_ours(path, threads) if side == "ours" else load_peer(path, threads, extra)
            )
    arch = open_model(path).architecture
    row: dict[str, Any] = {
        "model": name, "type": kind, "file_bytes": path.stat().st_size,
        "cache_bytes": costs.cache_bytes_per_token(arch, 2) * (PROMPT + STEPS),
        "peer": theirs.plan["engine"], "peer_kernels": theirs.plan["kernels"],
        "peer_notes": list(theirs.notes), "kernels": ours.plan["kernels"],
        "activations": ours.plan["activations"], "threads": threads, "repeat": repeat,
        "load": loads, "receipt": dict(ours.receipt), "sha256": ours.sha256,
        "load_average": os.getloadavg(),
    }  # fmt: skip
    row["tests"] = {
        ratio.test[:2]: {
            "ours": a.tokens_per_second, "ours_spread": a.relative_sd, "ours_samples": a.rates,
            "peer": b.tokens_per_second, "peer_spread": b.relative_sd, "peer_samples": b.rates,
            "ratio": ratio.to_json(), "mbu": a.mbu, "peer_mbu": b.mbu,
            "bandwidth": a.bandwidth.to_json() if a.bandwidth else None,
        }
        for ratio, a, b in zip(result.ratios, ours.rows, theirs.rows, strict=True)
    }  # fmt: skip
    return row


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    tg, pp = row["tests"]["tg"], row["tests"]["pp"]
    goal = TARGETS.get(row["type"]) if row["model"] == "0.4B" else (1.0, None, None)
    goal = goal or (None, None, None)

    def ratio(test: dict[str, Any], target: float | None) -> str:
        r = test["ratio"]
        mark = "" if target is None else " ✓" if r["median"] >= target else f" ✗ ({target:g})"
        return f"{r['median']:.2f} ({r['min']:.2f} to {r['max']:.2f}){mark}"

    def rate(test: dict[str, Any], side: str) -> str:
        return f"{test[side]:,.1f} ± {100 * test[side + '_spread']:.0f} %"

    def load(side: str, what: str) -> float:
        return statistics.median(item[what] for item in row["load"][side])

    mbu = tg["mbu"]
    share = "" if row["model"] != "0.4B" or mbu is None else f"{100 * mbu:.0f} %"
    if share and goal[1] is not None:
        share += " ✓" if mbu >= goal[1] else f" ✗ ({100 * goal[1]:.0f})"
    allowed = row["file_bytes"] + row["cache_bytes"]
    return [
        row["model"], row["type"].upper(), rate(tg, "ours"), rate(tg, "peer"),
        ratio(tg, goal[0]), share,
        f"{tg['bandwidth']['before'] / 1e9:.0f}, {tg['bandwidth']['after'] / 1e9:.0f}",
        rate(pp, "ours"), rate(pp, "peer"), ratio(pp, goal[2]),
        f"{load('ours', 'seconds'):.2f} / {load('peer', 'seconds'):.2f}",
        f"{load('ours', 'memory') / 1e6:.0f} / {load('peer', 'memory') / 1e6:.0f} / "
        f"{allowed / 1e6:.0f}",
    ]  # fmt: skip


def render(rows: list[dict[str, Any]]) -> str:
    """The section of the page."""
    head = ["model", "type", "tg64 tok/s", "llama.cpp", "ratio (pairs)", "of a memory read",
            "GB/s before, after", "pp128 tok/s", "llama.cpp", "ratio (pairs)",
            "load to first token, s: ours / peer",
            "memory, MB: ours / peer / file + cache"]  # fmt: skip
    lines = [
        BEGIN, "",
        f"Medians of the samples ± relative standard deviation; ratios are medians of pairs taken "
        f"in turns, with the smallest and largest pair. ✓ and ✗ (the target): what was asked. "
        f"Share of a memory read: stored bytes that a step must read, times steps per second, over "
        f"the bandwidth probed between the rounds. Memory: peak resident memory above that before "
        f"loading, {PROMPT} + {STEPS} tokens. Made by `python scripts/bench_engine.py --write`; "
        f"every sample is in `performance.json`.",
        "", "| " + " | ".join(head) + " |", "|" + " --- |" * len(head),
    ]  # fmt: skip
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    lines += ["", "Receipts:", ""]
    for row in rows:
        r = row["receipt"]
        known = [n for n in row["peer_notes"] if n.startswith("peer ")]
        reader = row["tests"]["tg"]["bandwidth"]["reader"]
        lines.append(
            f"- {row['model']} {row['type'].upper()}: `{r['command']}`, commit {r['commit']}, "
            f"{r['cpu']}, {row['threads']} threads, {row['repeat']} samples, {r['timestamp']}; "
            f"kernels {row['kernels']} ({row['activations']}); {row['peer']}, "
            f"{'; '.join([row['peer_kernels'], *known])}; bandwidth {reader}; load average "
            f"{row['load_average'][0]:.1f}; sha256 {row['sha256'][:16]}"
        )
    return "\n".join([*lines, "", END])


def order(row: dict[str, Any]) -> tuple[int, int]:
    """Rows stand by model, then by type."""
    kinds = [*TYPES, *(k for k in FILE_TYPES if k not in TYPES)]
    return list(SHAPES).index(row["model"]), kinds.index(row["type"])


def merged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of earlier slices with these in their place."""
    old = json.loads(FIGURES.read_text("utf-8"))["rows"] if FIGURES.exists() else []
    new = {(row["model"], row["type"]) for row in rows}
    return sorted([r for r in old if (r["model"], r["type"]) not in new] + rows, key=order)


def write(rows: list[dict[str, Any]]) -> None:
    """Merge into the figures and put the table into the page, between its marks."""
    from apr.atomic import write_text

    rows = merged(rows)
    text = PAGE.read_text("utf-8") if PAGE.exists() else "# Performance\n\n## The CPU engine\n\n"
    if BEGIN in text:
        before, rest = text.split(BEGIN, 1)
        text = before + render(rows) + rest.split(END, 1)[1]
    else:
        text = text.rstrip("\n") + "\n\n" + render(rows) + "\n"
    write_text(FIGURES, json.dumps({"rows": rows}, indent=1) + "\n", force=True)
    write_text(PAGE, text, force=True)
    say(f"wrote {PAGE.relative_to(ROOT)} ({len(rows)} rows)")


def say(text: str) -> None:
    """To stderr, at once."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--types", default=",".join(TYPES))
    parser.add_argument("--models", default=",".join(SHAPES), help="0.4B, 15M")
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="keep the models here")
    parser.add_argument("--write", action="store_true", help="into docs/spec/performance.md")
    parser.add_argument("--json", action="store_true", help="the rows as JSON on stdout")
    parser.add_argument("--quantize", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--first-token", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quantize:
        quantize(*options.quantize)
        return
    if options.first_token:
        first_token(options.first_token[0], int(options.first_token[1]))
        return
    names, kinds = options.models.split(","), options.types.lower().split(",")
    for what, given, known in (("model", names, SHAPES), ("type", kinds, {"bf16", *FILE_TYPES})):
        unknown = [g for g in given if g not in known]
        if unknown:
            parser.error(f"unknown {what} {unknown[0]}; there are {', '.join(known)}")
    from apr.errors import AprError

    rows = []
    with tempfile.TemporaryDirectory(prefix="apr-bench-") as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            for kind in kinds:
                try:
                    path = model(folder, name, kind)
                    row = measure(path, name, kind, options.threads, options.repeat)
                except AprError as error:
                    sys.exit(f"error: {error.line()}")
                rows.append(row)
                say("  ".join(cells(row)))
                if options.folder is None and kind != "bf16":
                    path.unlink()
    if options.write:
        write(rows)
    if options.json:
        print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
