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
    "qwen2_moe": {
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48,
        "shared_expert_intermediate_size": 56,
    },
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2},
}  # fmt: skip
QWEN = [family for family in EXPERTS if family.startswith("qwen")]
# Everything that the family's code in transformers reads.
COMPARED = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings", "rms_norm_eps",
    "rope_parameters", "hidden_act", "attention_bias", "tie_word_embeddings", "initializer_range",
    "sliding_window", "layer_types", "num_experts", "num_experts_per_tok", "norm_topk_prob",
    "moe_intermediate_size", "shared_expert_intermediate_size", "router_aux_loss_coef", "qkv_bias",
    "swiglu_limit", "swiglu_alpha",
)  # fmt: skip
UNREAD = {
    "mixtral": ("norm_topk_prob", "qkv_bias", "attention_bias"),
    "qwen2_moe": ("attention_bias",),
    "qwen3_moe": ("qkv_bias",),
    "gpt_oss": ("norm_topk_prob", "qkv_bias"),
}


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
        {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 3},
        {"norm_topk_prob": True, "qkv_bias": False, "attention_bias": True},
        {"mlp_only_layers": [0, 3]},
        {"decoder_sparse_step": 2, "mlp_only_layers": None},
        {"decoder_sparse_step": 2, "mlp_only_layers": [1]},
        {"decoder_sparse_step": 9},
    ],
    ids=str,
)
def test_a_config_written_again_says_the_same_to_transformers(family, stated):
    same_for_transformers(family, stated)


def same_for_transformers(family, stated):
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
        if key in UNREAD[family]:
            continue  # kept as an attribute, used by nothing
        assert ours == original, key
    if family in QWEN:
        assert sparse(second) == sparse(first)


def sparse(config):
    """The layers in which transformers' Qwen builds experts."""
    return [
        i for i in range(config.num_hidden_layers)
        if i not in config.mlp_only_layers and (i + 1) % config.decoder_sparse_step == 0
    ]  # fmt: skip


@pytest.mark.parametrize("family", QWEN)
def test_layers_with_experts_are_those_of_transformers(family):
    assert read(family).mlp_layer_types is None
    assert read(family, decoder_sparse_step=2).sparse_layers == [1, 3]
    assert read(family, decoder_sparse_step=2, mlp_only_layers=[1]).sparse_layers == [3]
    with pytest.raises(InvalidFormat, match="decoder_sparse_step is 0"):
        read(family, decoder_sparse_step=0)
    with pytest.raises(InvalidFormat, match="mlp_only_layers is 3"):
        read(family, mlp_only_layers=3)


def test_the_window_of_a_qwen_with_experts_has_rules_of_its_own():
    used = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 3}
    assert [read("qwen2_moe", **used).window(i) for i in range(4)] == [16, None, 16, None]
    assert [read("qwen3_moe", **used).window(i) for i in range(4)] == [16] * 4
    assert read("qwen3_moe", sliding_window=16).sliding_window is None


def test_the_head_of_a_qwen3_with_experts_has_no_default_of_its_own():
    assert read("qwen3_moe").head_dim == 2 == SIZES["hidden_size"] // 32
    with pytest.raises(InvalidFormat, match="head_dim is null"):
        read("qwen3_moe", head_dim=None)


def test_both_names_of_the_number_of_experts_are_read():
    """transformers 5 writes `num_local_experts` for a Qwen3-MoE, transformers 4 `num_experts`."""
    assert read("qwen3_moe", num_experts=None, num_local_experts=7).num_experts == 7


def test_a_head_that_llama_cpp_wants_twice_is_read_as_tied_only_if_it_is_a_copy(tmp_path):
    """A quantizer may have given the two different types: then the head is one of its own."""
    import torch

    from apr.formats import open_model, write_gguf
    from apr.formats.opened import OpenedModel
    from apr.model.decoder import Decoder
    from apr.tensors import from_torch
    from apr.tokenizer import train

    arch = read("qwen2_moe", num_key_value_heads=4, tie_word_embeddings=True)
    state = {k: from_torch(k, torch.randn(v.shape)) for k, v in Decoder(arch).state_dict().items()}
    del state["lm_head.weight"]
    tokenizer = train(iter(["the head that is written twice " * 4]), 280, "qwen2")
    model = OpenedModel(tmp_path / "m", "apr", arch, state, {}, lambda: tokenizer, 0)
    write_gguf(tmp_path / "m.gguf", model)
    again = open_model(tmp_path / "m.gguf")
    assert again.architecture == arch and again.tensors.keys() == state.keys()
    data = (tmp_path / "m.gguf").read_bytes()
    start = data.rindex(state["model.embed_tokens.weight"].raw()[:64].tobytes())
    changed = data[:start] + bytes(64) + data[start + 64 :]
    (tmp_path / "other.gguf").write_bytes(changed)
    other = open_model(tmp_path / "other.gguf")
    assert not other.architecture.tie_word_embeddings and "lm_head.weight" in other.tensors


@pytest.mark.parametrize("family", EXPERTS)
def test_sizes_of_experts_have_no_default(family):
    """transformers has some: those of one particular model."""
    for key in EXPERTS[family]:
        named = key.replace("num_local_experts", "num_experts")
        with pytest.raises(InvalidFormat, match=f"missing.*{named}"):
            read(family, **{key: None})


@pytest.mark.parametrize("family", ["mixtral", *QWEN])
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


def test_a_gpt_oss_without_rotary_parameters_means_the_released_yarn():
    assert read("gpt_oss").rope_scaling == {
        "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
        "truncate": False, "original_max_position_embeddings": 4096,
    }  # fmt: skip
    assert read("gpt_oss").rope_theta == 150_000.0
    assert read("gpt_oss", rope_theta=1e4, rope_scaling=None).rope_theta == 1e4
    plain = {"rope_type": "default", "rope_theta": 1e4}
    assert read("gpt_oss", rope_parameters=plain).rope_scaling is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"swiglu_alpha": 1.5}, "swiglu_alpha is 1.5"),
        ({"sliding_window": None}, "sliding_window is null"),
        ({"num_local_experts": None}, "num_experts"),
    ],
)
def test_what_a_gpt_oss_cannot_be_is_refused(changes, message):
    with pytest.raises(InvalidFormat, match=message):
        read("gpt_oss", **changes)


def test_the_sliding_layers_of_a_gpt_oss_may_be_stated():
    same_for_transformers("gpt_oss", {"layer_types": ["full_attention", "sliding_attention"] * 2})


def test_the_head_of_a_gpt_oss_is_64_wide_if_absent_and_shared_out_if_null():
    assert read("gpt_oss").head_dim == 64
    assert read("gpt_oss", head_dim=None).head_dim == 2


def test_the_window_that_a_gguf_gpt_oss_states_hides_nothing_where_there_is_none():
    """llama.cpp slides in every second layer, whatever the file says."""
    module = families.by_name("gpt_oss")
    full = read("gpt_oss", layer_types=["full_attention"] * 4, sliding_window=8)
    assert module.to_gguf(full)["attention.sliding_window"] == 128
    assert module.to_gguf(read("gpt_oss", sliding_window=8))["attention.sliding_window"] == 8
    assert module.to_gguf(read("gpt_oss", sliding_window=200))["attention.sliding_window"] == 200


@pytest.mark.parametrize(
    ("family", "sizes", "total", "active"),
    [
        (
            "mixtral",  # 8x7B
            (4096, 14336, 32, 32, 8, 128, 32000),
            46_702_792_704,
            12.88,
        ),
        (
            "qwen3_moe",  # 30B-A3B
            (2048, 6144, 48, 32, 4, 128, 151936),
            30_532_122_624,
            3.35,
        ),
        ("gpt_oss", (2880, 2880, 24, 64, 8, 64, 201088), 20_914_757_184, 4.19),  # 20b
    ],
)
def test_released_models_have_their_known_number_of_parameters(family, sizes, total, active):
    keys = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "vocab_size",
    )  # fmt: skip
    experts = {
        "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2},
        "qwen3_moe": {
            "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768,
        },
        "gpt_oss": {"num_local_experts": 32, "num_experts_per_tok": 4},
    }[family]  # fmt: skip
    arch = read(family, **dict(zip(keys, sizes, strict=True)), **experts)
    assert families.num_parameters(arch) == total
    # In billions, with the embedding (gpt-oss is published as 3.6 without).
    assert round(families.num_parameters(arch, active=True) / 1e9, 2) == active
