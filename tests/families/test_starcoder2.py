"""StarCoder2's configs: names of its own for the norms' epsilon and the biases."""

import pytest

from apr import families
from apr.architecture import check

transformers = pytest.importorskip("transformers")
SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "vocab_size": 300, "max_position_embeddings": 128,
}  # fmt: skip
starcoder2 = families.by_name("starcoder2")


@pytest.mark.parametrize(
    "stated",
    [
        {},
        {"use_bias": False, "norm_epsilon": 1e-6, "sliding_window": 9},
        {"tie_word_embeddings": False, "num_key_value_heads": 4, "rope_theta": 1e5},
        {"hidden_act": "gelu_new", "rms_norm_eps": 0.5, "attention_bias": False},
    ],
    ids=str,
)
def test_a_config_means_what_it_means_to_transformers(stated):
    theirs = transformers.Starcoder2Config(**{**SIZES, **stated})
    ours = starcoder2.from_hf({**SIZES, **stated}, "config.json")
    check(ours, "config.json")
    again = transformers.Starcoder2Config(**starcoder2.to_hf(ours))
    for key in (*SIZES, "num_key_value_heads", "hidden_act", "norm_epsilon", "use_bias",
                "tie_word_embeddings", "rope_parameters", "sliding_window",
                "initializer_range"):  # fmt: skip
        assert getattr(again, key) == getattr(theirs, key), key
