"""Reading and writing configs: what is absent, what is null, what transformers makes of ours."""

import copy
from contextlib import suppress
from pathlib import Path

import pytest

from apr import families
from apr.architecture import from_metadata
from apr.errors import AprError, InvalidFormat
from apr.formats import hf_reader

transformers = pytest.importorskip("transformers")
FAMILIES = [f for f in ("llama", "qwen2", "qwen3", "mistral") if f in families.known()]
SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 32,
    "vocab_size": 300, "max_position_embeddings": 128,
}  # fmt: skip
COMPARED = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings", "rms_norm_eps",
    "rope_parameters", "hidden_act", "attention_bias", "mlp_bias", "tie_word_embeddings",
    "initializer_range", "sliding_window", "layer_types",
)  # fmt: skip


_SIZES_OF_GPT2 = {
    "n_embd": "hidden_size", "n_layer": "num_layers", "n_head": "num_heads",
    "vocab_size": "vocab_size", "n_positions": "max_position_embeddings",
}  # fmt: skip


def read(family, **changes):
    config = {**SIZES, "model_type": family, **changes}
    return families.by_name(family).from_hf(config, "config.json")


def theirs(config):
    # A copy: transformers writes the base into the rotary object that it is given.
    return transformers.AutoConfig.for_model(**copy.deepcopy(config))


def same_for_transformers(family, stated):
    """transformers must read the same from a config and from what we write for it."""
    given = {**SIZES, "model_type": family, **stated}
    first = theirs(given)
    second = theirs(families.by_name(family).to_hf(read(family, **stated)))
    for key in COMPARED:
        if family == "llama" and key == "sliding_window":
            continue  # kept as an attribute, used by nothing
        ours, original = getattr(second, key, None), getattr(first, key, None)
        if key == "rope_parameters":
            original = {k: v for k, v in original.items() if k != "type"}  # rope_type says it too
        if key == "head_dim" and original is None:
            original = given["hidden_size"] // given["num_attention_heads"]
        assert ours == original, key


@pytest.mark.parametrize("family", FAMILIES)
def test_absent_fields_mean_what_they_mean_to_transformers(family):
    same_for_transformers(family, {})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "stated",
    [
        {"num_key_value_heads": 4, "head_dim": 24, "tie_word_embeddings": True},
        {"rope_theta": 1e6},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"rope_scaling": {"type": "default", "rope_theta": 2e4}, "rope_theta": 3e4},
        {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2},
        {"use_sliding_window": False, "sliding_window": 16, "max_window_layers": 2},
    ],
    ids=str,
)
def test_a_config_written_again_says_the_same_to_transformers(family, stated):
    same_for_transformers(family, stated)


@pytest.mark.parametrize("family", FAMILIES)
def test_fields_of_other_families_are_ignored_as_transformers_ignores_them(family):
    unread = {
        "llama": {"sliding_window": 8, "qk_norm": True},
        "qwen2": {"attention_bias": True, "mlp_bias": True, "qkv_bias": False},
        "qwen3": {"mlp_bias": True, "qkv_bias": True, "qk_norm": False},
        "mistral": {"attention_bias": True, "mlp_bias": True},
    }
    assert read(family, **unread[family]) == read(family)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("key", sorted(SIZES))
def test_a_missing_size_is_named(family, key):
    canonical = {
        "num_hidden_layers": "num_layers", "num_attention_heads": "num_heads",
    }.get(key, key)  # fmt: skip
    with pytest.raises(InvalidFormat, match=canonical):
        read(family, **{key: None})


@pytest.mark.parametrize("family", FAMILIES)
def test_other_rotary_kinds_are_refused_by_name(family):
    with pytest.raises(InvalidFormat, match="mrope"):
        read(family, rope_scaling={"type": "mrope", "factor": 4.0})


SCALINGS = [
    {"rope_type": "linear", "factor": 4.0},
    {
        "rope_type": "llama3", "factor": 8, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
]  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.5],
    "original_max_position_embeddings": 32,
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: s["rope_type"])
def test_scaling_is_read_under_old_and_new_names(family, scaling):
    old = {("type" if key == "rope_type" else key): value for key, value in scaling.items()}
    same_for_transformers(family, {"rope_scaling": scaling, "rope_theta": 5e5})
    same_for_transformers(family, {"rope_parameters": {**scaling, "rope_theta": 5e5}})
    found = read(family, rope_scaling=old, rope_theta=5e5)
    assert found == read(family, rope_parameters={**scaling, "rope_theta": 5e5})
    assert found.rope_scaling == scaling and found.rope_theta == 5e5


@pytest.mark.parametrize("scaling", [*SCALINGS, LONGROPE], ids=lambda s: s["rope_type"])
def test_each_missing_or_useless_parameter_of_a_scaling_is_named(scaling):
    for key in scaling.keys() - {"rope_type"}:
        with pytest.raises(InvalidFormat, match=f"lacks {key}"):
            read("llama", rope_scaling={k: v for k, v in scaling.items() if k != key})
        for value in ("8", True, -1.0, float("nan")):
            with pytest.raises(InvalidFormat, match=f"{key} of rotary scaling"):
                read("llama", rope_scaling={**scaling, key: value})


@pytest.mark.parametrize(
    "further",
    [
        {"attention_factor": 0.0}, {"beta_fast": 0}, {"beta_slow": "1"}, {"mscale": -0.1},
        {"truncate": 1}, {"beta_fast": 1, "beta_slow": 2}, {"mscale_all_dim": float("inf")},
    ],
    ids=str,
)  # fmt: skip
def test_an_optional_parameter_is_kept_or_refused_never_filled_in(further):
    yarn = SCALINGS[2]
    assert read("llama", rope_scaling={**yarn, "beta_fast": None}).rope_scaling == yarn
    for sound in ({"truncate": False}, {"mscale": 0}, {"beta_fast": 8, "attention_factor": 2}):
        assert read("llama", rope_scaling={**yarn, **sound}).rope_scaling == {**yarn, **sound}
    with pytest.raises(InvalidFormat, match=f"{next(iter(further))} "):
        read("llama", rope_scaling={**yarn, **further})


def test_lists_of_longrope_have_a_factor_for_each_pair_and_su_is_its_old_name():
    old = {**{k: v for k, v in LONGROPE.items() if k != "rope_type"}, "type": "su"}
    assert read("llama", rope_scaling=old).rope_scaling == LONGROPE
    for factors in ([1.0, 2.0], [], [0.0], ["1"]):
        lists = {"short_factor": factors, "long_factor": factors}
        with pytest.raises(InvalidFormat, match="long_factor .* not a list of numbers above 0"):
            read("llama", rope_scaling={**LONGROPE, **lists})
    with pytest.raises(InvalidFormat, match="fewer factors in one list"):
        read("llama", rope_scaling={**LONGROPE, "long_factor": [1.0, 2.0]})


def test_bands_of_llama3_that_do_not_follow_each_other_are_refused():
    with pytest.raises(InvalidFormat, match="high_freq_factor 1.0"):
        read("llama", rope_scaling={**SCALINGS[1], "high_freq_factor": 1.0})


@pytest.mark.parametrize("family", FAMILIES)
def test_null_kv_heads_are_as_many_as_query_heads(family):
    """transformers 5 refuses the null for Mistral by its type; its code means the same by it."""
    assert read(family, num_key_value_heads=None).num_kv_heads == SIZES["num_attention_heads"]
    if family != "mistral":
        same_for_transformers(family, {"num_key_value_heads": None})


def test_an_absent_window_of_mistral_is_4096_and_a_null_one_is_none():
    assert read("mistral").sliding_window == 4096
    assert read("mistral", sliding_window=None).sliding_window is None
    assert read("mistral", sliding_window=9).sliding_window == 9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope.scaling.type": "linear"}, "'linear' lacks factor"),
        ({"rope.scaling.type": "llama3", "rope.scaling.factor": 8.0}, "which llama.cpp lacks"),
        ({"rope.scaling.type": "longrope", "rope.scaling.factor": 8.0}, "'longrope' lacks short"),
        (
            {"rope.scaling.type": "linear", "rope_scaling": {"rope_type": "dynamic", "factor": 2}},
            "gives rope.scaling.type None, the file has 'linear'",
        ),
        ({"rope.scaling.factor": 4.0, "rope.scaling.type": "yarn"}, "lacks original_max_position"),
    ],
    ids=str,
)
def test_scaling_keys_of_gguf_that_do_not_fit_are_named(changes, message):
    with pytest.raises(InvalidFormat, match=message):
        families.by_name("llama").from_gguf(gguf_fields(**changes), "x.gguf")


def gguf_fields(**changes):
    arch = read("llama", num_key_value_heads=4)
    return {**families.by_name("llama").to_gguf(arch), **changes}


def test_a_gguf_llama_opens_as_a_llama_and_never_as_a_mistral():
    family = families.by_gguf_architecture("llama", "x.gguf")
    assert family.from_gguf(gguf_fields(), "x.gguf").family == "llama"
    idle = family.from_gguf(gguf_fields(**{"attention.sliding_window": 128}), "x.gguf")
    assert idle.sliding_window is None
    with pytest.raises(InvalidFormat, match="sliding window of 16 in a context of 128"):
        family.from_gguf(gguf_fields(**{"attention.sliding_window": 16}), "x.gguf")


def test_an_absent_head_of_qwen3_is_128_wide_and_a_null_one_is_refused():
    assert read("qwen3").head_dim == 128 != SIZES["hidden_size"] // SIZES["num_attention_heads"]
    with pytest.raises(InvalidFormat, match="head_dim is null"):
        read("qwen3", head_dim=None)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.startswith("qwen")])
def test_window_fields_of_qwen_that_do_not_fit_are_named(family):
    with pytest.raises(InvalidFormat, match="no window"):
        read(family, layer_types=["sliding_attention"] * 4)
    with pytest.raises(InvalidFormat, match="3 layers"):
        read(family, layer_types=["full_attention"] * 3)
    with pytest.raises(InvalidFormat, match="max_window_layers"):
        read(family, use_sliding_window=True, max_window_layers=None)


def test_no_value_of_a_config_ends_in_anything_but_an_answer_or_a_refusal():
    """Each entry of each family's config in turn; a number of layers that no model has must be
    refused before anything is made for each of them.
    """
    import yaml

    junk = ("x", [1, "x"], -1, 10**9, 1e300)
    for path in sorted((Path(__file__).parents[1] / "parity").glob("*.yaml")):
        case = yaml.safe_load(path.read_text(encoding="utf-8"))
        family = families.by_name(case["family"])
        config = family.to_hf(family.from_hf(case["base"], path))
        for key in config:
            for value in junk:
                changed = {**config, key: value}
                with suppress(AprError):
                    hf_reader.read_architecture(Path("hf"), changed)
        stated = hf_reader.read_architecture(Path("hf"), config).to_metadata()
        for key in stated:
            with suppress(AprError):
                families.tensor_specs(from_metadata(stated | {key: None}, "m.apr"))
        layers = "n_layer" if path.stem == "gpt2" else "num_hidden_layers"
        with pytest.raises(InvalidFormat, match=rf"\[META-LAYERS\] {layers} is 1000000000"):
            hf_reader.read_architecture(Path("hf"), {**config, layers: 10**9})
        for size in _SIZES_OF_GPT2 if path.stem == "gpt2" else SIZES:
            if size == "intermediate_size":  # four times as wide, or no layer without experts
                continue
            said = {"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"}
            said |= _SIZES_OF_GPT2
            without = {k: v for k, v in config.items() if k not in (size, "n_ctx")}
            with pytest.raises(InvalidFormat, match=said.get(size, size)):
                hf_reader.read_architecture(Path("hf"), without)
    for wrong in (["llama"], 7, {"llama": 1}):
        with pytest.raises(InvalidFormat, match="unknown model_type"):
            hf_reader.read_architecture(Path("hf"), {"model_type": wrong})
