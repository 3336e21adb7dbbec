"""Estimates before a run, held to what torch really keeps."""

import pytest
from data_standin import architecture

from apr import families
from apr.data.estimate import estimate_memory, estimate_seconds
from apr.errors import UsageError
from apr.model.costs import train_flops_per_token

EXPERTS = {"num_layers": 2, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
LATENT = {"q_lora_rank": 64, "kv_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16}
LATENT |= {"num_kv_heads": 4, "num_heads": 4, "head_dim": 48}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_kv_heads": 1, "num_layers": 6},
        {"intermediate_size": 700, "hidden_size": 256},
        {**EXPERTS, "mlp_layer_types": ("dense", "sparse"), "swiglu_limit": 7.0},
        {**EXPERTS, "shared_expert_intermediate_size": 96},
        {**LATENT, "v_head_dim": 32},
        {"block_norms": "both", "norm_plus_one": True, "qk_norm": True, "attn_logit_softcap": 50.0},
        {"norm_type": "layer", "mlp_gated": False, "attention_sinks": True},
        {"fused_qkv": True, "fused_gate_up": True, "sub_norms": True},
    ],
    ids=lambda changes: "-".join(changes) or "plain",
)
def test_the_activations_are_those_that_torch_saves_for_backward(changes):
    import torch

    from apr.model.decoder import Decoder, initialize

    arch = architecture(**changes)
    model = Decoder(arch)
    initialize(model, torch.Generator().manual_seed(0))
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved, kept = {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)  # keeps the address from being used again
        return tensor

    ids = torch.randint(0, arch.vocab_size, (4, 64))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(ids)
    estimate = estimate_memory(arch, 4, 64)
    assert estimate.activations == pytest.approx(sum(saved.values()), rel=0.03)


def test_weights_gradients_and_moments_take_16_bytes_a_parameter():
    n = families.num_parameters(architecture())
    estimate = estimate_memory(architecture(), 2, 8)
    assert estimate.weights + estimate.gradients + estimate.optimizer == 16 * n
    assert estimate.to_json()["total"] == estimate.total > 16 * n
    assert estimate_memory(architecture(), 2, 8, "bfloat16").weights == 6 * n
    with pytest.raises(UsageError):
        estimate_memory(architecture(), 2, 8, "int3")


def test_time_is_unknown_unless_the_speed_is_known():
    arch = architecture()
    assert estimate_seconds(arch, 1000, 64, None) is None
    expected = 1000 * train_flops_per_token(arch, 64) / 1e9
    assert estimate_seconds(arch, 1000, 64, 1e9) == pytest.approx(expected)
