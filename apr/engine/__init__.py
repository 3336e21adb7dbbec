"""Inference: prefill, decode, KV cache, sampling and streaming, behind one face.

This engine is plain PyTorch over `apr.model.decoder`; faster ones come behind the same functions.
What really runs (device, kernels, dtypes, threads) is in `Engine.plan` and nowhere guessed.
"""

from __future__ import annotations

from apr.engine.engine import Engine, Session, load
from apr.engine.generation import Generation
from apr.engine.loop import GenerationStopped
from apr.engine.plan import Plan
from apr.engine.sampling import Sampler, Sampling
from apr.engine.streaming import StreamDecoder, TextStream

__all__ = [
    "Engine", "Generation", "GenerationStopped", "Plan", "Sampler", "Sampling", "Session",
    "StreamDecoder", "TextStream", "load",
]  # fmt: skip
