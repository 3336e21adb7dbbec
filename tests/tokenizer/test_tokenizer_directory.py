"""Folders: what Hugging Face writes is read, what we write its AutoTokenizer loads."""

import json

import pytest

from apr.errors import CorruptFile, InvalidFormat
from apr.tokenizer import Tokenizer


def change(folder, name, **values):
    file = folder / name
    old = json.loads(file.read_text("utf-8")) if file.exists() else {}
    file.write_text(json.dumps({**old, **values}), "utf-8")


@pytest.fixture
def folder(each, tmp_path):
    each.write_directory(tmp_path)
    return tmp_path


def test_a_written_folder_reads_back_the_same(chatty, hard, tmp_path, assert_same):
    chatty.write_directory(tmp_path / "new" / "folder")
    after = Tokenizer.from_directory(tmp_path / "new" / "folder")
    assert_same(chatty, after, hard)
    assert (after.config["model_max_length"], after.record) == (4096, chatty.record)


def test_auto_tokenizer_gives_the_same_ids_and_special_tokens(chatty, hard, tmp_path):
    transformers = pytest.importorskip("transformers")
    chatty.write_directory(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in hard:
        assert theirs(text)["input_ids"] == chatty.encode(text, add_special_tokens=True)
        assert theirs.encode(text, add_special_tokens=False) == chatty.encode(text)
        assert theirs.decode(chatty.encode(text)) == chatty.decode(chatty.encode(text))
    assert theirs.bos_token_id == chatty.bos_token_id
    assert theirs.eos_token_id == chatty.eos_token_ids[0]
    assert theirs.pad_token_id == chatty.pad_token_id
    assert theirs.unk_token_id is None
    assert theirs.chat_template == chatty.chat_template
    assert theirs.model_max_length == 4096


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt-2", "qwen2", "phi-3"])
def test_auto_tokenizer_loads_a_published_one_that_we_wrote(name, published, vectors, tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = published.made(name)
    ours.write_directory(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text, ids in vectors(name):
        assert theirs.encode(text, add_special_tokens=False) == ids
        assert theirs.decode(ids) == ours.decode(ids)


def test_auto_tokenizer_knows_no_special_token_that_the_model_has_not(each, tmp_path):
    transformers = pytest.importorskip("transformers")
    each.write_directory(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.bos_token is None
    assert theirs.eos_token == theirs.pad_token == "<|endoftext|>"
    assert theirs.chat_template is None
    assert len(theirs) == each.vocab_size


def test_what_transformers_saves_reads_back(chatty, hard, tmp_path, assert_same):
    transformers = pytest.importorskip("transformers")
    chatty.write_directory(tmp_path / "ours")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    after = Tokenizer.from_directory(tmp_path / "theirs")
    assert after.chat_template == chatty.chat_template  # it writes chat_template.jinja
    assert (after.bos_token_id, after.pad_token_id) == (chatty.bos_token_id, chatty.pad_token_id)
    assert after.eos_token_ids == chatty.eos_token_ids[:1]
    for text in hard:
        assert after.encode(text) == chatty.encode(text)


def test_ends_come_from_all_configs_the_tokenizers_own_first(folder, each):
    (folder / "apr-tokenizer.json").unlink()
    end = each.eos_token_ids[0]
    change(folder, "generation_config.json", eos_token_id=[7, end])
    change(folder, "config.json", eos_token_id=8)
    assert Tokenizer.from_directory(folder).eos_token_ids == (end, 7, 8)


def test_special_tokens_are_read_as_text_or_as_objects(folder):
    change(folder, "tokenizer_config.json", bos_token={"content": "a", "special": True})
    assert Tokenizer.from_directory(folder).bos_token_id == 97


def test_a_null_bos_is_none_and_a_missing_one_is_looked_up(folder):
    change(folder, "config.json", bos_token_id=5)
    assert Tokenizer.from_directory(folder).bos_token_id is None
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["bos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert Tokenizer.from_directory(folder).bos_token_id == 5


def test_a_template_file_goes_before_the_config(folder):
    change(folder, "tokenizer_config.json", chat_template="old")
    assert Tokenizer.from_directory(folder).chat_template == "old"
    named = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    change(folder, "tokenizer_config.json", chat_template=named)
    assert Tokenizer.from_directory(folder).chat_template == "d"
    (folder / "chat_template.jinja").write_text("new")
    assert Tokenizer.from_directory(folder).chat_template == "new"


def test_a_tokenizer_json_changed_after_training_is_noticed(folder):
    change(folder, "tokenizer.json", normalizer={"type": "Lowercase"})
    with pytest.raises(CorruptFile, match="was changed"):
        Tokenizer.from_directory(folder)
    (folder / "apr-tokenizer.json").unlink()
    assert Tokenizer.from_directory(folder).pre_type is None


BAD = {
    "no JSON": ("{", "is no JSON"),
    "binary": (b"\xff\xfe\x00", "not UTF-8"),
    "a list": ("[]", "not a JSON object"),
    "no model": ("{}", "no object 'model'"),
    "no pieces": ('{"model": {"type": "Unigram", "vocab": []}}', "lacks a list 'vocab'"),
    "bad piece": ('{"model": {"type": "Unigram", "vocab": [["a"]]}}', "no pair of text and score"),
    "bad unk": (
        '{"model": {"type": "Unigram", "vocab": [["a", 0]], "unk_id": 7}}',
        "none of the 1",
    ),
    "WordPiece": ('{"model": {"type": "WordPiece", "vocab": {}}}', "supported: BPE, Unigram"),
    "no merges": ('{"model": {"type": "BPE", "vocab": {}}}', "lacks 'vocab' or 'merges'"),
    "bad id": ('{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}', "id -1"),
    "huge id": ('{"model": {"type": "BPE", "vocab": {"a": 99999999}, "merges": []}}', "1048575"),
    "bad merge": ('{"model": {"type": "BPE", "vocab": {}, "merges": [["a"]]}}', "merge"),
    "one merged": ('{"model": {"type": "BPE", "vocab": {}, "merges": ["ab"]}}', "merge 'ab'"),
    "bad added": (
        '{"added_tokens": [{}], "model": {"type": "BPE", "vocab": {}, "merges": []}}',
        "added token",
    ),
    "deep": ("[" * 100_000, "nested too deeply"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD.keys())
def test_a_malformed_file_is_named_with_the_reason(content, message, tmp_path):
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(InvalidFormat, match=message) as caught:
        Tokenizer.from_directory(tmp_path)
    assert caught.value.exit_code == 4
    assert "tokenizer.json" in caught.value.line()


def test_a_spec_that_the_library_refuses_is_an_error_when_used(folder):
    (folder / "apr-tokenizer.json").unlink()
    change(folder, "tokenizer.json", decoder={"type": "NoSuchThing"})
    with pytest.raises(InvalidFormat, match="tokenizers library refuses"):
        Tokenizer.from_directory(folder).encode("a")


def test_a_record_of_no_use_is_refused(folder):
    change(folder, "apr-tokenizer.json", vocab_size="x")
    with pytest.raises(CorruptFile, match="vocab_size is 'x'"):
        Tokenizer.from_directory(folder)


def test_a_special_token_that_is_no_token_is_refused(folder):
    change(folder, "tokenizer_config.json", eos_token="</s>")
    with pytest.raises(InvalidFormat, match="is no token of"):
        Tokenizer.from_directory(folder)
