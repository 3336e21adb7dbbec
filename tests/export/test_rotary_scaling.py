"""Rotary scaling through both formats and back, and into llama.cpp."""

import json
from dataclasses import replace

import numpy as np
import pytest
from apr_tiny import make_architecture, make_tokenizer, write_tiny

from apr import engine, families, rope
from apr.errors import GateFailed, InvalidFormat
from apr.export import export, peers
from apr.families import rotary_gguf
from apr.formats import open_model
from apr.formats.gguf_container import write_container
from apr.formats.gguf_model import ROPE_SCALING
from apr.formats.gguf_reader import GgufFile
from apr.formats.gguf_writer import write_gguf

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
OWN = {
    "llama": {}, "mistral": {"sliding_window": None}, "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True},
}  # fmt: skip


def yarn(**further):
    return {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, **further}


def longrope(original):
    return {
        "rope_type": "longrope", "original_max_position_embeddings": original,
        "short_factor": [1.0 + 0.07 * i for i in range(8)],
        "long_factor": [1.0 + 0.9 * i for i in range(8)],
    }  # fmt: skip


LINEAR = {"rope_type": "linear", "factor": 2.7}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0}
RAMP = yarn(factor=3.3, beta_fast=4, beta_slow=0.5, truncate=False)
SCALINGS = [
    LLAMA3, LINEAR, DYNAMIC, yarn(), yarn(attention_factor=1.3), RAMP,
    yarn(mscale=0.9, mscale_all_dim=0.4), longrope(32), {**longrope(32), "factor": 7.5},
]  # fmt: skip
IN_GGUF = [
    (family, scaling)
    for family in ("llama", "qwen3")
    for scaling in SCALINGS
    if rotary_gguf.gguf_form(make_architecture(family=family, rope_scaling=scaling, head_dim=16))
]
PRE = make_tokenizer()


def named(value):
    return value.get("rope_type") if isinstance(value, dict) else str(value)


def model(tmp_path, family, scaling, **changes):
    values = {**OWN[family], "rope_scaling": scaling, "head_dim": 16, **changes}
    tmp_path.mkdir(exist_ok=True)
    return write_tiny(tmp_path / "m.apr", tokenizer=PRE, family=family, **values)


@pytest.mark.parametrize(
    ("family", "scaling"),
    [*(("llama", scaling) for scaling in SCALINGS), ("mistral", yarn()), ("qwen2", LLAMA3)],
    ids=named,
)
def test_a_config_gives_the_scaling_back(family, scaling):
    transformers = pytest.importorskip("transformers")
    architecture = make_architecture(family=family, rope_scaling=scaling, head_dim=16)
    module = families.by_name(family)
    config = json.loads(json.dumps(module.to_hf(architecture)))
    assert module.from_hf(config, "config.json").rope_scaling == scaling
    assert config["rope_scaling"] == scaling  # what transformers 4 reads
    theirs = transformers.AutoConfig.for_model(**config)
    assert theirs.rope_parameters == {**scaling, "rope_theta": 10_000.0}


@pytest.mark.parametrize(("family", "scaling"), IN_GGUF, ids=named)
def test_a_gguf_gives_the_scaling_back(tmp_path, family, scaling):
    path = model(tmp_path, family, scaling)
    source = open_model(path)
    write_gguf(tmp_path / "m.gguf", source)
    opened = open_model(tmp_path / "m.gguf")
    assert opened.architecture == source.architecture
    assert opened.tensors.keys() == source.tensors.keys()


@pytest.mark.slow
@pytest.mark.exact
@pytest.mark.parametrize(
    ("family", "scaling", "length"),
    [
        *((family, scaling, 120) for family, scaling in IN_GGUF),
        ("mistral", LLAMA3, 120),
        ("qwen2", LINEAR, 120),
        ("qwen2", yarn(attention_factor=1.3), 120),
        ("llama", longrope(256), 200),  # the short factors
    ],
    ids=named,
)
def test_llama_cpp_gives_the_same_logits_beyond_the_original_context(
    tmp_path, family, scaling, length
):
    pytest.importorskip("llama_cpp")
    path = model(tmp_path, family, scaling, max_position_embeddings=512)
    gguf = tmp_path / "m.gguf"
    report = export(path, gguf, format="gguf", quantize="f32", threads=1, peers=False)
    assert not report.failures
    prompt = np.random.default_rng(5).integers(0, 256, length).tolist()
    answer = peers.ask("llama_cpp", gguf, prompt=prompt, greedy=4, threads=1)
    ours = engine.load(path, device="cpu", dtype="float32", threads=1)
    logits = ours.logits(prompt)
    assert answer.logits is not None and answer.logits.shape == logits.shape
    assert np.abs(logits - answer.logits).max() < 1e-5
    assert list(ours.generate(prompt, 4, stop_ids=()).ids) == answer.greedy
    plain = model(tmp_path / "plain", family, None, max_position_embeddings=512)
    unscaled = engine.load(plain, device="cpu", dtype="float32", threads=1).logits(prompt)
    assert np.abs(logits - unscaled).max() > 1e-3


@pytest.mark.slow
@pytest.mark.exact
def test_llama_cpp_chooses_the_factors_of_longrope_by_the_context_it_is_loaded_with(tmp_path):
    """As the caveat says: rounded up to 256, and longer than the original context."""
    pytest.importorskip("llama_cpp")
    path = model(tmp_path, "llama", longrope(255), max_position_embeddings=512)
    export(path, tmp_path / "m.gguf", format="gguf", quantize="f32", threads=1, peers=False)
    prompt = np.random.default_rng(5).integers(0, 256, 200).tolist()
    answer = peers.ask("llama_cpp", tmp_path / "m.gguf", prompt=prompt, greedy=0, threads=1)
    source = open_model(path)
    long = {**longrope(255), "short_factor": longrope(255)["long_factor"]}
    swapped = replace(source, architecture=replace(source.architecture, rope_scaling=long))
    for opened, alike in ((source, False), (swapped, True)):
        ours = engine.load(opened, device="cpu", dtype="float32", threads=1).logits(prompt)
        assert (np.abs(ours - answer.logits).max() < 1e-5) == alike


def test_the_proof_says_that_llama_cpps_choice_of_longrope_factors_is_the_loaders(tmp_path):
    path = model(tmp_path, "llama", longrope(255), max_position_embeddings=512)
    report = export(path, tmp_path / "m.gguf", format="gguf", peers=False)
    (found,) = (c.outcome for c in report.checks if "caveats" in c.outcome.figures)
    assert "rope_scaling 'longrope'" in found.message and "longer than 255" in found.message
    assert not families.gguf_caveats(replace(open_model(path).architecture, rope_scaling=None))


@pytest.mark.parametrize(
    ("family", "scaling", "message"),
    [
        ("qwen2", LLAMA3, r"'llama3'.*rope_freqs\.weight"),
        ("qwen3", longrope(32), r"'longrope'.*rope_factors_long\.weight"),
        ("qwen3", RAMP, r"'yarn' with beta_fast 4, beta_slow 0.5, truncate False.*% off"),
        ("llama", DYNAMIC, r"'dynamic'.*longer than 128 tokens"),
    ],
    ids=named,
)
def test_a_scaling_that_llama_cpp_cannot_compute_is_refused(tmp_path, family, scaling, message):
    path = model(tmp_path, family, scaling)
    with pytest.raises(GateFailed, match=message):
        export(path, tmp_path / "m.gguf", format="gguf", peers=False)
    assert not (tmp_path / "m.gguf").exists()


def test_a_ramp_of_its_own_is_only_an_obstacle_where_it_comes_out_otherwise():
    same, other = (
        make_architecture(family="qwen2", rope_scaling=scaling, head_dim=16)
        for scaling in (yarn(beta_fast=4), RAMP)
    )
    assert rotary_gguf.gguf_form(same) == "keys" and not families.gguf_obstacles(same)
    (obstacle,) = families.gguf_obstacles(other)
    assert obstacle.computed == {"rope_scaling": yarn(factor=3.3)}  # for --allow-inexact


def rewritten(tmp_path, *, scaling=LLAMA3, fields=None, drop=(), scale=None):
    """A GGUF with some of its key-values or its divisors changed."""
    write_gguf(tmp_path / "m.gguf", open_model(model(tmp_path, "llama", scaling)))
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


@pytest.mark.parametrize("scaling", [s for s in SCALINGS if s not in (DYNAMIC, RAMP)], ids=named)
def test_a_foreign_file_opens_as_what_llama_cpp_computes(tmp_path, scaling):
    opened = open_model(rewritten(tmp_path, scaling=scaling, drop=(ROPE_SCALING,)))
    opened.check_tensors()
    found = opened.architecture
    assert found.rope_scaling["rope_type"] == scaling["rope_type"]
    assert rope.attention_factor(found.rope_scaling, 128) == pytest.approx(
        rope.attention_factor(scaling, 128), rel=1e-6
    )
    told = {"rope_type", "factor", "original_max_position_embeddings", *LLAMA3}
    for key in told & scaling.keys() & found.rope_scaling.keys():
        assert found.rope_scaling[key] == scaling[key]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scaling": RAMP, "drop": (ROPE_SCALING,)}, "the numbers of no rotary scaling"),
        ({"scale": 1.01, "drop": (ROPE_SCALING,)}, "the numbers of no rotary scaling"),
        (
            {
                "scaling": yarn(),
                "drop": (ROPE_SCALING,),
                "fields": {"llama.rope.scaling.yarn_beta_fast": 8.0},
            },
            "yarn_beta_fast 8.0, which llama.cpp does not read",
        ),
        (
            {
                "scaling": longrope(32),
                "drop": (ROPE_SCALING, "llama.rope.scaling.original_context_length"),
            },
            "'longrope' lacks original_max_position_embeddings",
        ),
    ],
    ids=named,
)
def test_a_foreign_file_of_no_known_scaling_is_refused(tmp_path, changes, message):
    with pytest.raises(InvalidFormat, match=message):
        open_model(rewritten(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": 1.01}, "does not hold the divisors"),
        ({"drop": (rope.TENSOR,)}, r"tensor rope_freqs\.weight is missing"),
        ({"fields": {ROPE_SCALING: "[]"}}, "no valid JSON object"),
        ({"fields": {ROPE_SCALING: "{"}}, "no valid JSON object"),
        ({"fields": {ROPE_SCALING: '{"rope_type": "dynamic"}'}}, "'dynamic' lacks factor"),
        ({"fields": {"llama.rope.scaling.type": "linear"}}, "gives rope.scaling.type None"),
        (
            {"scaling": yarn(), "fields": {"llama.rope.scaling.factor": 8.0}},
            "gives rope.scaling.factor 4.0, the file has 8.0",
        ),
        ({"fields": {ROPE_SCALING: '{"rope_type": "llama3"}'}}, "lacks factor, low_freq_factor"),
    ],
    ids=named,
)
def test_a_key_and_a_tensor_that_disagree_are_refused(tmp_path, changes, message):
    with pytest.raises(InvalidFormat, match=message):
        open_model(rewritten(tmp_path, **changes))
