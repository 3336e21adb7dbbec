"""Rotary scaling through both formats and back, and into llama.cpp."""

import json

import numpy as np
import pytest
from apr_tiny import make_tokenizer, write_tiny

from apr import engine, rope
from apr.errors import AprError, GateFailed, InvalidFormat
from apr.export import export, peers
from apr.formats import open_model
from apr.formats.gguf_model import ROPE_SCALING
from apr.formats.gguf_reader import GgufFile
from apr.formats.gguf_writer import write_container

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
OWN = {
    "llama": {}, "mistral": {"sliding_window": None}, "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True},
}  # fmt: skip
SCALINGS = [LLAMA3, {"rope_type": "linear", "factor": 4.0}, {"rope_type": "linear", "factor": 2.7}]
IN_GGUF = [
    (family, scaling)
    for family in OWN
    for scaling in SCALINGS
    if scaling["rope_type"] not in rope.AS_TENSOR or family in ("llama", "mistral")
]
PRE = make_tokenizer()


def model(tmp_path, family, scaling, **changes):
    values = {**OWN[family], "rope_scaling": scaling, "head_dim": 16, **changes}
    return write_tiny(tmp_path / "m.apr", tokenizer=PRE, family=family, **values)


@pytest.mark.parametrize("family", OWN)
@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_a_folder_gives_the_scaling_back(tmp_path, family, scaling):
    transformers = pytest.importorskip("transformers")
    path = model(tmp_path, family, scaling)
    assert not export(path, tmp_path / "hf", format="safetensors", peers=False).failures
    assert open_model(tmp_path / "hf").architecture == open_model(path).architecture
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["rope_scaling"] == scaling  # what transformers 4 reads
    theirs = transformers.AutoConfig.from_pretrained(tmp_path / "hf")
    assert theirs.rope_parameters == {**scaling, "rope_theta": 10_000.0}


@pytest.mark.parametrize(("family", "scaling"), IN_GGUF, ids=str)
def test_a_gguf_gives_the_scaling_back(tmp_path, family, scaling):
    path = model(tmp_path, family, scaling)
    assert not export(path, tmp_path / "m.gguf", format="gguf", peers=False).failures
    opened = open_model(tmp_path / "m.gguf")
    source = open_model(path)
    assert opened.architecture == source.architecture
    assert opened.tensors.keys() == source.tensors.keys()


@pytest.mark.slow
@pytest.mark.exact
@pytest.mark.parametrize(("family", "scaling"), IN_GGUF, ids=str)
def test_llama_cpp_gives_the_same_logits_beyond_the_original_context(tmp_path, family, scaling):
    pytest.importorskip("llama_cpp")
    path = model(tmp_path, family, scaling)
    gguf = tmp_path / "m.gguf"
    report = export(path, gguf, format="gguf", quantize="f32", threads=1)
    assert not report.failures
    prompt = np.random.default_rng(5).integers(0, 256, 120).tolist()
    answer = peers.ask("llama_cpp", gguf, prompt=prompt, greedy=4, threads=1)
    ours = engine.load(path, device="cpu", dtype="float32", threads=1)
    logits = ours.logits(prompt)
    assert answer.logits is not None and answer.logits.shape == logits.shape
    assert np.abs(logits - answer.logits).max() < 1e-4
    assert list(ours.generate(prompt, 4, stop_ids=()).ids) == answer.greedy
    plain = write_tiny(tmp_path / "p.apr", tokenizer=PRE, family=family, head_dim=16, **OWN[family])
    unscaled = engine.load(plain, device="cpu", dtype="float32", threads=1).logits(prompt)
    assert np.abs(logits - unscaled).max() > 1e-3


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_llama3_scaling_is_refused_where_llama_cpp_reads_no_divisors(tmp_path, family):
    path = model(tmp_path, family, LLAMA3)
    with pytest.raises(GateFailed, match=r"'llama3'.*rope_freqs\.weight"):
        export(path, tmp_path / "m.gguf", format="gguf", peers=False)
    assert not (tmp_path / "m.gguf").exists()


def rewritten(tmp_path, *, fields=None, drop=(), scale=None):
    """A llama3 GGUF with some of its key-values or its divisors changed."""
    path = model(tmp_path, "llama", LLAMA3)
    export(path, tmp_path / "m.gguf", format="gguf", peers=False)
    file = GgufFile.open(tmp_path / "m.gguf")
    kept = {k: file.fields[k] for k in file.fields if k not in drop} | (fields or {})
    tensors = [t for t in file.tensors.values() if t.name not in drop]
    if scale is not None:
        from apr.tensors import from_array

        tensors = [
            from_array(t.name, t.float32() * np.float32(scale)) if t.name == rope.TENSOR else t
            for t in tensors
        ]
    with (tmp_path / "x.gguf").open("wb") as out:
        write_container(out, kept, tensors)
    return tmp_path / "x.gguf"


def test_divisors_are_those_that_llama_cpps_converter_writes(tmp_path):
    file = GgufFile.open(rewritten(tmp_path))
    found = file.tensors[rope.TENSOR]
    assert found.shape == (8,) and found.dtype.name == "F32"
    # By hand for head_dim 16, theta 10,000, 32 tokens: wavelengths 6.3, 19.9, 62.8 and longer.
    assert found.float32()[0] == 1.0 and (found.float32()[2:] == 8.0).all()
    smooth = (32 / (2 * np.pi * 10_000 ** (2 / 16)) - 1) / 3
    assert found.float32()[1] == pytest.approx(1 / ((1 - smooth) / 8 + smooth), rel=1e-6)
    assert open_model(file.path).architecture.rope_scaling == LLAMA3


def test_divisors_without_our_key_are_an_unexpected_tensor(tmp_path):
    opened = open_model(rewritten(tmp_path, drop=(ROPE_SCALING,)))
    with pytest.raises(AprError, match=r"unexpected tensor rope_freqs\.weight \[8\]"):
        opened.check_tensors()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": 1.01}, "does not hold the divisors"),
        ({"drop": (rope.TENSOR,)}, r"tensor rope_freqs\.weight is missing"),
        ({"fields": {ROPE_SCALING: "[]"}}, "no valid JSON object"),
        ({"fields": {ROPE_SCALING: "{"}}, "no valid JSON object"),
        ({"fields": {ROPE_SCALING: '{"rope_type": "dynamic"}'}}, "'dynamic'"),
        ({"fields": {ROPE_SCALING: '{"rope_type": "llama3"}'}}, "lacks factor, low_freq_factor"),
    ],
    ids=str,
)
def test_a_key_and_a_tensor_that_disagree_are_refused(tmp_path, changes, message):
    with pytest.raises(InvalidFormat, match=message):
        open_model(rewritten(tmp_path, **changes))
