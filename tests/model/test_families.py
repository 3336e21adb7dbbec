"""Every family's decoder against transformers' on the same random weights."""

import pytest
import torch

from apr import families
from apr.architecture import Architecture
from apr.architecture import check as check_architecture
from apr.model.cache import KVCache
from apr.model.decoder import Decoder, initialize

transformers = pytest.importorskip("transformers")
MIXED = ("full_attention", "sliding_attention", "full_attention")
# One kv head, odd numbers of heads, tied and not, heads wider than the hidden size says, windows
# shorter than the prompt of 48.
SHARED = [
    {},
    {"tie_word_embeddings": True, "num_kv_heads": 1},
    {"num_heads": 3, "num_kv_heads": 3, "head_dim": 22},
    {"num_heads": 7, "num_kv_heads": 1, "head_dim": 32, "rope_theta": 1e6, "rms_norm_eps": 1e-6},
]
WINDOWS = {
    "llama": [],
    "qwen2": [{"sliding_window": 9, "layer_types": MIXED}],
    "qwen3": [{"sliding_window": 9, "layer_types": MIXED}, {"attention_bias": True}],
    "mistral": [{"sliding_window": 7}, {"sliding_window": 1}, {"sliding_window": 48}],
}
CASES = [
    (family, changes)
    for family in ("qwen2", "qwen3", "mistral")
    if family in families.known()
    for changes in (*SHARED, *WINDOWS[family])
]


def architecture(family: str, **changes) -> Architecture:
    values = {
        "hidden_size": 64, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16,
        "intermediate_size": 176, "vocab_size": 300, "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5, "rope_theta": 10_000.0, "qkv_bias": family == "qwen2",
        "qk_norm": family == "qwen3",
    }  # fmt: skip
    out = Architecture(family=family, **{**values, **changes})
    check_architecture(out, "test")
    return out


def random_decoder(arch: Architecture) -> Decoder:
    """Weights large enough, and biases and norms far enough from neutral, that all of them show."""
    generator = torch.Generator().manual_seed(1)
    model = Decoder(arch)
    initialize(model, generator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            size = 0.3 if name.endswith("norm.weight") else 0.05
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
    return model


@pytest.mark.parametrize(("family", "changes"), CASES, ids=str)
def test_logits_equal_those_of_transformers(family, changes):
    arch = architecture(family, **changes)
    ours = random_decoder(arch)
    config = families.by_name(family).to_hf(arch)
    theirs = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**config), attn_implementation="eager"
    )
    theirs.load_state_dict(ours.state_dict())
    ids = torch.randint(0, arch.vocab_size, (2, 48), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        difference = (ours(ids) - theirs(ids).logits).abs().max().item()
    assert difference < 2e-5


@pytest.mark.parametrize(("family", "changes"), CASES, ids=str)
def test_cached_steps_equal_the_whole_sequence(family, changes):
    arch = architecture(family, **changes)
    model = random_decoder(arch)
    ids = torch.randint(0, arch.vocab_size, (1, 60), generator=torch.Generator().manual_seed(3))
    cache = KVCache(arch, 1, device=torch.device("cpu"), dtype=torch.float32, capacity=8)
    with torch.no_grad():
        whole = model(ids)
        parts = [model(chunk, cache) for chunk in ids.split([5, 1, 1, 16, 1, 17, 1, 18], dim=1)]
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=2e-5)


@pytest.mark.parametrize(("family", "changes"), [c for c in CASES if "sliding_window" in c[1]])
def test_a_window_changes_the_logits_from_where_it_is_shorter(family, changes):
    """Otherwise the comparisons above would pass for a window that nobody computes."""
    arch = architecture(family, **changes)
    model, window = random_decoder(arch), changes["sliding_window"]
    full = Decoder(architecture(family))
    full.load_state_dict(model.state_dict())
    ids = torch.randint(0, arch.vocab_size, (1, 60), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        difference = (model(ids) - full(ids)).abs().amax(dim=(0, 2))
    assert difference[:window].max() < 2e-5 and difference[window:].max() > 1e-2


# Rotary scaling, at positions within and beyond the original context.
ORIGINAL = 32  # tokens; the prompts have 120
SCALINGS = [
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "linear", "factor": 2.7},
    {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    },
    {
        "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 0.5, "high_freq_factor": 16.0,
        "original_max_position_embeddings": ORIGINAL,
    },
]  # fmt: skip
SCALED = [
    (family, {"rope_scaling": scaling, **changes})
    for family in ("llama", "qwen2", "qwen3", "mistral")
    for scaling in SCALINGS
    for changes in ({}, {"num_heads": 2, "num_kv_heads": 1, "head_dim": 32, "rope_theta": 1e6})
]


def long_prompt(arch, seed):
    return torch.randint(
        0, arch.vocab_size, (1, 120), generator=torch.Generator().manual_seed(seed)
    )


@pytest.mark.parametrize(("family", "changes"), SCALED, ids=str)
def test_scaled_logits_equal_those_of_transformers(family, changes):
    arch = architecture(family, **changes)
    ours = random_decoder(arch)
    theirs = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**families.by_name(family).to_hf(arch)),
        attn_implementation="eager",
    )
    theirs.load_state_dict(ours.state_dict())
    unscaled = Decoder(architecture(family, **{**changes, "rope_scaling": None}))
    unscaled.load_state_dict(ours.state_dict())
    ids = long_prompt(arch, 2)
    with torch.no_grad():
        logits = ours(ids)
        difference = (logits - theirs(ids).logits).abs().max().item()
        without = (logits - unscaled(ids)).abs().max().item()
    assert difference < 2e-5
    assert without > 1e-3  # or the comparison would pass for a scaling that nobody computes


@pytest.mark.parametrize(("family", "changes"), SCALED, ids=str)
def test_scaled_cached_steps_equal_the_whole_sequence(family, changes):
    arch = architecture(family, **changes)
    model = random_decoder(arch)
    ids = long_prompt(arch, 3)
    cache = KVCache(arch, 1, device=torch.device("cpu"), dtype=torch.float32, capacity=8)
    with torch.no_grad():
        whole = model(ids)
        parts = [model(chunk, cache) for chunk in ids.split([30, 1, 1, 1, 27, 1, 58, 1], dim=1)]
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=2e-5)
