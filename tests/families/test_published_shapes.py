"""Published configs of Gemma, OLMo 2 and Phi open, with as many parameters as their models have.

The counts are those of the published safetensors files; nothing here is computed from ours.
"""

import pytest

from apr import architecture, families

SHAPES = {
    "gemma-2-2b": ("gemma2", 2_614_341_888, 4096, {
        "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 256000,
        "max_position_embeddings": 8192, "sliding_window": 4096, "query_pre_attn_scalar": 256,
        "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
        "cache_implementation": "hybrid",
    }),
    "gemma-3-1b": ("gemma3_text", 999_885_952, 512, {
        "hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26,
        "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 262144,
        "max_position_embeddings": 32768, "sliding_window": 512, "sliding_window_pattern": 6,
        "rope_local_base_freq": 10000, "rope_theta": 1000000, "rope_scaling": None,
        "query_pre_attn_scalar": 256, "attn_logit_softcapping": None,
        "final_logit_softcapping": None, "eos_token_id": [1, 106],
    }),
    "OLMo-2-1124-7B": ("olmo2", 7_298_617_344, None, {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 100352,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 500000,
        "rope_scaling": None,
    }),
    "Phi-3-mini-4k": ("phi3", 3_821_079_552, 2047, {
        "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32064,
        "max_position_embeddings": 4096, "original_max_position_embeddings": 4096,
        "sliding_window": 2047, "rope_scaling": None, "rms_norm_eps": 1e-5,
    }),
    "Phi-4-mini": ("phi3", 3_836_021_760, None, {
        "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
        "num_attention_heads": 24, "num_key_value_heads": 8, "vocab_size": 200064,
        "max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
        "sliding_window": 262144, "partial_rotary_factor": 0.75, "attention_bias": False,
        "mlp_bias": False, "lm_head_bias": False, "tie_word_embeddings": True,
        "rope_scaling": {
            "type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48,
        },
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_a_published_config_opens_with_its_parameters_and_window(name):
    family, count, window, config = SHAPES[name]
    arch = families.by_name(family).from_hf(config, name)
    architecture.check(arch, name)
    assert families.num_parameters(arch) == count
    assert arch.shortest_window == window
