"""Measure training steps: tok/s by preset, dtype, threads and variant, in turn, on random tokens.

    python scripts/bench_train.py --preset nanogpt-cpu --preset 10m --dtype float32 --dtype bfloat16

Variants run interleaved, a round of steps each, so that a busy machine slows all alike; the median
and the least time of a step are printed, and what one row is against the first of its preset.
`--variant` compares ways to compute the same: `manual` (attention written out instead of SDPA),
`foreach` and `plain` (AdamW not fused), `rms` (torch's own rms_norm).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from apr.model import decoder
from apr.model.costs import peaks, train_flops_per_token
from apr.model.decoder import Decoder, initialize
from apr.model.loss import token_losses
from apr.receipt import receipt
from apr.train import presets
from apr.train.optimizer import make_optimizer

VARIANTS = ("", "manual", "foreach", "plain", "rms")


@dataclass
class Case:
    """One thing to measure; `times` are seconds of a step."""

    preset: str
    dtype: str
    variant: str
    batch: int
    seq: int
    vocab: int
    device: str
    times: list[float] = field(default_factory=list)

    def prepare(self) -> Callable[[], None]:
        """The model; returns one training step."""
        device = torch.device(self.device)
        arch = presets.architecture(self.preset, self.vocab, self.seq, None)
        model = Decoder(arch)
        initialize(model, torch.Generator().manual_seed(0))
        model.to(device)
        if self.variant in ("foreach", "plain"):
            optimizer: Any = torch.optim.AdamW(
                model.parameters(), lr=1e-4, foreach=self.variant == "foreach"
            )
        else:
            optimizer = make_optimizer(model, lr=1e-4, beta1=0.9, beta2=0.95, weight_decay=0.1)
        generator = torch.Generator().manual_seed(1)
        shape = (self.batch, self.seq + 1)
        ids = torch.randint(0, self.vocab, shape, generator=generator).to(device)
        half = self.dtype == "bfloat16"

        def step() -> None:
            with _patched(self.variant):
                start = time.perf_counter()
                with torch.autocast(device.type, torch.bfloat16, enabled=half):
                    hidden = model.hidden(ids[:, :-1])
                    loss = token_losses(hidden, model.lm_head.weight, ids[:, 1:]).mean()
                torch.autograd.backward(loss)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                self.times.append(time.perf_counter() - start)

        return step


def _manual(q: Any, k: Any, v: Any, attn_mask: Any = None, **options: Any) -> Any:
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    later = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
    return scores.masked_fill(later, float("-inf")).softmax(-1) @ v


def _rms(self: Any, x: Any) -> Any:
    return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


@contextmanager
def _patched(variant: str) -> Iterator[None]:
    attention, norm = F.scaled_dot_product_attention, decoder.RMSNorm.forward
    try:
        if variant == "manual":
            F.scaled_dot_product_attention = _manual
        if variant == "rms":
            decoder.RMSNorm.forward = _rms  # type: ignore[method-assign]
        yield
    finally:
        F.scaled_dot_product_attention = attention
        decoder.RMSNorm.forward = norm  # type: ignore[method-assign]


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure training steps.")
    parser.add_argument("--preset", action="append", help="default: nanogpt-cpu")
    parser.add_argument("--dtype", action="append", choices=["float32", "bfloat16"])
    parser.add_argument("--variant", action="append", choices=VARIANTS)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--seq-length", type=int)
    parser.add_argument("--vocab", type=int, default=257)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5, help="of a round")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    out = []
    for name in args.preset or ["nanogpt-cpu"]:
        recipe = presets.recipe(name)
        batch, seq = args.batch_size or recipe.batch_size, args.seq_length or recipe.seq_length
        cases = [
            Case(name, dtype, variant, batch, seq, args.vocab, args.device)
            for dtype in args.dtype or ["float32"]
            for variant in args.variant or [""]
        ]
        steps = [case.prepare() for case in cases]
        for step in steps:  # warm-up
            for _ in range(3):
                step()
        for case in cases:
            case.times.clear()
        for _ in range(args.rounds):
            for step in steps:
                for _ in range(args.steps):
                    step()
        out += [row(case, cases[0]) for case in cases]
    for line in out:
        print(json.dumps(line) if args.json else "  ".join(f"{k} {v}" for k, v in line.items()))
    print(json.dumps(receipt(args.device)), file=sys.stderr)
    return 0


def row(case: Case, first: Case) -> dict[str, Any]:
    """The figures of a case."""
    median, least = statistics.median(case.times), min(case.times)
    tokens = case.batch * case.seq
    arch = presets.architecture(case.preset, case.vocab, case.seq, None)
    flops = train_flops_per_token(arch, case.seq) * tokens
    known = peaks(torch.cuda.get_device_name(case.device)) if case.device != "cpu" else None
    return {
        "preset": case.preset,
        "dtype": case.dtype,
        "variant": case.variant or "as trained",
        "shape": f"{case.batch}x{case.seq}",
        "median_ms": round(1e3 * median, 2),
        "least_ms": round(1e3 * least, 2),
        "tok_s": round(tokens / median),
        "gflop_s": round(flops / median / 1e9, 1),
        "mfu": round(flops / median / known[0], 3) if known else "unknown",
        "time_against_first": round(median / statistics.median(first.times), 3),
    }


if __name__ == "__main__":
    sys.exit(main())
