"""A tiny Llama with a real tokenizer, written as a checkpoint: what the format tests work on."""

from pathlib import Path

import torch

from apr.architecture import Architecture
from apr.checkpoint import write_checkpoint
from apr.model.decoder import Decoder, initialize
from apr.tensors import from_torch
from apr.tokenizer import Tokenizer, train

TRAINING = {
    "step": 10, "epoch": 1, "tokens_seen": 5120, "unique_tokens": 4000, "train_loss": 5.5,
    "validation_loss": 5.4, "validation_loss_se": 0.1, "bits_per_byte": 2.9, "seed": 1,
    "budget": {"verdict": "ok", "bypassed": None}, "data": {"tokens": 4000, "documents": 7},
    "receipt": {"command": "apr pretrain", "commit": "abc"},
}  # fmt: skip


def make_tokenizer(vocab_size: int = 400, pre: str = "qwen2") -> Tokenizer:
    text = Path(torch.__file__).with_name("functional.py").read_text(encoding="utf-8")
    return train(iter([text]), vocab_size, pre)


def make_architecture(**changes) -> Architecture:
    values = {
        "family": "llama", "hidden_size": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2,
        "head_dim": 16, "intermediate_size": 160, "vocab_size": 416,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10_000.0,
    }  # fmt: skip
    return Architecture(**{**values, **changes})


def make_tensors(arch: Architecture, dtype=torch.float32, seed: int = 1):
    decoder = Decoder(arch)
    generator = torch.Generator().manual_seed(seed)
    initialize(decoder, generator)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            # Norms away from one, so that swapped norms would show.
            size = 0.3 if name.endswith("norm.weight") else 0.05
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
    return [from_torch(n, v.detach().to(dtype)) for n, v in decoder.canonical_state().items()]


def write_tiny(path, *, dtype=torch.float32, tokenizer=None, metadata=None, seed=1, **changes):
    """A complete checkpoint at `path`; `changes` are of the architecture."""
    arch = make_architecture(**changes)
    write_checkpoint(
        path,
        architecture=arch,
        tokenizer=tokenizer or make_tokenizer(),
        tensors=make_tensors(arch, dtype, seed),
        metadata={
            "name": "tiny",
            "license": "Apache-2.0",
            "training": TRAINING,
            **(metadata or {}),
        },
        force=True,
    )
    return path
