"""Inference: prefill, decode, KV cache, sampling and streaming, behind one face.

On the CPU by the kernels of `apr.native`, on a GPU by those of `apr.cuda`; where they do not
compute a model, by plain PyTorch over `apr.model.decoder`, behind the same functions.
What really runs (device, kernels, dtypes, threads) is in `Engine.plan` and nowhere guessed.
"""

from __future__ import annotations

from apr.engine.engine import Engine
from apr.engine.generation import Generation
from apr.engine.loading import check_kernels, load
from apr.engine.loop import GenerationStopped
from apr.engine.plan import Plan
from apr.engine.sampling import Sampler, Sampling
from apr.engine.session import Session
from apr.engine.streaming import StreamDecoder, TextStream

__all__ = [
    "Engine", "Generation", "GenerationStopped", "Plan", "Sampler", "Sampling", "Session",
    "StreamDecoder", "TextStream", "check_kernels", "load",
]  # fmt: skip
