"""OLMo 2: what a config leaves out, and the files of OLMo 3 that bear its name."""

import copy

import pytest

from apr import families
from apr.errors import InvalidFormat

transformers = pytest.importorskip("transformers")
SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 8,
    "vocab_size": 300, "max_position_embeddings": 128, "model_type": "olmo2",
}  # fmt: skip
COMPARED = (
    "num_key_value_heads", "rms_norm_eps", "rope_parameters", "hidden_act", "attention_bias",
    "tie_word_embeddings", "initializer_range",
)  # fmt: skip
family = families.by_name("olmo2")


def theirs(config):
    return transformers.AutoConfig.for_model(**copy.deepcopy(config))


@pytest.mark.parametrize(
    "stated",
    [
        {},
        {"num_key_value_heads": 2, "rms_norm_eps": 1e-6, "tie_word_embeddings": True},
        {"num_key_value_heads": None, "attention_bias": True, "rope_theta": 5e5},
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        {"sliding_window": 8, "layer_types": ["sliding_attention"] * 2},  # OLMo 3's, not read
    ],
    ids=str,
)
def test_a_config_means_what_it_means_to_transformers(stated):
    first, arch = theirs({**SIZES, **stated}), family.from_hf({**SIZES, **stated}, "config.json")
    second = theirs(family.to_hf(arch))
    for key in COMPARED:
        assert getattr(second, key) == getattr(first, key), key
    assert arch.head_dim == 8 and arch.sliding_window is None
    assert arch.q_norm_size == 64 and arch.k_norm_size == 8 * arch.num_kv_heads


def test_an_olmo3_is_refused_in_both_worlds():
    with pytest.raises(InvalidFormat, match="unknown model_type 'olmo3'"):
        families.by_hf_model_type("olmo3", "config.json")
    keys = family.to_gguf(family.from_hf(SIZES, "config.json"))
    with pytest.raises(InvalidFormat, match="an OLMo 3"):
        family.from_gguf({**keys, "attention.sliding_window": 4096}, "x.gguf")
