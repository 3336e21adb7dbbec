"""Configs and GGUF keys of families with experts: what is absent, null, or of another family."""

import copy

import pytest

from apr import families
from apr.errors import InvalidFormat

transformers = pytest.importorskip("transformers")
SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 32,
    "vocab_size": 300, "max_position_embeddings": 128,
}  # fmt: skip
EXPERTS = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
}
# Everything that the family's code in transformers reads.
COMPARED = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings", "rms_norm_eps",
    "rope_parameters", "hidden_act", "attention_bias", "tie_word_embeddings", "initializer_range",
    "sliding_window", "layer_types", "num_experts", "num_experts_per_tok", "norm_topk_prob",
    "moe_intermediate_size", "shared_expert_intermediate_size", "router_aux_loss_coef", "qkv_bias",
)  # fmt: skip


def given(family, **changes):
    return {**SIZES, **EXPERTS[family], "model_type": family, **changes}


def read(family, **changes):
    return families.by_name(family).from_hf(given(family, **changes), "config.json")


@pytest.mark.parametrize("family", EXPERTS)
@pytest.mark.parametrize(
    "stated",
    [
        {},
        {"num_key_value_heads": 4, "head_dim": 24, "tie_word_embeddings": True},
        {"num_key_value_heads": 8, "rope_theta": 5e5, "router_aux_loss_coef": 0.5},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "rms_norm_eps": 1e-3},
        {"sliding_window": 16},
        {"sliding_window": None},
    ],
    ids=str,
)
def test_a_config_written_again_says_the_same_to_transformers(family, stated):
    first, second = (
        transformers.AutoConfig.for_model(**copy.deepcopy(config))
        for config in (
            given(family, **stated),
            families.by_name(family).to_hf(read(family, **stated)),
        )
    )
    for key in COMPARED:
        ours, original = getattr(second, key, None), getattr(first, key, None)
        if key == "head_dim" and original is None:
            original = SIZES["hidden_size"] // SIZES["num_attention_heads"]
        assert ours == original, key


@pytest.mark.parametrize("family", EXPERTS)
def test_sizes_of_experts_have_no_default(family):
    """transformers has some: those of one particular model."""
    for key in EXPERTS[family]:
        named = {"num_local_experts": "num_experts"}.get(key, key)
        with pytest.raises(InvalidFormat, match=f"missing.*{named}"):
            read(family, **{key: None})


@pytest.mark.parametrize("family", EXPERTS)
def test_an_activation_that_the_family_never_has_is_refused(family):
    from apr.architecture import check

    with pytest.raises(InvalidFormat, match="hidden_act is 'gelu'"):
        check(read(family, hidden_act="gelu"), "config.json")


def test_a_gguf_llama_with_experts_is_a_mixtral():
    arch = read("mixtral", num_key_value_heads=4)
    fields = {**families.by_name("mixtral").to_gguf(arch), "vocab_size": 300}
    family = families.by_gguf_architecture("llama", "x.gguf", fields)
    assert family is families.by_name("mixtral")
    assert family.from_gguf(fields, "x.gguf").num_experts == 4
    dense = {**fields, "expert_count": 0}
    assert families.by_gguf_architecture("llama", "x.gguf", dense) is families.by_name("llama")
