"""gpt-oss as it is released: experts as MXFP4 blocks, kept as such or decoded."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from apr import engine
from apr.errors import InvalidFormat
from apr.formats import open_model, write_gguf, write_hf
from apr.formats.gguf_reader import GgufFile
from apr.importing import import_model
from apr.importing.problems import open_source
from apr.tokenizer import train

transformers = pytest.importorskip("transformers")
IDS = list(range(3, 35))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny gpt-oss with random blocks, as transformers names and packs them."""
    path = tmp_path_factory.mktemp("mxfp4") / "source"
    config = transformers.AutoConfig.for_model(
        "gpt_oss", hidden_size=64, num_hidden_layers=2, num_attention_heads=4, head_dim=16,
        num_key_value_heads=2, intermediate_size=96, vocab_size=300, num_local_experts=3,
        num_experts_per_tok=2, sliding_window=9, max_position_embeddings=64, pad_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )  # fmt: skip
    torch.manual_seed(4)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(path)
    train(iter(["blocks of thirty two numbers and one exponent " * 4]), 280, "qwen2").resized(
        300
    ).write_directory(path)
    out = {}
    for name, tensor in load_file(path / "model.safetensors").items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            out[name] = tensor.to(torch.bfloat16)
            continue
        experts, width, rows = tensor.shape
        out[f"{name}_blocks"] = torch.randint(
            0, 256, (experts, rows, width // 32, 16), dtype=torch.uint8
        )
        out[f"{name}_scales"] = torch.randint(
            118, 124, (experts, rows, width // 32), dtype=torch.uint8
        )
    save_file(out, path / "model.safetensors", metadata={"format": "pt"})
    say_method(path, "mxfp4")
    return path


def say_method(path, method):
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method}
    (path / "config.json").write_text(json.dumps(config))


def decoded(path, **further):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        path, attn_implementation="eager", dtype=torch.float32, **further
    )
    with torch.no_grad():
        return theirs.eval()(torch.tensor([IDS])).logits[0].numpy()


@pytest.mark.filterwarnings("ignore")
def test_logits_are_those_of_transformers_after_it_has_decoded_the_blocks(folder, tmp_path):
    expected = decoded(folder, quantization_config=transformers.Mxfp4Config(dequantize=True))
    import_model(folder, tmp_path / "m.apr", prove=False, peers=False)
    model = open_model(tmp_path / "m.apr")
    experts = {t.dtype.name for n, t in model.tensors.items() if n.endswith("_proj.weight")}
    assert experts == {"MXFP4", "BF16"}
    logits = engine.load(model, device="cpu", dtype="float32").logits(IDS)
    assert np.abs(logits - expected).max() < 2e-5
    # Decoded on the way: the numbers of the blocks are bf16 numbers too, so nothing changes.
    write_hf(tmp_path / "hf", model, quantize="bf16")
    assert "quantization_config" not in json.loads((tmp_path / "hf" / "config.json").read_text())
    assert np.array_equal(decoded(tmp_path / "hf"), expected)


def test_blocks_stay_blocks_in_a_gguf_and_come_back_from_it(folder, tmp_path):
    source = open_source(folder)
    write_gguf(tmp_path / "m.gguf", source)
    stored = GgufFile.open(tmp_path / "m.gguf").tensors["blk.0.ffn_gate_exps.weight"]
    assert stored.dtype.name == "MXFP4" and stored.shape == (3, 96, 64)
    again = open_model(tmp_path / "m.gguf")
    assert again.architecture == source.architecture
    for name, tensor in source.tensors.items():
        if tensor.dtype.name == "MXFP4":
            assert np.array_equal(again.tensors[name].raw(), tensor.raw()), name
        assert np.array_equal(again.tensors[name].float32(), tensor.float32()), name


def test_decoded_when_asked(folder, tmp_path):
    import_model(folder, tmp_path / "m.apr", quantize="f32", prove=False, peers=False)
    opened, source = open_model(tmp_path / "m.apr"), open_source(folder)
    for name, tensor in opened.tensors.items():
        assert tensor.dtype.name == "F32"
        assert np.array_equal(tensor.numpy(), source.tensors[name].float32())


def test_another_quantization_is_refused_by_its_name(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "other")
    say_method(tmp_path / "other", "awq")
    with pytest.raises(InvalidFormat, match=r"quantization_config \(awq\)"):
        open_source(tmp_path / "other")
