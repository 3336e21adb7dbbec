"""Phi-3 and Phi-4: fields that stand in two places, rotary kinds by old names, GGUF files."""

import copy
import json
from pathlib import Path

import pytest

from apr import families
from apr.errors import InvalidFormat

transformers = pytest.importorskip("transformers")
SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "vocab_size": 300, "max_position_embeddings": 8192, "model_type": "phi3", "pad_token_id": 0,
}  # fmt: skip
FACTORS = {"short_factor": [1.0, 1.5] * 3, "long_factor": [1.0, 4.0] * 3}
COMPARED = (
    "num_key_value_heads", "rms_norm_eps", "hidden_act", "tie_word_embeddings", "initializer_range",
    "sliding_window", "original_max_position_embeddings",
)  # fmt: skip
family = families.by_name("phi3")


def read(**changes):
    return family.from_hf({**SIZES, **changes}, "config.json")


def theirs(config):
    return transformers.AutoConfig.for_model(**copy.deepcopy(config))


def rotary(config):
    return {k: v for k, v in config.rope_parameters.items() if k != "type"}


@pytest.mark.parametrize(
    "stated",
    [
        {},
        {"num_key_value_heads": 2, "rms_norm_eps": 1e-6, "tie_word_embeddings": True},
        {"num_key_value_heads": None, "sliding_window": 2047},
        {"partial_rotary_factor": 0.75, "rope_theta": 5e5},
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        {"rope_scaling": {"type": "yarn", **FACTORS}, "partial_rotary_factor": 0.75},
        {"rope_scaling": {"type": "longrope", **FACTORS}, "partial_rotary_factor": 0.75,
         "original_max_position_embeddings": 1024},
        {"rope_parameters": {"rope_type": "longrope", "partial_rotary_factor": 0.75,
                             "original_max_position_embeddings": 64, **FACTORS}},
    ],
    ids=str,
)  # fmt: skip
def test_a_config_means_what_it_means_to_transformers(stated):
    first, arch = theirs({**SIZES, **stated}), read(**stated)
    second = theirs(family.to_hf(arch))
    for key in COMPARED:
        assert getattr(second, key) == getattr(first, key), key
    assert rotary(first) == rotary(second)
    assert arch.partial_rotary_factor == first.rope_parameters["partial_rotary_factor"]
    assert arch.num_kv_heads == first.num_key_value_heads
    if arch.rope_scaling is not None:
        # The field beside the object goes first, and its default too.
        stated_original = stated.get("original_max_position_embeddings", 4096)
        assert arch.rope_scaling["original_max_position_embeddings"] == stated_original


def test_the_first_name_of_longrope_is_understood():
    """transformers 5 reads it only where the object repeats the original context."""
    share = {"partial_rotary_factor": 0.75, "original_max_position_embeddings": 1024}
    old, new = ({"type": kind, **FACTORS} for kind in ("su", "longrope"))
    assert read(rope_scaling=old, **share) == read(rope_scaling=new, **share)


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "linear", "factor": 2.0}, "'linear' is not supported for phi3"),
        ({"rope_type": "longrope", "short_factor": [1.0] * 8}, "lacks long_factor"),
        ({"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0] * 4}, "8 of"),
    ],
    ids=str,
)
def test_rotary_objects_that_transformers_refuses_are_refused_by_name(rope, message):
    with pytest.raises(InvalidFormat, match=message):
        read(rope_parameters=rope)


def test_a_gguf_of_llama_cpps_converter_opens_with_its_window_and_the_width_of_its_heads():
    """It states no key_length, the part of each head that turns, and the config's window."""
    arch = read(partial_rotary_factor=0.75, sliding_window=2047)
    keys = family.to_gguf(arch)
    for key in ("attention.key_length", "attention.value_length"):
        del keys[key]
    assert keys["rope.dimension_count"] == 12
    assert family.from_gguf({**keys, "attention.sliding_window": 2047}, "x.gguf") == arch
    for absent in ({}, {"attention.sliding_window": 0}):
        assert family.from_gguf({**keys, **absent}, "x.gguf").sliding_window is None


def test_the_default_config_has_as_many_parameters_as_transformers_builds():
    import torch

    folder = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "configs"
    if not folder.is_dir():
        pytest.skip("no shared data beside the repository")
    config = json.loads((folder / "transformers-default-phi3.json").read_text())
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(theirs(config))
    count = sum(p.numel() for p in model.parameters())
    assert families.num_parameters(family.from_hf(config, "config.json")) == count


def test_phi_4_has_14_7_billion_parameters():
    """The shape of the facts page; the model's card says 14B."""
    arch = read(
        hidden_size=5120, intermediate_size=17920, num_hidden_layers=40, num_attention_heads=40,
        num_key_value_heads=10, vocab_size=100352,
    )  # fmt: skip
    assert families.num_parameters(arch) == 14_659_507_200
    assert arch.head_dim == 128 and arch.qkv_size == 7680
