"""Windows and rotary scaling show in the logits, or the parity matrix would prove nothing.

Agreement with transformers and llama.cpp is tests/parity.
"""

import pytest
import torch

from apr.architecture import Architecture
from apr.architecture import check as check_architecture
from apr.model.decoder import Decoder, initialize

MIXED = ("full_attention", "sliding_attention", "full_attention")
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip


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


def differences(family: str, changes: dict) -> torch.Tensor:
    """Largest difference at each of 60 positions between a model with and without the changes."""
    model, plain = Decoder(architecture(family, **changes)), Decoder(architecture(family))
    initialize(model, torch.Generator().manual_seed(1))
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
            parameter.add_(noise * 0.05)
    plain.load_state_dict(model.state_dict())
    ids = torch.randint(0, 300, (1, 60), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        return (model(ids) - plain(ids)).abs().amax(dim=(0, 2))


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("qwen2", {"sliding_window": 9, "layer_types": MIXED}),
        ("qwen3", {"sliding_window": 9, "layer_types": MIXED}),
        ("mistral", {"sliding_window": 7}),
        ("mistral", {"sliding_window": 1}),
    ],
)
def test_a_window_changes_the_logits_from_where_it_is_shorter(family, changes):
    found, window = differences(family, changes), changes["sliding_window"]
    assert found[:window].max() < 2e-5 and found[window:].max() > 1e-2


@pytest.mark.parametrize("scaling", [LLAMA3, {"rope_type": "linear", "factor": 2.7}], ids=str)
def test_a_rotary_scaling_changes_the_logits_behind_the_first_token(scaling):
    found = differences("llama", {"rope_scaling": scaling})
    assert found[0] < 2e-5 and found[1:].max() > 1e-3
