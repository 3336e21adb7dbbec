"""GPT-2's configs and names: the traps of old folders, held against transformers."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from apr import families
from apr.architecture import check
from apr.errors import GateFailed, InvalidFormat
from apr.formats import open_model, write_gguf
from apr.model.mlp import ACTIVATIONS

transformers = pytest.importorskip("transformers")
SIZES = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 32, "vocab_size": 300}
gpt2 = families.by_name("gpt2")


def read(**changes):
    return gpt2.from_hf({**SIZES, **changes}, "config.json")


@pytest.mark.parametrize(
    "stated",
    [
        {},
        {"n_ctx": 64, "n_inner": None, "activation_function": None},
        {"n_inner": 96, "tie_word_embeddings": False, "layer_norm_epsilon": 1e-6},
        {"scale_attn_weights": False, "activation_function": "gelu"},
        {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    ],
    ids=str,
)
def test_a_config_means_what_it_means_to_transformers(stated):
    given = {k: v for k, v in stated.items() if v is not None or k == "n_inner"}
    theirs = transformers.GPT2Config(**{**SIZES, **given})
    ours = read(**stated)
    check(ours, "config.json")
    again = transformers.GPT2Config(**gpt2.to_hf(ours))
    wide = theirs.n_embd
    for key in (*SIZES, "layer_norm_epsilon", "activation_function", "tie_word_embeddings",
                "scale_attn_weights", "initializer_range"):  # fmt: skip
        assert getattr(again, key) == getattr(theirs, key), key
    assert ours.intermediate_size == (theirs.n_inner or 4 * wide) and ours.q_size == wide
    assert ours.rope_theta is None and "rope_type" not in ours.to_metadata()


def test_the_context_may_have_its_oldest_name():
    assert read(n_positions=None, n_ctx=64).max_position_embeddings == 64


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"n_embd": None}, "hidden_size"),
        ({"n_layer": None}, "num_layers"),
        ({"n_positions": None}, "max_position_embeddings"),
        ({"vocab_size": None}, "vocab_size"),
        ({"activation_function": "quick_gelu"}, "quick_gelu"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({"add_cross_attention": True}, "add_cross_attention"),
    ],
)
def test_what_is_missing_or_not_supported_is_named(changes, named):
    with pytest.raises(InvalidFormat, match=named):
        read(**changes)


def test_every_activation_of_the_contract_is_computed():
    from apr import contracts

    rules = contracts.load("metadata")["bounds"]
    assert set(next(r["one_of"] for r in rules if r["id"] == "META-ACT")) == set(ACTIVATIONS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as transformers saves it."""
    path = tmp_path_factory.mktemp("gpt2") / "hf"
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**SIZES)).save_pretrained(path)
    return path


def test_a_folder_of_the_bare_model_with_its_old_buffers_is_the_same_model(folder, tmp_path):
    """Such is openai-community/gpt2: no `transformer.`, and the mask of each layer beside it."""
    tensors = load_file(folder / "model.safetensors")
    old = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    old |= {f"h.{i}.attn.bias": np.tril(np.ones((1, 1, 32, 32), np.float32)) for i in (0, 1)}
    old |= {f"h.{i}.attn.masked_bias": np.array(-1e4, np.float32) for i in (0, 1)}
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).state_dict()
    assert (loaded["transformer.h.1.mlp.c_fc.weight"].numpy() == old["h.1.mlp.c_fc.weight"]).all()
    first, second = open_model(folder), open_model(tmp_path)
    second.check_tensors()
    assert first.tensors.keys() == second.tensors.keys()
    for name, tensor in first.tensors.items():
        assert (tensor.numpy() == second.tensors[name].numpy()).all(), name
    qkv = first.tensors["model.layers.0.self_attn.qkv_proj.weight"].numpy()
    assert (qkv == tensors["transformer.h.0.attn.c_attn.weight"].T).all() and qkv.shape == (192, 64)


def test_what_llama_cpp_computes_otherwise_is_refused(folder):
    for changes, named in (
        ({"activation_function": "gelu"}, "hidden_act is 'gelu'"),
        ({"scale_attn_weights": False}, "query_pre_attn_scalar is 1.0"),
    ):
        assert any(named in str(found) for found in families.gguf_obstacles(read(**changes)))
    assert families.gguf_obstacles(read(activation_function="gelu_pytorch_tanh")) == []
    model = open_model(folder)
    object.__setattr__(model, "architecture", read(activation_function="relu"))
    with pytest.raises(GateFailed, match="computes with 'gelu_new' whatever the file says"):
        write_gguf(folder / "m.gguf", model)


def test_positions_count_as_embedding_and_not_as_matrices():
    arch = read()
    whole = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SIZES))
    assert families.num_parameters(arch) == sum(p.numel() for p in whole.parameters())
    layers = sum(
        p.numel() for n, p in whole.named_parameters() if "wte" not in n and "wpe" not in n
    )
    assert families.num_parameters(arch, embedding=False) == layers
