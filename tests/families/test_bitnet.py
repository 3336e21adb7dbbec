"""BitNet: its own defaults, and quantized folders, which are not the same mathematics."""

import json

import pytest

from apr import families
from apr.architecture import check
from apr.errors import InvalidFormat

transformers = pytest.importorskip("transformers")
SIZES = {
    "hidden_size": 640, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 20,
    "vocab_size": 300, "max_position_embeddings": 128,
}  # fmt: skip
bitnet = families.by_name("bitnet")


def read(**changes):
    return bitnet.from_hf({**SIZES, **changes}, "config.json")


@pytest.mark.parametrize(
    "stated",
    [
        {},
        {"rope_theta": None, "rope_parameters": None},
        {"num_key_value_heads": None},
        {"num_key_value_heads": 4, "hidden_act": "silu", "attention_bias": True},
        {"rope_theta": 10_000.0, "tie_word_embeddings": True, "rms_norm_eps": 1e-6},
    ],
    ids=str,
)
def test_a_config_means_what_it_means_to_transformers(stated):
    given = {k: v for k, v in stated.items() if k != "rope_theta" or v is not None}
    theirs = transformers.BitNetConfig(**{**SIZES, **given})
    ours = read(**stated)
    check(ours, "config.json")
    again = transformers.BitNetConfig(**bitnet.to_hf(ours))
    for key in (*SIZES, "num_key_value_heads", "hidden_act", "rms_norm_eps", "attention_bias",
                "tie_word_embeddings", "rope_parameters", "initializer_range"):  # fmt: skip
        assert getattr(again, key) == getattr(theirs, key), key


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        (
            {"linear_class": "autobitlinear", "quantization_mode": "offline"},
            "packed four to a byte",
        ),
        ({"linear_class": "autobitlinear", "quantization_mode": "online"}, "three values and the"),
        ({}, "'bitlinear'"),
    ],
)
def test_a_quantized_folder_is_refused_with_what_would_differ(stated, said):
    with pytest.raises(InvalidFormat, match=f"{said}.*8 bits: plain matrices would give other"):
        read(quantization_config={"quant_method": "bitnet", **stated})


def test_what_llama_cpp_has_otherwise_is_refused_by_name():
    obstacles = families.gguf_obstacles(read(attention_bias=True))
    assert [(found.name, found.computed) for found in obstacles] == [
        ("hidden_act", {"hidden_act": "silu"}),
        ("tie_word_embeddings", None),
        ("attention_bias", None),
    ]
    assert families.gguf_obstacles(read(hidden_act="silu", tie_word_embeddings=True)) == []


def test_the_default_model_has_as_many_parameters_as_transformers_counts(request):
    path = request.config.rootpath / ".." / "shared/data/configs/transformers-default-bitnet.json"
    if not path.is_file():
        pytest.skip("no configs of published models beside the repository")
    config = json.loads(path.read_text())
    import torch

    with torch.device("meta"):
        theirs = transformers.BitNetForCausalLM(transformers.BitNetConfig(**config))
    arch = bitnet.from_hf(config, path)
    assert families.num_parameters(arch) == sum(p.numel() for p in theirs.parameters())
