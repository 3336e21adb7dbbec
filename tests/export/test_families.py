"""Every family through both formats and back, and into the programs that read them."""

import json

import pytest
import torch
from apr_tiny import make_tokenizer, write_tiny

from apr import engine, families
from apr.checkpoint import write_checkpoint
from apr.errors import GateFailed
from apr.export import export
from apr.export.proof import Proof
from apr.formats import open_model
from apr.qa.contents import export_readiness
from apr.qa.subject import Settings, Subject

MIXED = ("full_attention", "sliding_attention")
OWN = {
    "qwen2": [{"qkv_bias": True}],
    "qwen3": [{"qk_norm": True}],
    "mistral": [{}, {"sliding_window": 128}],
}
SHAPES = [
    {},
    {"tie_word_embeddings": True, "num_kv_heads": 1},
    {"num_heads": 3, "num_kv_heads": 3, "head_dim": 32, "hidden_size": 96},
    {"num_heads": 7, "num_kv_heads": 1, "head_dim": 32, "rope_theta": 1e6, "rms_norm_eps": 1e-6},
]
WINDOWED = {
    "qwen2": {"qkv_bias": True, "sliding_window": 8, "layer_types": MIXED},
    "qwen3": {"qk_norm": True, "sliding_window": 8, "layer_types": MIXED},
    "mistral": {"sliding_window": 8},
}
FAMILIES = [family for family in OWN if family in families.known()]
CASES = [
    (f, {**own, **shape})
    for f in FAMILIES
    for own in OWN[f]
    for shape in SHAPES
    if f != "qwen2" or shape is not SHAPES[-1]  # refused, below
]
PRE = make_tokenizer()


def model(tmp_path, family, changes):
    return write_tiny(tmp_path / "m.apr", tokenizer=PRE, family=family, **changes)


def outcome(report, name):
    return next(c.outcome for c in report.checks if c.id == name)


def same_bytes(first, second):
    assert first.tensors.keys() == second.tensors.keys()
    for name, tensor in first.tensors.items():
        assert (tensor.raw() == second.tensors[name].raw()).all(), name


@pytest.mark.parametrize("family", FAMILIES)
def test_both_formats_give_the_model_back(tmp_path, family):
    """apr to GGUF to a folder, and apr to a folder: the same bytes, the same architecture."""
    path = model(tmp_path, family, OWN[family][-1])
    source = open_model(path)
    gguf, folder = tmp_path / "m.gguf", tmp_path / "hf"
    assert not export(path, gguf, format="gguf", peers=False).failures
    assert not export(path, folder, format="safetensors", peers=False).failures
    again = open_model(folder)
    assert again.architecture == source.architecture
    same_bytes(source, again)
    from_gguf = open_model(gguf)
    assert from_gguf.architecture == source.architecture
    same_bytes(source, from_gguf)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_window_shorter_than_the_context_is_kept_by_folders_and_refused_by_gguf(tmp_path, family):
    path = model(tmp_path, family, WINDOWED[family])
    message = r"sliding_window is 8 .*longer than 8.*max_position_embeddings.*safetensors"
    with pytest.raises(GateFailed, match=message) as caught:
        export(path, tmp_path / "m.gguf", format="gguf", peers=False)
    assert caught.value.exit_code == 5
    assert [p.name for p in tmp_path.iterdir()] == ["m.apr"]
    assert not export(path, tmp_path / "hf", format="safetensors", peers=False).failures
    assert open_model(tmp_path / "hf").architecture == open_model(path).architecture
    finding = export_readiness(Subject.open(path, Settings()), {"missing": 0})
    assert finding.passed and "sliding_window is 8" in finding.message


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("qwen2", {"qkv_bias": True, **SHAPES[-1]}, "7 times head_dim 32 is not hidden_size 64"),
        ("qwen3", {"qk_norm": True, "attention_bias": True}, "no bias on attn_output"),
    ],
)
def test_what_llama_cpp_has_no_room_for_is_refused_before_it_does(
    tmp_path, family, changes, message
):
    path = model(tmp_path, family, changes)
    with pytest.raises(GateFailed, match=message):
        export(path, tmp_path / "m.gguf", format="gguf", peers=False)
    assert not export(path, tmp_path / "hf", format="safetensors", peers=False).failures


@pytest.mark.slow
@pytest.mark.exact
@pytest.mark.parametrize(("family", "changes"), CASES, ids=str)
def test_llama_cpp_gives_the_same_logits_and_greedy_tokens(tmp_path, family, changes):
    pytest.importorskip("llama_cpp")
    path = model(tmp_path, family, changes)
    report = export(path, tmp_path / "m.gguf", format="gguf", quantize="f32", threads=1)
    found = outcome(report, "llama.cpp")
    assert found.verdict == "pass" and found.figures["max_abs"] < 1e-4
    prompt = Proof(open_model(path), tmp_path / "m.gguf", "gguf").prompt
    ours = engine.load(path, device="cpu", dtype="float32", threads=1)
    assert list(ours.generate(prompt, 16, stop_ids=()).ids) == found.figures["greedy"]
    assert len(found.figures["greedy"]) == 16


@pytest.mark.parametrize(("window", "tokens"), [(8, 40), (257, 289), (800, 832), (1024, 32)])
def test_the_prompt_of_the_proof_is_longer_than_the_window(tmp_path, window, tokens):
    path = model(tmp_path, "mistral", {"sliding_window": window, "max_position_embeddings": 1024})
    assert len(Proof(open_model(path), tmp_path / "hf", "hf").prompt) == tokens


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_loads_the_folder_with_its_window(tmp_path, family):
    transformers = pytest.importorskip("transformers")
    path = model(tmp_path, family, WINDOWED[family])
    report = export(path, tmp_path / "hf", format="safetensors", threads=1)
    found = outcome(report, "transformers")
    assert found.verdict == "pass" and found.figures["max_abs"] < 2e-5
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    ours = open_model(path)
    for name, parameter in theirs.state_dict().items():
        assert (parameter.numpy() == ours.tensors[name].float32()).all(), name
    assert theirs.config.sliding_window == 8
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["architectures"] == [type(theirs).__name__]


@pytest.mark.parametrize("family", ["llama", *FAMILIES])
def test_a_folder_of_transformers_comes_back_with_its_tensors_and_config(tmp_path, family):
    """As transformers saves it, through an .apr file, and written again by us."""
    transformers = pytest.importorskip("transformers")
    window = {
        "mistral": {"sliding_window": 8},
        "qwen2": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
        "qwen3": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    }.get(family, {})
    config = transformers.AutoConfig.for_model(
        family, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=24, intermediate_size=96, vocab_size=416, max_position_embeddings=64, **window,
    )  # fmt: skip
    torch.manual_seed(5)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "theirs")
    PRE.resized(416).write_directory(tmp_path / "theirs")
    source = open_model(tmp_path / "theirs")
    write_checkpoint(
        tmp_path / "m.apr",
        architecture=source.architecture,
        tokenizer=source.require_tokenizer(),
        tensors=source.tensors.values(),
    )
    export(tmp_path / "m.apr", tmp_path / "ours", format="safetensors", peers=False)
    same_bytes(source, open_model(tmp_path / "ours"))
    first, second = (
        transformers.AutoConfig.from_pretrained(tmp_path / name).to_dict()
        for name in ("theirs", "ours")
    )
    # The path differs, and the special ids are those of the tokenizer beside it.
    own = {"_name_or_path", "bos_token_id", "eos_token_id", "pad_token_id"}
    first = {k: v for k, v in first.items() if k not in own}
    assert {k: second.get(k) for k in first} == first


@pytest.mark.slow
@pytest.mark.exact
@pytest.mark.parametrize("family", FAMILIES)
def test_without_the_refusal_llama_cpp_would_compute_full_attention(tmp_path, family, monkeypatch):
    """Why there is one: our own key gives the model back, but llama.cpp computes another."""
    pytest.importorskip("llama_cpp")
    monkeypatch.setattr(families, "gguf_obstacles", lambda architecture: [])
    path = model(tmp_path, family, WINDOWED[family])
    with pytest.raises(GateFailed) as caught:
        export(path, tmp_path / "m.gguf", format="gguf", threads=1)
    assert "[llama.cpp]" in caught.value.what and "[logits]" not in caught.value.what


@pytest.mark.slow
def test_transformers_loads_a_family_that_has_no_fused_attention_there(tmp_path):
    """Gemma 2: asked for it, transformers would refuse the folder."""
    pytest.importorskip("transformers")
    gemma2 = {
        "block_norms": "both", "norm_plus_one": True, "scale_embedding": True,
        "hidden_act": "gelu_pytorch_tanh", "query_pre_attn_scalar": 16.0, "sliding_window": 8,
        "layer_types": MIXED[::-1], "tie_word_embeddings": True, "attn_logit_softcap": 50.0,
    }  # fmt: skip
    path = model(tmp_path, "gemma2", gemma2)
    report = export(path, tmp_path / "hf", format="safetensors", threads=1)
    found = outcome(report, "transformers")
    assert found.verdict == "pass" and found.figures["max_abs"] < 2e-5
