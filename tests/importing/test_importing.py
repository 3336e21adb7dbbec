"""`apr import`: what comes in stays what it was, and what cannot is refused with all reasons."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from apr import engine, qa
from apr.checkpoint import verify
from apr.errors import GateFailed, InvalidFormat, ModelLoadError, NotFound, StorageError, UsageError
from apr.export import export, proof_path
from apr.formats import open_model
from apr.importing import import_model, open_source, verb

QUICK = {"peers": False, "threads": 1}
IDS = [5, 77, 300, 12, 9, 41, 200, 8]


def verdicts(report):
    return {check.id: check.outcome.verdict for check in report.checks}


def weights_of(folder):
    """All tensors of a folder as safetensors' own reader gives them."""
    out = {}
    for path in sorted(folder.glob("*.safetensors")):
        out.update(load_file(path))
    return out


def same_tensors(first, second):
    assert first.tensors.keys() == second.tensors.keys()
    for name, tensor in first.tensors.items():
        other = second.tensors[name]
        assert (tensor.dtype, tensor.shape) == (other.dtype, other.shape), name
        assert np.array_equal(tensor.raw(), other.raw()), name


# -- Hugging Face folders -------------------------------------------------------------------------


@pytest.mark.slow
def test_folder_of_transformers_is_proven_with_transformers_itself(folder, tmp_path):
    out = tmp_path / "m.apr"
    report = import_model(folder, out, threads=1)
    assert verdicts(report) == {
        "source": "skip", "tensors": "pass", "checksum": "pass", "foreign reader": "pass",
        "metadata": "pass", "tokenizer": "pass", "logits": "pass", "transformers": "pass",
    }  # fmt: skip
    found = next(c.outcome for c in report.checks if c.id == "transformers")
    assert found.figures["max_abs"] < 1e-4 and "of the source" in found.message
    assert json.loads(proof_path(out).read_text())["passed"]
    assert verify(out).size_bytes == out.stat().st_size


def test_logits_of_the_file_are_those_of_transformers(folder, tmp_path):
    import transformers

    import_model(folder, tmp_path / "m.apr", **QUICK)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        expected = model(torch.tensor([IDS])).logits[0].numpy()
    ours = engine.load(tmp_path / "m.apr", device="cpu", threads=1).logits(IDS)
    assert np.abs(ours - expected).max() < 1e-4


def test_file_holds_all_that_the_folder_said(folder, tmp_path):
    import_model(folder, tmp_path / "m.apr", **QUICK)
    model = open_model(tmp_path / "m.apr")
    weights = weights_of(folder)
    assert model.tensors.keys() == weights.keys()
    for name, expected in weights.items():
        assert torch.equal(model.tensors[name].torch(), expected)
    tokens = model.require_tokenizer()
    assert tokens.eos_token_ids == (2, 0) and tokens.pad_token_id == 0
    assert tokens.vocab_size == 416 and tokens.is_filler(415)
    assert "messages" in tokens.chat_template
    assert model.metadata["name"] == "tiny-llama" == model.metadata["source"]
    assert model.metadata["original_format"] == "safetensors"
    assert model.metadata["generation_config"]["temperature"] == 0.7
    assert model.metadata["hf_config"]["attention_dropout"] == 0.125
    record = model.metadata["import"]
    assert record["filler_tokens"] == 16 and record["quantize"] == "keep"
    assert record["receipt"]["apr_version"]


@pytest.mark.parametrize(
    ("dtype", "changes"),
    [
        (torch.float32, {}),
        (torch.bfloat16, {"tie_word_embeddings": True}),
        (torch.float16, {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1}),
    ],
    ids=["float32", "bfloat16-tied", "float16-biases"],
)
def test_round_trip_to_a_folder_gives_the_same_tensors_and_config(
    make_folder, tmp_path, dtype, changes
):
    import transformers

    source = make_folder(tmp_path / "hf", dtype=dtype, **changes)
    import_model(source, tmp_path / "m.apr", **QUICK)
    export(tmp_path / "m.apr", tmp_path / "back", format="safetensors", **QUICK)
    before, after = weights_of(source), weights_of(tmp_path / "back")
    assert before.keys() == after.keys()
    for name, expected in before.items():
        assert after[name].dtype == dtype and torch.equal(after[name], expected), name
    for kind in (transformers.AutoConfig, transformers.GenerationConfig):
        first = kind.from_pretrained(source).to_dict()
        second = kind.from_pretrained(tmp_path / "back").to_dict()
        left_out = {"_name_or_path", "transformers_version", "_from_model_config"}
        assert {k: v for k, v in first.items() if k not in left_out} == {
            k: v for k, v in second.items() if k not in left_out
        }


@pytest.mark.parametrize(("quantize", "kind"), [("f32", "F32"), ("f16", "F16"), ("bf16", "BF16")])
def test_float_type_is_what_was_asked_for(folder, tmp_path, quantize, kind):
    report = import_model(folder, tmp_path / "m.apr", quantize=quantize, **QUICK)
    assert set(report.dtypes) == {kind} and not report.failures
    model = open_model(tmp_path / "m.apr")
    dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind]
    for name, expected in weights_of(folder).items():
        assert torch.equal(model.tensors[name].torch(), expected.to(dtype))


@pytest.mark.slow
def test_qa_passes_on_an_imported_folder(folder, tmp_path):
    import_model(folder, tmp_path / "m.apr", **QUICK)
    report = qa.run(tmp_path / "m.apr")
    assert report.passed, [g for g in report.gates if g.verdict == "fail"]


# -- GGUF -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantize", [None, "f16", "bf16"])
def test_gguf_comes_back_as_it_went(tiny_apr, tmp_path, quantize):
    export(tiny_apr, tmp_path / "m.gguf", format="gguf", quantize=quantize, **QUICK)
    report = import_model(tmp_path / "m.gguf", tmp_path / "back.apr", **QUICK)
    assert not report.failures
    first, back = open_model(tiny_apr), open_model(tmp_path / "back.apr")
    assert back.training == first.training and back.metadata["license"] == "Apache-2.0"
    assert back.metadata["original_format"] == "gguf" and back.metadata["name"] == "tiny"
    assert back.architecture == first.architecture
    same_tensors(open_model(tmp_path / "m.gguf"), back)
    if quantize is None:
        same_tensors(first, back)


def test_blocks_stay_blocks_unless_a_float_type_is_asked_for(tiny_apr, tmp_path):
    export(tiny_apr, tmp_path / "q.gguf", format="gguf", quantize="q8_0", **QUICK)
    kept = import_model(tmp_path / "q.gguf", tmp_path / "kept.apr", **QUICK)
    assert kept.dtypes["Q8_0"] == 16 and kept.dtypes["F32"] == 5
    same_tensors(open_model(tmp_path / "q.gguf"), open_model(tmp_path / "kept.apr"))
    decoded = import_model(tmp_path / "q.gguf", tmp_path / "f32.apr", quantize="f32", **QUICK)
    assert set(decoded.dtypes) == {"F32"} and not decoded.failures
    source, model = open_model(tmp_path / "q.gguf"), open_model(tmp_path / "f32.apr")
    for name, tensor in source.tensors.items():
        assert np.array_equal(tensor.float32(), model.tensors[name].float32())


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_blocks_that_gguf_made_are_kept_and_mean_what_gguf_says(tiny_apr, tmp_path, kind):
    import gguf

    from apr.dtypes import DTYPES
    from apr.formats.gguf_container import write_container
    from apr.formats.gguf_reader import GgufFile
    from apr.tensors import Tensor

    export(tiny_apr, tmp_path / "m.gguf", format="gguf", **QUICK)
    file, made, expected = GgufFile.open(tmp_path / "m.gguf"), [], {}
    for name, tensor in file.tensors.items():
        if len(tensor.shape) == 2:
            number = gguf.GGMLQuantizationType[kind]
            blocks = gguf.quants.quantize(tensor.float32(), number)
            expected[name] = gguf.quants.dequantize(blocks, number)
            flat = blocks.reshape(-1)
            tensor = Tensor(name, DTYPES[kind], tensor.shape, lambda flat=flat: flat)
        made.append(tensor)
    with (tmp_path / "q.gguf").open("wb") as out:
        write_container(out, dict(file.fields.items()), made)
    report = import_model(tmp_path / "q.gguf", tmp_path / "q.apr", **QUICK)
    assert report.dtypes == {kind: len(expected), "F32": 5}
    model = open_model(tmp_path / "q.apr")
    for ours, theirs in [
        ("model.layers.0.mlp.down_proj.weight", "blk.0.ffn_down.weight"),
        ("model.layers.1.self_attn.v_proj.weight", "blk.1.attn_v.weight"),
    ]:
        assert np.array_equal(model.tensors[ours].float32(), expected[theirs])
    # Rows of q: neighbours there, halves here.
    rows = expected["blk.0.attn_q.weight"].reshape(4, 8, 2, 64).swapaxes(1, 2).reshape(64, 64)
    assert np.array_equal(model.tensors["model.layers.0.self_attn.q_proj.weight"].float32(), rows)


@pytest.mark.slow
@pytest.mark.parametrize("quantize", [None, "q8_0"])
def test_llama_cpp_agrees_on_the_source(tiny_apr, tmp_path, quantize):
    pytest.importorskip("xllamacpp")
    export(tiny_apr, tmp_path / "m.gguf", format="gguf", quantize=quantize, **QUICK)
    report = import_model(tmp_path / "m.gguf", tmp_path / "m.apr", threads=1)
    assert verdicts(report)["llama.cpp (wheel)"] == "pass"
    assert verdicts(report)["foreign reader"] == "pass"


def test_further_end_tokens_of_a_gguf_are_kept(folder, tmp_path):
    import_model(folder, tmp_path / "a.apr", **QUICK)
    try:
        export(tmp_path / "a.apr", tmp_path / "m.gguf", format="gguf", **QUICK)
    except GateFailed as error:
        pytest.fail(error.line())
    import_model(tmp_path / "m.gguf", tmp_path / "b.apr", **QUICK)
    assert open_model(tmp_path / "b.apr").require_tokenizer().eos_token_ids == (2, 0)


# -- what is refused ------------------------------------------------------------------------------


@pytest.fixture
def broken(folder, tmp_path):
    """A copy of the folder that may be damaged, in one weights file."""
    out = tmp_path / "broken"
    shutil.copytree(folder, out)
    weights = weights_of(folder)
    for path in out.glob("model*"):
        path.unlink()
    save_file(weights, out / "model.safetensors")
    return out


def edit_config(folder, **changes):
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))


def refused(kind, source, tmp_path, **options):
    out = tmp_path / "never.apr"
    with pytest.raises(kind) as caught:
        import_model(source, out, **{**QUICK, **options})
    assert not out.exists() and not proof_path(out).exists()
    assert not list(tmp_path.glob(".never*"))
    return caught.value.line()


def test_one_error_lists_everything_that_is_wrong(broken, tmp_path):
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"] = torch.zeros(96, 32)
    weights["extra.weight"] = torch.zeros(3)
    del weights["model.norm.weight"]
    save_file(weights, broken / "model.safetensors")
    edit_config(broken, vocab_size=300, num_attention_heads=3)
    line = refused(InvalidFormat, broken, tmp_path)
    for part in (
        "problems:",
        "[META-GQA]",
        "its tokenizer has 400 tokens, the embedding has 300 rows",
        "missing tensor model.norm.weight",
        "unexpected tensor extra.weight [3]",
        "tensor model.layers.0.mlp.up_proj.weight has shape [96, 32]",
        "tensor model.embed_tokens.weight has shape [416, 64]",
    ):
        assert part in line


def test_missing_fields_and_a_missing_tokenizer_are_named_together(broken, tmp_path):
    edit_config(broken, hidden_size="absent", num_hidden_layers="absent")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (broken / name).unlink()
    line = refused(InvalidFormat, broken, tmp_path)
    assert "hidden_size" in line and "num_layers (also tried num_hidden_layers" in line
    assert (
        "has no tokenizer (tokenizer.json or tokenizer.model)" in line
        and "the tensors were not compared" in line
    )


def test_unknown_architecture_names_the_known_ones(broken, tmp_path):
    edit_config(broken, model_type="mamba")
    line = refused(InvalidFormat, broken, tmp_path)
    assert "unknown model_type 'mamba'" in line and "known are" in line and "llama" in line


def test_tokenizer_larger_than_the_embedding_is_refused(make_folder, tmp_path):
    source = make_folder(tmp_path / "hf", tokens=410, vocab_size=402)
    line = refused(ModelLoadError, source, tmp_path)
    assert "its tokenizer has 410 tokens, the embedding has 402 rows" in line


def test_quantized_folder_is_refused(broken, tmp_path):
    edit_config(broken, quantization_config={"quant_method": "awq", "bits": 4})
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.qzeros"] = torch.zeros(3, dtype=torch.int32)
    save_file(weights, broken / "model.safetensors")
    line = refused(InvalidFormat, broken, tmp_path)
    assert "quantization_config (awq)" in line and "qzeros" not in line  # not what is wrong


def test_integer_tensors_are_no_weights(broken, tmp_path):
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(64, dtype=torch.int32)
    save_file(weights, broken / "model.safetensors")
    line = refused(ModelLoadError, broken, tmp_path)
    assert "tensor model.norm.weight is stored as I32, which is no weight" in line


def test_tied_head_that_differs_is_refused(broken, tmp_path):
    edit_config(broken, tie_word_embeddings=True)
    assert "lm_head.weight differs" in refused(ModelLoadError, broken, tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_refused_with_the_reason_and_never_loaded(broken, tmp_path, name):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was loaded",))

    for path in broken.glob("model*.safetensors"):
        path.unlink()
    torch.save({"model.norm.weight": Trap()}, broken / name)
    for source in (broken, broken / name):
        line = refused(InvalidFormat, source, tmp_path)
        assert "would run code" in line and "safetensors" in line
    (broken / "config.json").unlink()
    assert "would run code" in refused(InvalidFormat, broken, tmp_path)
    (broken / name).write_bytes(b"not even that")
    assert "would run code" in refused(InvalidFormat, broken / name, tmp_path)


def test_folder_without_a_model_is_not_found(tmp_path):
    (tmp_path / "empty").mkdir()
    refused(NotFound, tmp_path / "empty", tmp_path)
    refused(NotFound, tmp_path / "nowhere", tmp_path)


def test_damaged_gguf_lists_tensors_and_token_list(tiny_apr, tmp_path):
    from apr.formats.gguf_container import write_container
    from apr.formats.gguf_reader import GgufFile

    export(tiny_apr, tmp_path / "m.gguf", format="gguf", **QUICK)
    file = GgufFile.open(tmp_path / "m.gguf")
    fields = dict(file.fields.items())
    fields["tokenizer.ggml.tokens"] = fields["tokenizer.ggml.tokens"] + ["one", "more"]
    fields["tokenizer.ggml.token_type"] = [*fields["tokenizer.ggml.token_type"], 1, 1]
    with (tmp_path / "bad.gguf").open("wb") as out:
        write_container(
            out, fields, [t for n, t in file.tensors.items() if n != "blk.1.ffn_up.weight"]
        )
    line = refused(ModelLoadError, tmp_path / "bad.gguf", tmp_path)
    assert "lists 418 tokens, token_embd.weight has 416 rows" in line
    assert "missing tensor model.layers.1.mlp.up_proj.weight (in GGUF blk.1.ffn_up.weight)" in line


def test_part_of_a_split_gguf_is_named_as_such(tiny_apr, tmp_path):
    from apr.formats.gguf_container import write_container
    from apr.formats.gguf_reader import GgufFile

    export(tiny_apr, tmp_path / "m.gguf", format="gguf", **QUICK)
    file = GgufFile.open(tmp_path / "m.gguf")
    fields = {**dict(file.fields.items()), "split.count": 3, "split.no": 0}
    with (tmp_path / "part.gguf").open("wb") as out:
        write_container(out, fields, list(file.tensors.values())[:4])
    assert "one of 3 parts" in refused(InvalidFormat, tmp_path / "part.gguf", tmp_path)


def test_apr_source_points_to_export(tiny_apr, tmp_path):
    assert "apr export" in refused(UsageError, tiny_apr, tmp_path)


def test_wrong_requests_are_usage_errors(folder, tmp_path):
    assert "f32, f16, bf16" in refused(UsageError, folder, tmp_path, quantize="q8_0")
    with pytest.raises(UsageError, match="end its name in .apr"):
        import_model(folder, tmp_path / "m.gguf", **QUICK)


def test_nothing_is_overwritten_without_force(folder, tmp_path):
    out = tmp_path / "m.apr"
    out.write_bytes(b"mine")
    with pytest.raises(StorageError, match="exists already"):
        import_model(folder, out, **QUICK)
    assert out.read_bytes() == b"mine"
    import_model(folder, out, force=True, name="other", **QUICK)
    assert open_model(out).metadata["name"] == "other"


def test_value_beyond_the_type_leaves_nothing_and_names_the_target(broken, tmp_path):
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][3] = 1e6
    save_file(weights, broken / "model.safetensors")
    line = refused(InvalidFormat, broken, tmp_path, quantize="f16")
    assert ".tmp-" not in line


def test_failed_proof_leaves_nothing(folder, tmp_path, monkeypatch):
    honest = verb.apr_tensors

    def swapped(source, quantize, sources=None):
        found = {t.name: t for t in honest(source, quantize, sources)}
        a, b = "model.layers.0.input_layernorm.weight", "model.layers.1.input_layernorm.weight"
        found[a], found[b] = verb.replace(found[b], name=a), verb.replace(found[a], name=b)
        return list(found.values())

    monkeypatch.setattr(verb, "apr_tensors", swapped)
    line = refused(GateFailed, folder, tmp_path)
    assert "[tensors]" in line and "nothing was written" in line


def test_progress_counts_every_byte_of_the_weights(folder, tmp_path):
    counted = []
    import_model(folder, tmp_path / "m.apr", on_write=counted.append, **QUICK)
    with safe_open(next(folder.glob("*.safetensors")), framework="pt") as file:
        assert file.keys()
    assert sum(counted) == sum(t.nbytes for t in weights_of(folder).values())


def test_values_of_no_use_in_a_gguf_are_named(tiny_apr, tmp_path):
    from apr.formats.gguf_reader import GgufFile
    from apr.formats.gguf_writer import write_container

    export(tiny_apr, tmp_path / "m.gguf", format="gguf", prove=False, **QUICK)
    file = GgufFile.open(tmp_path / "m.gguf")
    fields, tensors = dict(file.fields.items()), list(file.tensors.values())
    for key, value, message in [
        ("llama.embedding_length", "x", "llama.embedding_length is 'x', not a number"),
        ("llama.rope.freq_base", [1, 2], r"llama.rope.freq_base is \[1, 2\], not a number"),
        ("llama.block_count", 10**9, r"\[META-LAYERS\] block_count is 1000000000"),
        ("tokenizer.ggml.tokens", 1, "tokenizer.ggml.tokens: holds no list of texts"),
        ("tokenizer.ggml.token_type", ["a"], "token_type: holds no list of whole numbers"),
        ("tokenizer.ggml.merges", True, "tokenizer.ggml.merges: holds no list of texts"),
    ]:
        with (tmp_path / "bad.gguf").open("wb") as out:
            write_container(out, {**fields, key: value}, tensors)
        with pytest.raises((InvalidFormat, ModelLoadError), match=message):
            open_source(tmp_path / "bad.gguf")


def test_a_config_with_nan_or_in_another_encoding_is_no_json(broken, tmp_path):
    config = broken / "config.json"
    honest = config.read_bytes()
    config.write_bytes(honest.replace(b'"hidden_size"', b'"x": NaN, "hidden_size"'))
    assert "NaN" in refused(InvalidFormat, broken, tmp_path)
    config.write_bytes(honest.replace(b'"silu"', b'"s\xefl\xfb"'))
    line = refused(InvalidFormat, broken, tmp_path)
    assert "config.json: is no valid JSON" in line and "problems:" not in line  # said once
    (broken / "tokenizer.json").write_text("{")
    line = refused(InvalidFormat, broken, tmp_path)
    assert line.count("config.json") == 1 and "2 problems:" in line and "tokenizer.json: " in line
