"""A small checkpoint on disk."""

import pytest
import torch

from apr import tokenizer as tokenizers
from apr.architecture import Architecture
from apr.checkpoint import write_checkpoint
from apr.model.decoder import Decoder, initialize
from apr.tensors import from_torch


@pytest.fixture(scope="session")
def _tokenizer():
    return tokenizers.train(iter(["a small text, written twice\n"] * 2), 270, "qwen2")


@pytest.fixture
def checkpoint(_tokenizer, tmp_path):
    """`checkpoint(name, dtype, **changes)` -> path."""

    def make(name="m.apr", dtype=torch.float32, **changes):
        values = {
            "family": "llama", "hidden_size": 32, "num_layers": 2, "num_heads": 4,
            "num_kv_heads": 2, "head_dim": 8, "intermediate_size": 64,
            "vocab_size": _tokenizer.vocab_size, "max_position_embeddings": 48,
            "rms_norm_eps": 1e-5, "rope_theta": 10_000.0, "tie_word_embeddings": True,
        }  # fmt: skip
        architecture = Architecture(**{**values, **changes})
        decoder = Decoder(architecture)
        initialize(decoder, torch.Generator().manual_seed(1))
        state = decoder.canonical_state()
        tensors = [from_torch(k, v.detach().to(dtype)) for k, v in state.items()]
        path = tmp_path / name
        write_checkpoint(path, architecture=architecture, tokenizer=_tokenizer, tensors=tensors)
        return path

    return make
