"""DeepSeek's correction bias beside bfloat16 weights: it keeps its type wherever it goes."""

import gguf
import numpy as np
import pytest
import torch
from apr_tiny import make_architecture, make_tensors, make_tokenizer

from apr import engine
from apr.checkpoint import write_checkpoint
from apr.formats import open_model, write_gguf, write_hf
from apr.tensors import from_torch

NAME = "model.layers.1.mlp.gate.e_score_correction_bias"
SHAPE = {
    "family": "deepseek_v3", "num_kv_heads": 4, "head_dim": 24, "q_lora_rank": 32,
    "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48,
    "num_shared_experts": 1, "shared_expert_intermediate_size": 48,
    "mlp_layer_types": ("dense", "sparse"), "router_scoring": "sigmoid", "group_score": "top2",
    "router_correction_bias": True, "rope_interleave": True, "norm_topk_prob": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    arch = make_architecture(**SHAPE)
    bias = from_torch(NAME, torch.linspace(0.1, 0.4, 4) / 3)  # which bfloat16 would round
    tensors = [t if t.name != NAME else bias for t in make_tensors(arch, torch.bfloat16)]
    path = tmp_path_factory.mktemp("v3") / "m.apr"
    write_checkpoint(
        path,
        architecture=arch,
        tokenizer=make_tokenizer(),
        tensors=tensors,
        metadata={"name": "tiny", "license": "MIT"},
    )
    return open_model(path)


@pytest.mark.parametrize("quantize", [None, "bf16", "f16"])
def test_a_folder_keeps_it_exact_and_everything_else_as_asked(source, tmp_path, quantize):
    write_hf(tmp_path / "hf", source, quantize=quantize)
    again = open_model(tmp_path / "hf").tensors
    assert again[NAME].dtype.name == "F32"
    assert np.array_equal(again[NAME].float32(), source.tensors[NAME].float32())
    others = {tensor.dtype.name for name, tensor in again.items() if name != NAME}
    assert others == {"F16" if quantize == "f16" else "BF16"}


def test_gguf_gives_it_back(source, tmp_path):
    write_gguf(tmp_path / "m.gguf", source)
    # Absent, a reader takes the router for a softmax; the key is a u32, and 2 is the sigmoid.
    kind = gguf.GGUFReader(tmp_path / "m.gguf").get_field("deepseek2.expert_gating_func")
    assert kind.types == [gguf.GGUFValueType.UINT32] and kind.contents() == 2
    again = open_model(tmp_path / "m.gguf")
    assert again.architecture == source.architecture
    for name, tensor in source.tensors.items():
        assert np.array_equal(again.tensors[name].float32(), tensor.float32()), name


def test_the_engine_computes_with_it_unrounded(source):
    loaded = engine.load(source, device="cpu", dtype="bfloat16")
    bias = loaded._decoder.get_parameter(NAME)
    assert bias.dtype == torch.float32
    assert np.array_equal(bias.detach().numpy(), source.tensors[NAME].float32())
    assert np.isfinite(loaded.logits([1, 2, 3])).all()
