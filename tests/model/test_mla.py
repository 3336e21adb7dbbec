"""Attention through a latent: what the cache holds, and that steps with it change nothing."""

from dataclasses import replace

import pytest
import torch

from apr.architecture import Architecture, check
from apr.model.cache import KVCache
from apr.model.decoder import Decoder, initialize

BASE = Architecture(
    family="deepseek_v3", hidden_size=64, num_layers=3, num_heads=4, num_kv_heads=4, head_dim=24,
    intermediate_size=96, vocab_size=300, max_position_embeddings=128, rms_norm_eps=1e-5,
    rope_theta=10_000.0, q_lora_rank=24, kv_lora_rank=40, qk_nope_head_dim=16, qk_rope_head_dim=8,
    v_head_dim=20, num_experts=8, num_experts_per_tok=3, moe_intermediate_size=32,
    num_shared_experts=1, shared_expert_intermediate_size=32,
    mlp_layer_types=("dense", "sparse", "sparse"), num_expert_groups=2, topk_groups=1,
    router_scoring="sigmoid", router_correction_bias=True, group_score="top2",
    norm_topk_prob=True, rope_interleave=True,
)  # fmt: skip
YARN = {
    "rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 1.3,
    "original_max_position_embeddings": 16,
}  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [{}, {"q_lora_rank": None, "rope_interleave": False}, {"rope_scaling": YARN}],
    ids=lambda c: "-".join(c) or "plain",
)
def test_steps_over_stored_latents_equal_one_expanded_pass(changes):
    arch = replace(BASE, **changes)
    check(arch, "test")
    model = Decoder(arch)
    initialize(model, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    ids = torch.randint(0, 300, (2, 40), generator=generator)
    cache = KVCache(arch, 2, device=torch.device("cpu"), dtype=torch.float32, capacity=8)
    with torch.no_grad():
        whole = model(ids)
        parts = [model(chunk, cache) for chunk in ids.split([5, 1, 1, 16, 1, 16], dim=1)]
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=2e-5)
    assert {tuple(k.shape[:2] + k.shape[3:]) for k in cache.keys} == {(2, 1, arch.latent_size)}
    assert arch.latent_size == 48 and cache.values == []
