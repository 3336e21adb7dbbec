"""Our decoder against transformers' on the same random weights."""

import pytest
import torch

from apr.architecture import Architecture
from apr.families import llama
from apr.model.cache import KVCache
from apr.model.decoder import Decoder, initialize

transformers = pytest.importorskip("transformers")


def architecture(**changes) -> Architecture:
    values = {
        "family": "llama",
        "hidden_size": 64,
        "num_layers": 3,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "intermediate_size": 176,
        "vocab_size": 300,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
    }
    return Architecture(**{**values, **changes})


SHAPES = [
    {},
    {"tie_word_embeddings": True},
    {"num_kv_heads": 1},
    {"num_heads": 4, "num_kv_heads": 4, "head_dim": 24},
    {"attention_bias": True, "mlp_bias": True},
    {"rope_theta": 500_000.0, "rms_norm_eps": 1e-6},
]


@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_logits_equal_those_of_transformers(changes):
    arch = architecture(**changes)
    generator = torch.Generator().manual_seed(1)
    ours = Decoder(arch)
    initialize(ours, generator)
    with torch.no_grad():  # biases and norms away from their neutral values
        for parameter in ours.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    theirs = transformers.AutoModelForCausalLM.from_config(
        transformers.LlamaConfig(**llama.to_hf(arch)), attn_implementation="eager"
    )
    theirs.load_state_dict(ours.state_dict())
    ids = torch.randint(0, arch.vocab_size, (2, 48), generator=generator)
    with torch.no_grad():
        difference = (ours(ids) - theirs(ids).logits).abs().max().item()
    assert difference < 2e-5


def test_cached_steps_equal_the_whole_sequence_also_across_a_growing_cache():
    arch = architecture()
    model = Decoder(arch)
    initialize(model, torch.Generator().manual_seed(2))
    ids = torch.randint(0, arch.vocab_size, (1, 60), generator=torch.Generator().manual_seed(3))
    cache = KVCache(arch, 1, device=torch.device("cpu"), dtype=torch.float32, capacity=8)
    with torch.no_grad():
        whole = model(ids)
        parts = [model(chunk, cache) for chunk in ids.split([20, 1, 1, 17, 1, 20], dim=1)]
    assert cache.length == 60
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=2e-5)
