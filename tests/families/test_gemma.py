"""Gemma 2 and 3: what a config leaves out, what is refused, and what a GGUF must say for them."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest

from apr import families
from apr.dtypes import DTYPES
from apr.errors import InvalidFormat
from apr.families import Place, TensorSpec
from apr.formats import recipes
from apr.tensors import from_array

transformers = pytest.importorskip("transformers")
FAMILIES = ["gemma2", "gemma3_text"]
SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 7, "num_attention_heads": 8,
    "vocab_size": 300, "max_position_embeddings": 128,
}  # fmt: skip
COMPARED = (
    "num_key_value_heads", "head_dim", "rms_norm_eps", "rope_parameters", "hidden_activation",
    "attention_bias", "tie_word_embeddings", "initializer_range", "sliding_window", "layer_types",
    "query_pre_attn_scalar", "final_logit_softcapping",
)  # fmt: skip


@pytest.fixture(scope="module")
def shared():
    folder = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no shared data beside the repository")
    return folder


def read(family, **changes):
    config = {**SIZES, "model_type": family, **changes}
    return families.by_name(family).from_hf(config, "config.json")


def theirs(config):
    return transformers.AutoConfig.for_model(**copy.deepcopy(config))


STATED = [
    {},
    {"num_key_value_heads": 2, "head_dim": 24, "tie_word_embeddings": False},
    {"query_pre_attn_scalar": 144, "sliding_window": 16, "rms_norm_eps": 1e-5},
    {"layer_types": ["full_attention"] * 6 + ["sliding_attention"]},
    {"final_logit_softcapping": None, "attn_logit_softcapping": None},
    {"hidden_act": "silu"},  # a field of other families, which a Gemma does not read
    {"sliding_window_pattern": 3},
    {"_sliding_window_pattern": 3},
    {"rope_theta": 5e5, "rope_local_base_freq": 2e4},
    {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_theta": 1e6},
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stated", STATED, ids=str)
def test_a_config_means_what_it_means_to_transformers(family, stated):
    given = {**SIZES, "model_type": family, **stated}
    first = theirs(given)
    arch = read(family, **stated)
    second = theirs(families.by_name(family).to_hf(arch))
    for key in COMPARED:
        assert getattr(second, key) == getattr(first, key), key
    assert arch.head_dim == first.head_dim and arch.num_kv_heads == first.num_key_value_heads
    assert [arch.window(i) is not None for i in range(7)] == [
        kind == "sliding_attention" for kind in first.layer_types
    ]
    assert arch.final_logit_softcap == first.final_logit_softcapping
    assert arch.tie_word_embeddings == first.tie_word_embeddings
    if family == "gemma2":  # Gemma 3's code has the field and does not read it
        assert arch.attn_logit_softcap == first.attn_logit_softcapping


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"hidden_activation": "relu"}, "hidden_activation 'relu'"),
        ({"hidden_activation": None}, "hidden_activation is null"),
        ({"head_dim": None}, "head_dim is null"),
        ({"query_pre_attn_scalar": None}, "query_pre_attn_scalar is null"),
        ({"query_pre_attn_scalar": 16.5}, "16.5, not a whole number"),
        ({"sliding_window": None}, "sliding_window is null, but layers slide"),
        ({"layer_types": ["full_attention"] * 3}, "names 3 layers"),
        ({"layer_types": ["chunked_attention"] * 7}, "chunked_attention"),
        ({"hidden_size": None}, "hidden_size"),
    ],
    ids=str,
)
def test_what_nobody_could_compute_alike_is_refused_by_name(family, changes, message):
    with pytest.raises(InvalidFormat, match=message):
        read(family, **changes)


@pytest.mark.parametrize("family", FAMILIES)
def test_absent_keys_of_a_gguf_are_what_llama_cpp_takes(family):
    """As its own converter writes a file: no pattern, no scalar, no base of the sliding layers."""
    module = families.by_name(family)
    keys = module.to_gguf(read(family, head_dim=16, query_pre_attn_scalar=16))
    for key in ("attention.sliding_window_pattern", "rope.scaling.attn_factor"):
        assert key not in keys
    for key in ("attn_logit_softcapping", "final_logit_softcapping", "rope.freq_base_swa"):
        keys.pop(key, None)
    keys["tie_word_embeddings"] = True  # as the reader finds it in the tensors
    assert module.from_gguf(keys, "x.gguf") == read(family, head_dim=16, query_pre_attn_scalar=16)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scalar", [1, 21, 144, 168, 224, 4096, 65535])
def test_a_scalar_comes_back_from_the_factor_that_gguf_has_for_it(family, scalar):
    module, arch = families.by_name(family), read(family, query_pre_attn_scalar=scalar)
    keys = module.to_gguf(arch)
    factor = np.float32(keys["rope.scaling.attn_factor"])
    keys["rope.scaling.attn_factor"] = float(str(factor))
    assert module.from_gguf(keys, "x.gguf").query_pre_attn_scalar == scalar


@pytest.mark.parametrize("family", FAMILIES)
def test_flags_of_another_number_of_layers_are_refused(family):
    module = families.by_name(family)
    keys = {**module.to_gguf(read(family)), "attention.sliding_window_pattern": [True] * 3}
    with pytest.raises(InvalidFormat, match="3 flags for 7 layers"):
        module.from_gguf(keys, "x.gguf")


def norm_spec():
    place = Place(("blk.0.attn_norm.weight",), "plus_one")
    return TensorSpec("n", (6,), "norm", Place(("n",)), place)


def test_a_norm_comes_back_exactly_where_its_sum_with_one_is_rounded():
    weight = np.array([1e-9, -0.0, 0.3, -1.0, 3e-8, 123.456], np.float32)
    spec = norm_spec()
    tensors = {"n": from_array("n", weight)}
    (stored,) = recipes.write("gguf", [spec], tensors, None, lambda t, s: DTYPES["F32"])
    assert (stored.float32() == weight + np.float32(1)).all()
    lost = recipes.lost_by_adding([spec], tensors)
    again = recipes.canonical("gguf", [spec], {stored.name: stored}, None, lost.get)["n"]
    assert (again.raw() == tensors["n"].raw()).all()
    plain = recipes.canonical("gguf", [spec], {stored.name: stored}, None)["n"]
    assert (plain.float32() == stored.float32() - np.float32(1)).all()
    assert (plain.raw() != again.raw()).any()


def test_stated_values_that_no_longer_fit_the_tensor_are_not_taken():
    """Somebody changed the weights in the file, and left our key as it was."""
    spec = norm_spec()
    stored = from_array("blk.0.attn_norm.weight", np.full(6, 2.5, np.float32))
    for stated in ([1e-9] * 6, [1.5] * 5):
        found = recipes.canonical(
            "gguf", [spec], {stored.name: stored}, None, lambda n, v=stated: v
        )
        assert (found["n"].float32() == 1.5).all()


def test_norms_that_lose_nothing_are_not_stated():
    tensors = {"n": from_array("n", np.array([0.5, 0, -0.25, 1, 2, 3], np.float32))}
    assert recipes.lost_by_adding([norm_spec()], tensors) == {}


def test_the_bases_of_both_kinds_of_layer_are_read_in_every_writing():
    new = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
    }
    old = {
        "rope_theta": 5e5,
        "rope_local_base_freq": 2e4,
        "rope_scaling": {"type": "linear", "factor": 8.0},
    }
    arch = read("gemma3_text", rope_parameters=new)
    assert (arch.rope_theta, arch.rope_local_theta) == (5e5, 2e4)
    assert arch.rope_scaling == {"rope_type": "linear", "factor": 8.0}
    assert read("gemma3_text", **old) == arch
    assert read("gemma3_text").rope_theta == 1e6 and read("gemma3_text").rope_local_theta == 1e4
    given = {**SIZES, "model_type": "gemma3_text", "rope_parameters": new}
    written = families.by_name("gemma3_text").to_hf(arch)
    assert theirs(written).rope_parameters == theirs(given).rope_parameters


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "default", "rope_theta": 5e5}, "one object for each kind of layer"),
        ({"sliding_attention": {"rope_type": "linear", "factor": 2.0}}, "'linear' of sliding"),
    ],
    ids=str,
)
def test_rotary_objects_that_gemma3_has_no_meaning_for_are_refused(rope, message):
    with pytest.raises(InvalidFormat, match=message):
        read("gemma3_text", rope_parameters=rope)


def test_a_pattern_of_no_layers_is_refused():
    with pytest.raises(InvalidFormat, match="sliding_window_pattern is 0"):
        read("gemma3_text", sliding_window_pattern=0)


def test_the_default_config_has_as_many_parameters_as_transformers_builds(shared):
    import torch

    config = json.loads((shared / "configs" / "transformers-default-gemma3_text.json").read_text())
    arch = families.by_name("gemma3_text").from_hf(config, "config.json")
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(theirs(config))
    assert families.num_parameters(arch) == sum(p.numel() for p in model.parameters())


def test_the_model_of_text_and_images_is_refused_with_what_is_supported():
    with pytest.raises(InvalidFormat, match="gemma3_text"):
        families.by_hf_model_type("gemma3", "config.json")
