"""Small models in memory, with weights far enough from zero that every part matters."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from apr.architecture import Architecture
from apr.dtypes import DTYPES
from apr.formats.opened import OpenedModel
from apr.model.decoder import Decoder, initialize
from apr.tensors import Tensor, from_torch


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


@pytest.fixture
def quantized():
    """`quantized(model, name)`: the model with matrices of another type, and with what they
    decode to.
    """

    def make(model, name):
        gguf = pytest.importorskip("gguf")
        stored, decoded = dict(model.tensors), dict(model.tensors)
        for key, tensor in model.tensors.items():
            if len(tensor.shape) == 2:
                raw = gguf.quants.quantize(tensor.float32(), gguf.GGMLQuantizationType[name])
                raw = np.ascontiguousarray(raw).reshape(-1).view(np.uint8)
                stored[key] = Tensor(key, DTYPES[name], tensor.shape, lambda raw=raw: raw)
                decoded[key] = from_torch(key, torch.from_numpy(stored[key].float32().copy()))
        return dataclasses.replace(model, tensors=stored), dataclasses.replace(
            model, tensors=decoded
        )

    return make
