"""OLMoE's configs: absent fields, and the clipping that is not computed."""

import pytest

from apr import families
from apr.architecture import check
from apr.errors import InvalidFormat

transformers = pytest.importorskip("transformers")
SIZES = {
    "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "vocab_size": 300, "max_position_embeddings": 128, "num_experts": 4, "num_experts_per_tok": 2,
}  # fmt: skip
olmoe = families.by_name("olmoe")


@pytest.mark.parametrize(
    "stated",
    [{}, {"num_key_value_heads": 1, "norm_topk_prob": True, "attention_bias": True},
     {"rope_theta": 5e5, "tie_word_embeddings": True, "clip_qkv": None}],
    ids=str,
)  # fmt: skip
def test_a_config_means_what_it_means_to_transformers(stated):
    theirs = transformers.OlmoeConfig(**{**SIZES, **stated})
    ours = olmoe.from_hf({**SIZES, **stated}, "config.json")
    check(ours, "config.json")
    again = transformers.OlmoeConfig(**olmoe.to_hf(ours))
    for key in (*SIZES, "num_key_value_heads", "rms_norm_eps", "norm_topk_prob", "attention_bias",
                "tie_word_embeddings", "rope_parameters", "router_aux_loss_coef"):  # fmt: skip
        assert getattr(again, key) == getattr(theirs, key), key


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"clip_qkv": 8.0}, "clip_qkv is 8.0"), ({"num_experts": None}, "num_experts")],
)
def test_what_is_missing_or_not_supported_is_named(changes, named):
    with pytest.raises(InvalidFormat, match=named):
        olmoe.from_hf({**SIZES, **changes}, "config.json")
