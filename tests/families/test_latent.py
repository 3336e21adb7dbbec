"""DeepSeek-V2, DeepSeek-V3 and GLM-4.7-Flash: their configs, their GGUF metadata, their sizes."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from apr import families
from apr.architecture import check
from apr.dtypes import DTYPES
from apr.errors import GateFailed, InvalidFormat
from apr.families import TensorSpec
from apr.formats import latent_scale, recipes
from apr.model.costs import cache_bytes_per_token
from apr.quant import encode
from apr.tensors import from_array

CONFIGS = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "configs"
FAMILIES = ("deepseek_v2", "deepseek_v3", "glm4_moe_lite")
SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 5, "num_attention_heads": 4,
    "vocab_size": 300, "max_position_embeddings": 128, "q_lora_rank": 24, "kv_lora_rank": 32,
    "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 20, "n_routed_experts": 64,
    "moe_intermediate_size": 32, "num_experts_per_tok": 4,
}  # fmt: skip
COMPARED = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
    "max_position_embeddings", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_head_dim",
    "qk_rope_head_dim", "v_head_dim", "head_dim", "n_routed_experts", "moe_intermediate_size",
    "num_experts_per_tok", "n_shared_experts", "routed_scaling_factor", "rms_norm_eps",
    "rope_parameters", "hidden_act", "attention_bias", "mlp_bias", "tie_word_embeddings",
    "initializer_range", "rope_interleave", "mlp_layer_types", "first_k_dense_replace",
    "topk_method",
)  # fmt: skip
ONE_GROUP = {"n_group": 1, "topk_group": 1}
ROUTER = ("n_group", "topk_group", "norm_topk_prob")  # what DeepSeek-V2 reads in part, or not


def read(family, **changes):
    config = {**SIZES, "model_type": family, **changes}
    return families.by_name(family).from_hf(config, "config.json")


def same_for_transformers(family, stated, without=()):
    """transformers must read the same from a config and from what we write for it."""
    transformers = pytest.importorskip("transformers")
    given = {k: v for k, v in {**SIZES, "model_type": family, **stated}.items() if k not in without}
    ours = families.by_name(family)
    arch = ours.from_hf(given, "config.json")
    check(arch, "config.json")
    first, second = (
        # A copy: transformers writes the base into the rotary object that it is given.
        transformers.AutoConfig.for_model(**copy.deepcopy(config))
        for config in (given, ours.to_hf(arch))
    )
    keys = COMPARED if family == "deepseek_v2" else COMPARED + ROUTER
    for key in first.to_dict().keys() & set(keys):
        assert getattr(second, key) == getattr(first, key), key
    assert ours.from_hf(ours.to_hf(arch), "config.json") == arch
    return arch


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "stated",
    [
        {},
        {"q_lora_rank": None, "tie_word_embeddings": True},
        {"n_shared_experts": 2, "routed_scaling_factor": 1.5, "attention_bias": True},
        {"rms_norm_eps": 1e-4, "rope_theta": 1e6, "num_key_value_heads": 4},
        {
            "rope_scaling": {
                "type": "yarn", "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707,
                "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1,
            }
        },
    ],
    ids=lambda s: "-".join(s) or "nothing",
)  # fmt: skip
def test_a_config_written_again_says_the_same_to_transformers(family, stated):
    if "rope_scaling" in stated:
        with_type = {"rope_type": "yarn", **stated["rope_scaling"]}
        del with_type["type"]
        assert read(family, **stated).rope_scaling == {**with_type}
        stated = {"rope_parameters": {**with_type, "rope_theta": 5e4}}
    same_for_transformers(family, stated)


def test_absent_fields_have_each_family_s_own_default():
    v3 = same_for_transformers("deepseek_v3", {"n_routed_experts": 256}, ["num_experts_per_tok"])
    assert (v3.num_experts_per_tok, v3.num_expert_groups, v3.topk_groups) == (8, 8, 4)
    assert v3.router_scoring == "sigmoid"  # which transformers 5 never writes
    assert v3.mlp_layer_types == ("dense",) * 3 + ("sparse",) * 2
    glm = same_for_transformers("glm4_moe_lite", {}, ["num_experts_per_tok"])
    assert (glm.num_experts_per_tok, glm.num_expert_groups, glm.rms_norm_eps) == (4, 1, 1e-5)
    assert glm.mlp_layer_types == ("dense",) + ("sparse",) * 4
    v2 = same_for_transformers("deepseek_v2", {})
    assert (v2.router_scoring, v2.num_expert_groups, v2.num_shared_experts) == ("softmax", 1, 2)
    assert v2.dense_layers == []


@pytest.mark.parametrize(
    ("family", "stated"),
    [
        ("deepseek_v3", {"n_group": 4, "topk_group": 2, "first_k_dense_replace": 0}),
        ("deepseek_v3", {"rope_interleave": False, "norm_topk_prob": False, **ONE_GROUP}),
        ("deepseek_v3", {"first_k_dense_replace": 9, "n_group": 2, "topk_group": 1}),
        ("glm4_moe_lite", {"mlp_layer_types": ["dense", "sparse", "dense", "sparse", "dense"]}),
        ("glm4_moe_lite", {"n_group": 4, "topk_group": 2, "first_k_dense_replace": 1}),
        ("deepseek_v2", {"topk_method": "group_limited_greedy", "n_group": 8, "topk_group": 3}),
        ("deepseek_v2", {"first_k_dense_replace": 2, "mlp_bias": True}),
    ],
    ids=str,
)  # fmt: skip
def test_routers_and_layers_are_read_and_written(family, stated):
    without = ["first_k_dense_replace"] if stated.get("first_k_dense_replace") == 9 else []
    arch = same_for_transformers(family, {k: v for k, v in stated.items() if k not in without})
    if without:  # more than there are layers: all of them
        assert read(family, **stated).sparse_layers == [] and arch.sparse_layers == [3, 4]


def test_other_spellings_of_the_number_of_experts_are_understood():
    for family, name in (("deepseek_v3", "num_local_experts"), ("deepseek_v2", "num_experts")):
        config = {**SIZES, "model_type": family, name: SIZES["n_routed_experts"]}
        del config["n_routed_experts"]
        assert families.by_name(family).from_hf(config, "c") == read(family)


def test_greedy_has_no_groups_whatever_the_config_says():
    assert read("deepseek_v2", n_group=8, topk_group=3) == read("deepseek_v2")
    assert read("deepseek_v2", norm_topk_prob=True) == read("deepseek_v2")  # as transformers


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("key", sorted(SIZES))
def test_a_missing_size_is_named(family, key):
    if key == "num_experts_per_tok" and family != "deepseek_v2":
        return  # has a default there
    config = {k: v for k, v in {**SIZES, "model_type": family}.items() if k != key}
    canonical = {
        "num_hidden_layers": "num_layers", "num_attention_heads": "num_heads",
    }.get(key, key)  # fmt: skip
    with pytest.raises(InvalidFormat, match=canonical):
        families.by_name(family).from_hf(config, "config.json")


def test_several_missing_sizes_are_named_together():
    with pytest.raises(InvalidFormat, match=r"kv_lora_rank, v_head_dim, n_routed_experts, q_lora"):
        config = {**SIZES, "kv_lora_rank": None, "v_head_dim": None, "n_routed_experts": None}
        del config["q_lora_rank"]
        families.by_name("deepseek_v3").from_hf(config, "config.json")


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func is 'softmax'"),
        ("deepseek_v3", {"topk_method": "greedy"}, "topk_method is 'greedy'"),
        ("deepseek_v3", {"moe_layer_freq": 2}, "moe_layer_freq is 2"),
        ("deepseek_v3", {"n_group": None}, "n_group is None"),
        ("deepseek_v3", {"first_k_dense_replace": None}, "first_k_dense_replace is None"),
        ("deepseek_v3", {"num_key_value_heads": 2}, "num_key_value_heads is 2"),
        ("deepseek_v3", {"kv_lora_rank": "wide"}, "kv_lora_rank is 'wide'"),
        ("deepseek_v3", {"n_group": 64}, "fewer than the two"),
        ("deepseek_v3", {"n_group": 32, "topk_group": 1}, "4 experts a token"),
        (
            "deepseek_v3",
            {"rope_scaling": {"type": "linear", "factor": 2.0, "mscale_all_dim": 1.0}},
            "mscale_all_dim",
        ),
        ("glm4_moe_lite", {"first_k_dense_replace": 2}, "first_k_dense_replace is 2"),
        ("glm4_moe_lite", {"mlp_layer_types": ["dense"]}, "names 1 layers, the model has 5"),
        ("glm4_moe_lite", {"mlp_layer_types": ["moe"] * 5}, "mlp_layer_types"),
        ("glm4_moe_lite", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ("deepseek_v2", {"topk_method": "noaux_tc"}, "topk_method is 'noaux_tc'"),
        ("deepseek_v2", {"topk_method": "group_limited_greedy"}, "n_group is None"),
        ("deepseek_v2", {"scoring_func": "sigmoid"}, "scoring_func is 'sigmoid'"),
        ("deepseek_v2", {"num_experts_per_tok": None}, "num_experts_per_tok"),
    ],
    ids=str,
)
def test_what_is_not_supported_is_named(family, changes, message):
    with pytest.raises(InvalidFormat, match=message):
        read(family, **changes)


def test_another_activation_is_refused():
    with pytest.raises(InvalidFormat, match="hidden_act is 'gelu'"):
        check(read("deepseek_v3", hidden_act="gelu"), "config.json")


# The files of two published models.


def published(name):
    path = CONFIGS / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"{path.name} is not there")
    config = json.loads(path.read_text())
    arch = families.by_hf_model_type(config["model_type"], path).from_hf(config, path)
    check(arch, path)
    return arch


def test_deepseek_v3_has_its_published_sizes():
    arch = published("DeepSeek-V3")
    assert round(families.num_parameters(arch) / 1e9) == 671
    assert 36.5e9 < families.num_parameters(arch, active=True) < 37.6e9
    assert (arch.q_lora_rank, arch.kv_lora_rank, arch.qk_nope_head_dim) == (1536, 512, 128)
    assert (arch.num_experts, arch.num_experts_per_tok, arch.moe_intermediate_size) == (
        256,
        8,
        2048,
    )
    assert (arch.num_expert_groups, arch.topk_groups, arch.routed_scaling_factor) == (8, 4, 2.5)
    assert arch.dense_layers == [0, 1, 2] and arch.rope_scaling["mscale_all_dim"] == 1.0
    assert families.gguf_obstacles(arch) == []


def test_glm_4_7_flash_has_its_published_sizes():
    arch = published("GLM-4.7-Flash")
    assert round(families.num_parameters(arch) / 1e9, 2) == 29.94
    assert arch.latent_size == 576 and cache_bytes_per_token(arch, 2) == 47 * 576 * 2
    assert (arch.rope_theta, arch.rms_norm_eps, arch.head_dim) == (1e6, 1e-5, 256)
    assert (arch.router_scoring, arch.routed_scaling_factor) == ("sigmoid", 1.8)
    assert families.gguf_obstacles(arch) == []
    assert families.ignored_hf_tensor(arch, "model.layers.47.eh_proj.weight")
    assert not families.ignored_hf_tensor(arch, "model.layers.46.input_layernorm.weight")


# GGUF


def fields(arch, **changes):
    """The metadata of a file as its reader hands it over."""
    own = families.by_name(arch.family).to_gguf(arch)
    return {**own, "tie_word_embeddings": arch.tie_word_embeddings, **changes}


def opened(found):
    return families.by_gguf_architecture("deepseek2", "m.gguf", found).from_gguf(found, "m.gguf")


def test_a_file_of_somebody_else_opens_by_its_router():
    for family in FAMILIES:
        arch = read(family, n_group=2, topk_group=1)
        expected = families.as_opened_from_gguf(arch)
        assert opened(fields(arch)).family == expected.family
        assert expected.family == ("deepseek_v2" if family == "deepseek_v2" else "deepseek_v3")


def test_a_file_without_the_router_s_kind_is_what_llama_cpp_takes_it_for():
    assert opened(fields(read("deepseek_v2"), expert_gating_func=None)).family == "deepseek_v2"
    glm = fields(
        read("glm4_moe_lite", num_hidden_layers=47, vocab_size=154880), expert_gating_func=None
    )
    assert opened(glm).router_scoring == "sigmoid"
    v3 = fields(read("deepseek_v3"), expert_gating_func=None, tensors={"blk.3.exp_probs_b.bias"})
    with pytest.raises(InvalidFormat, match="llama.cpp would compute a softmax"):
        opened(v3)


def test_a_further_prediction_layer_is_no_layer():
    arch = read("deepseek_v3")
    found = fields(arch, nextn_predict_layers=1, block_count=6)
    assert opened(found).num_layers == 5
    assert families.ignored_gguf_tensor(arch, "blk.5.nextn.eh_proj.weight")
    assert not families.ignored_gguf_tensor(arch, "blk.4.attn_norm.weight")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention.key_length_mla": None}, "before llama.cpp split attn_kv_b"),
        ({"expert_count": None, "expert_used_count": 0}, "expert_count, deepseek2.expert_used"),
        ({"expert_gating_func": 3}, "expert_gating_func is 3"),
        ({"attention.temperature_scale": 0.1}, "temperature_scale"),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, "linear rotary scaling by 4"),
    ],
    ids=str,
)
def test_metadata_of_no_use_is_named(changes, message):
    with pytest.raises(InvalidFormat, match=message):
        opened(fields(read("deepseek_v3", n_group=2, topk_group=1), **changes))


def test_a_softmax_router_that_no_deepseek_v2_has_is_named():
    with pytest.raises(InvalidFormat, match="expert_weights_norm"):
        opened(fields(read("deepseek_v2"), expert_weights_norm=True))


def test_groups_in_a_file_are_judged_as_llama_cpp_does_it_and_no_config_says_that():
    arch = opened(fields(read("deepseek_v2"), expert_group_count=8, expert_group_used_count=3))
    assert (arch.num_expert_groups, arch.topk_groups, arch.group_score) == (8, 3, "top2")
    check(arch, "m.gguf")
    assert families.gguf_obstacles(arch) == []
    with pytest.raises(GateFailed, match="3 of 8 groups"):
        families.by_name("deepseek_v2").to_hf(arch)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("deepseek_v3", {"attention_bias": True}, "no bias on attn_output"),
        ("deepseek_v2", {"mlp_bias": True}, "no bias on ffn_down"),
        ("deepseek_v3", {"num_hidden_layers": 27}, "q_lora_rank is 24 in a model of 27 layers"),
        (
            "glm4_moe_lite",
            {"mlp_layer_types": ["dense", "sparse", "dense", "sparse", "sparse"]},
            "mlp_layer_types has a dense layer after a sparse one",
        ),
        (
            "deepseek_v2",
            {"topk_method": "group_limited_greedy", "n_group": 8, "topk_group": 3},
            "num_expert_groups is 8, 3 of them",
        ),
    ],
    ids=str,
)
def test_what_llama_cpp_does_not_compute_is_an_obstacle(family, changes, message):
    """Each was found by letting llama.cpp load or compute it (docs/spec/families.md)."""
    assert message in " ".join(map(str, families.gguf_obstacles(read(family, **changes))))


# Recipes


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_kv_b_is_split_for_llama_cpp_and_joined_again_bit_for_bit(dtype):
    arch = read("deepseek_v3")
    spec = next(s for s in families.tensor_specs(arch) if s.name.endswith("kv_b_proj.weight"))
    bits = np.random.default_rng(1).integers(0, 1 << 16, spec.shape).astype("<u2")
    array = bits if dtype == "BF16" else bits.view("<f2") if dtype == "F16" else None
    if array is None:
        array = np.random.default_rng(1).standard_normal(spec.shape).astype("<f4")
    source = from_array(spec.name, array, dtype)
    keep = lambda tensor, _: tensor.dtype  # noqa: E731
    k, v = recipes.write("gguf", [spec], {spec.name: source}, arch, keep)
    assert (k.name, v.name) == spec.gguf.names and k.dtype == v.dtype == DTYPES[dtype]
    assert k.shape == (4, 32, 16) and v.shape == (4, 20, 32)
    heads = array.reshape(4, 36, 32)
    assert k.raw().tobytes() == np.ascontiguousarray(heads[:, :16].swapaxes(1, 2)).tobytes()
    assert v.raw().tobytes() == np.ascontiguousarray(heads[:, 16:]).tobytes()
    back = recipes.read(spec, spec.gguf, [k, v], arch)
    assert back.dtype == source.dtype and back.raw().tobytes() == source.raw().tobytes()


def test_only_the_rotary_rows_of_each_head_are_reordered_and_only_where_pairs_are_halves():
    halves, neighbours = read("deepseek_v3", rope_interleave=False), read("deepseek_v3")

    def spec_of(arch, end) -> TensorSpec:
        return next(s for s in families.tensor_specs(arch) if s.name.endswith(end))

    for end, heads in (("q_b_proj.weight", 4), ("kv_a_proj_with_mqa.weight", 1)):
        assert spec_of(neighbours, end).gguf.recipe == "plain"
        spec = spec_of(halves, end)
        rows = spec.shape[0]
        array = np.arange(rows, dtype="<f4")[:, None].repeat(spec.shape[1], axis=1)
        source = from_array(spec.name, array)
        (there,) = recipes.write("gguf", [spec], {spec.name: source}, halves, lambda t, _: t.dtype)
        found = there.numpy()[:, 0].reshape(heads, -1)
        still = np.arange(rows).reshape(heads, -1)
        assert (found[:, :-8] == still[:, :-8]).all()
        assert (found[0, -8:] - still[0, -8]).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
        back = recipes.read(spec, spec.gguf, [there], halves)
        assert (back.numpy() == array).all()


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_the_latents_projections_are_scaled_for_llama_cpp_s_epsilon_and_back_bit_for_bit(dtype):
    arch = read("glm4_moe_lite")
    specs = {s.name: s for s in families.tensor_specs(arch)}
    name = "model.layers.1.self_attn.kv_a_proj_with_mqa.weight"
    values = np.random.default_rng(2).standard_normal(specs[name].shape).astype("<f4")
    values[0, :3] = (0.0, -1e-7, 6e-8)  # subnormal in half precision
    source = from_array(name, encode(DTYPES[dtype], values).view("<u1"), "U8")
    source = replace(source, dtype=DTYPES[dtype], shape=values.shape)
    given = {name: source}
    there = latent_scale.scaled(given, arch, 2)[name]
    assert there.dtype == source.dtype
    assert (there.float32()[:32] == source.float32()[:32] * 4).all()  # the latent
    assert (there.float32()[32:] == source.float32()[32:]).all()  # the rotary key
    back = latent_scale.scaled({name: there}, arch, -2)[name]
    assert back.raw().tobytes() == source.raw().tobytes()


def test_the_scale_is_for_exact_types_and_epsilons_that_differ():
    def power(family, to, **changes):
        arch = read(family, **changes)
        tensors = {
            s.name: from_array(s.name, np.zeros(s.shape, "<f4"))
            for s in families.tensor_specs(arch)
        }
        return latent_scale.exponent(arch, tensors, lambda tensor, spec: DTYPES[to])

    one = {"n_group": 1, "topk_group": 1, "num_hidden_layers": 1}
    assert power("glm4_moe_lite", "F32", **one) == power("glm4_moe_lite", "BF16", **one) == 2
    assert power("glm4_moe_lite", "F16", **one) == power("glm4_moe_lite", "Q8_0", **one) == 0
    assert power("deepseek_v3", "F32", **one) == 0
    assert power("deepseek_v3", "F32", rms_norm_eps=1e-4, **one) == 3


def test_what_llama_cpp_computes_nearly_is_said():
    assert families.gguf_caveats(read("deepseek_v2")) == []
    (small_scores,) = families.gguf_caveats(read("deepseek_v3"))
    assert "6.1e-05" in small_scores
    assert "to 6.25e-07" in families.gguf_caveats(read("glm4_moe_lite"))[0]


def test_a_scale_of_no_use_is_refused():
    for value in (0.5, True, 99, "2"):
        with pytest.raises(InvalidFormat, match="apr.latent_scale"):
            latent_scale.stated({latent_scale.KEY: value}, "m.gguf")
    arch = read("glm4_moe_lite")
    name = "model.layers.0.self_attn.q_a_proj.weight"
    large = from_array(name, np.full((24, 64), 3e4, "<f2"))
    with pytest.raises(InvalidFormat, match="too large for F16"):
        latent_scale.scaled({name: large}, arch, 2)[name].raw()
