"""open_model: the format by content, and what is refused with which words."""

import json
import shutil

import gguf
import numpy as np
import pytest
import torch
from apr_tiny import make_architecture, make_tensors
from safetensors.torch import load_file, save_file

from apr.errors import CorruptFile, InvalidFormat, ModelLoadError, NotFound
from apr.formats import open_model, write_gguf, write_hf
from apr.formats.rows import row_order


@pytest.fixture
def three(tiny_apr, tmp_path):
    """The tiny model in its three formats."""
    model = open_model(tiny_apr)
    write_gguf(tmp_path / "m.gguf", model)
    write_hf(tmp_path / "hf", model)
    return {"apr": tiny_apr, "gguf": tmp_path / "m.gguf", "hf": tmp_path / "hf"}


def same_model(first, second, left_out=()):
    assert first.tensors.keys() == second.tensors.keys()
    for name in first.tensors:
        assert np.array_equal(first.tensors[name].float32(), second.tensors[name].float32()), name
    for field in first.architecture.__dataclass_fields__:
        if field not in left_out:
            assert getattr(first.architecture, field) == getattr(second.architecture, field), field
    text = "def f(x):\n    return 'naïve 世界 🚀'"
    assert first.tokenizer.encode(text) == second.tokenizer.encode(text)
    assert first.tokenizer.eos_token_ids == second.tokenizer.eos_token_ids
    assert first.training == second.training


def test_all_three_formats_open_into_the_same_model(three):
    source = open_model(three["apr"])
    for kind, path in three.items():
        opened = open_model(path)
        assert opened.format == kind
        opened.check_tensors()
        same_model(source, opened)


def test_tied_bf16_model_with_biases_survives_both_formats(tied_apr, tmp_path):
    source = open_model(tied_apr)
    write_gguf(tmp_path / "m.gguf", source)
    write_hf(tmp_path / "hf", source)
    for path in (tmp_path / "m.gguf", tmp_path / "hf"):
        opened = open_model(path)
        assert opened.architecture.tie_word_embeddings and opened.architecture.attention_bias
        opened.check_tensors()
        same_model(source, opened)
    assert gguf.GGUFReader(tmp_path / "m.gguf").get_field("llama.vocab_size").contents() == 416


def test_rows_go_to_gguf_as_llama_cpp_converter_permutes_them():
    heads, rows, columns = 4, 32, 3
    weights = np.arange(rows * columns).reshape(rows, columns)
    theirs = (
        weights.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
    )
    assert np.array_equal(weights[row_order(rows, heads, to_gguf=True)], theirs)
    back = theirs[row_order(rows, heads, to_gguf=False)]
    assert np.array_equal(back, weights)


def test_a_renamed_file_is_told_what_it_is(three, tmp_path):
    shutil.copy(three["gguf"], tmp_path / "x.apr")
    shutil.copy(three["apr"], tmp_path / "y.gguf")
    with pytest.raises(InvalidFormat, match=r"is a GGUF file.*rename it to x\.gguf"):
        open_model(tmp_path / "x.apr")
    with pytest.raises(InvalidFormat, match=r"is an \.apr file.*rename it to y\.apr"):
        open_model(tmp_path / "y.gguf")


def test_a_name_without_suffix_is_opened_by_content(three, tmp_path):
    shutil.copy(three["gguf"], tmp_path / "blob")
    assert open_model(tmp_path / "blob").format == "gguf"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.bin", b"PK\x03\x04" + bytes(20), "run code"),
        ("a.pt", b"\x80\x02" + bytes(20), "run code"),
        ("a.apr", b"", "empty"),
        ("a.apr", b"hello, world", "is not an .apr file"),
        ("a.txt", b"hello, world", "no model that apr knows"),
        ("a.safetensors", (2).to_bytes(8, "little") + b"{}", "single safetensors file"),
    ],
)
def test_other_files_are_refused_by_what_they_are(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InvalidFormat, match=message) as caught:
        open_model(tmp_path / name)
    assert caught.value.exit_code == 4


def test_missing_paths_and_folders_without_a_model_are_not_found(tmp_path):
    with pytest.raises(NotFound):
        open_model(tmp_path / "nothing.apr")
    with pytest.raises(NotFound, match=r"config\.json"):
        open_model(tmp_path)
    (tmp_path / "model.apr").write_bytes(b"APR\0")
    with pytest.raises(NotFound, match=r"give the file .*model\.apr"):
        open_model(tmp_path)


# -- GGUF -------------------------------------------------------------------------------------


def rewritten(path, target, change):
    """A GGUF file with its fields and tensors changed; `change(fields, tensors)`."""
    from apr.formats import GgufFile
    from apr.formats.gguf_container import write_container

    file = GgufFile.open(path)
    fields, tensors = dict(file.fields), dict(file.tensors)
    change(fields, tensors)
    with target.open("wb") as out:
        write_container(out, fields, list(tensors.values()))
    return target


def test_hugging_face_class_name_as_architecture_is_refused_by_name(three, tmp_path):
    """aprender #1698: llama.cpp said unknown architecture 'LlamaForCausalLM'."""
    path = rewritten(
        three["gguf"],
        tmp_path / "bad.gguf",
        lambda fields, _: fields.update({"general.architecture": "LlamaForCausalLM"}),
    )
    with pytest.raises(InvalidFormat, match=r"LlamaForCausalLM.*must be 'llama'") as caught:
        open_model(path)
    assert caught.value.exit_code == 4


def test_token_list_shorter_than_the_embedding_is_refused(three, tmp_path):
    """aprender #1706: 151,643 tokens listed, 151,936 rows."""

    def change(fields, _):
        for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type"):
            fields[key] = fields[key][:-3]

    path = rewritten(three["gguf"], tmp_path / "bad.gguf", change)
    with pytest.raises(ModelLoadError, match="413 tokens.*416 rows"):
        open_model(path)


def test_missing_key_is_named(three, tmp_path):
    path = rewritten(
        three["gguf"],
        tmp_path / "bad.gguf",
        lambda fields, _: fields.pop("llama.embedding_length"),
    )
    with pytest.raises(InvalidFormat, match="missing hidden_size"):
        open_model(path)


def test_unknown_tensors_are_reported_not_dropped(three, tmp_path):
    from apr.tensors import from_array

    def change(_, tensors):
        tensors["rope_what.weight"] = from_array("rope_what.weight", np.ones(8, np.float32))

    model = open_model(rewritten(three["gguf"], tmp_path / "bad.gguf", change))
    with pytest.raises(ModelLoadError, match="unexpected tensor rope_what"):
        model.check_tensors()


def test_quantized_rows_come_back_in_order(three, tmp_path):
    source = open_model(three["apr"])
    write_gguf(tmp_path / "q8.gguf", source, quantize="q8_0")
    opened = open_model(tmp_path / "q8.gguf")
    name = "model.layers.1.self_attn.q_proj.weight"
    assert opened.tensors[name].dtype.name == "Q8_0"
    difference = np.abs(opened.tensors[name].float32() - source.tensors[name].float32()).max()
    assert 0 < difference < 0.01


# -- Hugging Face -----------------------------------------------------------------------------


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    config = {k: v for k, v in config.items() if v is not ...}
    (folder / "config.json").write_text(json.dumps(config))


def test_missing_pieces_of_a_folder_are_named(three):
    folder = three["hf"]
    (folder / "config.json").rename(folder / "kept")
    with pytest.raises(InvalidFormat, match=r"config\.json is missing"):
        open_model(folder)
    (folder / "kept").rename(folder / "config.json")
    edit_config(folder, hidden_size=...)
    with pytest.raises(InvalidFormat, match="missing hidden_size"):
        open_model(folder)
    edit_config(folder, hidden_size=64, model_type="mamba")
    with pytest.raises(InvalidFormat, match="unknown model_type 'mamba'"):
        open_model(folder)
    edit_config(folder, model_type="llama")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InvalidFormat, match=r"neither model\.safetensors nor"):
        open_model(folder)
    (folder / "pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(InvalidFormat, match="pickle"):
        open_model(folder)


def test_folder_without_tokenizer_opens_and_says_so_when_one_is_needed(three):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (three["hf"] / name).unlink()
    model = open_model(three["hf"])
    assert model.tokenizer is None
    with pytest.raises(ModelLoadError, match="no embedded tokenizer"):
        model.require_tokenizer()


def test_second_copy_of_a_tied_head_is_accepted_if_it_is_one(tmp_path, tied_apr):
    write_hf(tmp_path / "hf", open_model(tied_apr))
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(weights, tmp_path / "hf" / "model.safetensors")
    open_model(tmp_path / "hf").check_tensors()
    weights["lm_head.weight"][3, 3] += 1
    save_file(weights, tmp_path / "hf" / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"lm_head\.weight differs"):
        open_model(tmp_path / "hf")


def test_sharded_folder_opens_and_a_lost_shard_is_named(tiny_apr, tmp_path):
    source = open_model(tiny_apr)
    write_hf(tmp_path / "hf", source, shard_bytes=200_000)
    same_model(source, open_model(tmp_path / "hf"))
    index = tmp_path / "hf" / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    moved = dict(table["weight_map"])
    moved["model.norm.weight"] = table["weight_map"]["model.embed_tokens.weight"]
    if moved != table["weight_map"]:
        index.write_text(json.dumps({"weight_map": moved}))
        with pytest.raises(CorruptFile, match=r"model\.norm\.weight"):
            open_model(tmp_path / "hf")
    index.write_text(json.dumps({"weight_map": {"x": "../outside.safetensors"}}))
    with pytest.raises(InvalidFormat, match="not a file of the folder"):
        open_model(tmp_path / "hf")
    index.write_text(json.dumps(table))
    next((tmp_path / "hf").glob("model-00002*")).unlink()
    with pytest.raises(CorruptFile, match="is missing"):
        open_model(tmp_path / "hf")


def test_transformers_own_folder_opens(tmp_path, tokenizer):
    """A folder that transformers saved, with the fields that its configs have today."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=416, max_position_embeddings=128, rms_norm_eps=1e-5,
        eos_token_id=399, bos_token_id=None, tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "hf")
    tokenizer.write_directory(tmp_path / "hf")
    opened = open_model(tmp_path / "hf")
    opened.check_tensors()
    assert opened.architecture.tie_word_embeddings
    assert opened.architecture == make_architecture(tie_word_embeddings=True)
    for name, value in model.state_dict().items():
        if name != "lm_head.weight":
            assert torch.equal(opened.tensors[name].torch(), value)
    assert {t.name for t in make_tensors(opened.architecture)} == set(opened.tensors)
