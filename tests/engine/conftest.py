"""Small models in memory, with weights far enough from zero that every part matters."""

from pathlib import Path

import pytest
import torch

from apr.architecture import Architecture
from apr.formats.opened import OpenedModel
from apr.model.decoder import Decoder, initialize
from apr.tensors import from_torch


def make_architecture(**changes) -> Architecture:
    values = {
        "family": "llama", "hidden_size": 64, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2,
        "head_dim": 16, "intermediate_size": 176, "vocab_size": 300,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10_000.0,
    }  # fmt: skip
    return Architecture(**{**values, **changes})


def make_decoder(arch: Architecture, seed: int = 1) -> Decoder:
    decoder = Decoder(arch)
    generator = torch.Generator().manual_seed(seed)
    initialize(decoder, generator)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return decoder


def make_model(decoder: Decoder, dtype=torch.float32, tokenizer=None, **metadata) -> OpenedModel:
    tensors = {
        name: from_torch(name, value.detach().to(dtype))
        for name, value in decoder.canonical_state().items()
    }
    return OpenedModel(
        path=Path("memory.apr"), format="apr", architecture=decoder.architecture, tensors=tensors,
        metadata=metadata, load_tokenizer=lambda: tokenizer, size_bytes=0,
    )  # fmt: skip


@pytest.fixture
def build():
    """`build(dtype, tokenizer, **changes)` -> (decoder, opened model)."""

    def make(dtype=torch.float32, tokenizer=None, seed=1, **changes):
        decoder = make_decoder(make_architecture(**changes), seed)
        return decoder, make_model(decoder, dtype, tokenizer)

    return make
