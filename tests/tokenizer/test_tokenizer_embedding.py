"""Embedding into `.apr` metadata: whole, once, and checked on the way out."""

import json

import pytest

from apr.errors import FeatureUnavailable, InvalidFormat
from apr.tokenizer import Tokenizer

LIMIT = 16 * 2**20  # of the metadata, docs/spec/apr-format.md


def through_json(metadata):
    text = json.dumps(metadata, separators=(",", ":"), ensure_ascii=False)
    return json.loads(text), len(text.encode("utf-8"))


@pytest.mark.parametrize("name", ["gpt-2", pytest.param("qwen2", marks=pytest.mark.slow), "phi-3"])
def test_a_published_tokenizer_comes_out_as_it_went_in(name, published, vectors, assert_same):
    before = published.made(name)
    metadata, size = through_json(before.to_metadata())
    assert size < LIMIT
    after = Tokenizer.from_metadata(metadata)
    assert_same(before, after, [text for text, _ in vectors(name)])


def test_qwen2_with_fillers_takes_a_quarter_of_the_room(published):
    made = published.made("qwen2")
    metadata, size = through_json(made.to_metadata(152_064))
    assert len(metadata["tokenizer.vocabulary"]) == 152_064
    print(f"qwen2 metadata: {size:,} bytes")
    assert size < LIMIT / 4


def test_all_parts_survive_with_fillers(chatty, hard, assert_same):
    metadata, _ = through_json(chatty.to_metadata())
    after = Tokenizer.from_metadata(metadata)
    assert_same(chatty, after, hard)
    assert after.config == chatty.config
    assert after.record == chatty.record
    assert metadata["special_tokens"] == {
        "bos_token": "<|begin|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "im_end_token": "<|im_end|>",
    }


def test_the_flat_keys_of_the_rust_reader_are_there(each):
    metadata = each.to_metadata(1024)
    end = each.eos_token_ids[0]
    assert len(metadata["tokenizer.vocabulary"]) == metadata["tokenizer.vocab_size"] == 1024
    assert metadata["tokenizer.merges"] == each.merges()
    assert metadata["tokenizer.model"] == metadata["tokenizer.model_type"] == "gpt2"
    assert metadata["tokenizer.pre_type"] == each.pre_type
    assert metadata["tokenizer.eos_token_id"] == end
    assert "tokenizer.bos_token_id" not in metadata
    # No second copy of vocabulary or merges.
    assert not {"vocab", "merges"} & set(metadata["tokenizer.spec"]["model"])
    assert len(json.dumps(metadata["tokenizer.spec"])) < 6000


def test_metadata_without_a_vocabulary_has_no_tokenizer():
    assert Tokenizer.from_metadata({"hidden_size": 64}) is None


def test_merges_of_tokens_that_hold_a_space_come_back(trained, assert_same):
    from dataclasses import replace

    base = trained["gpt-2"]
    vocab = {**base.spec["model"]["vocab"], "a b": 1000, "a bc": 1001, "hidden": 3}
    merges = [["a", " b"], ["a b", "c"], *base.spec["model"]["merges"]]
    model = {**base.spec["model"], "vocab": {**vocab, " b": 1002}, "merges": merges}
    odd = replace(base, spec={**base.spec, "model": model}, vocab_size=1010)
    after = Tokenizer.from_metadata(through_json(odd.to_metadata())[0])
    assert_same(odd, after, ["abc", "a bc"])


@pytest.mark.parametrize(
    ("name", "special"),
    [("gpt-2", 50_256), pytest.param("qwen2", 151_644, marks=pytest.mark.slow)],
)
def test_a_file_of_another_writer_is_rebuilt_from_the_flat_keys(name, special, published, vectors):
    metadata = published.made(name).to_metadata()
    for key in ("tokenizer.spec", "tokenizer.layout", "tokenizer.eos_token_ids"):
        metadata.pop(key, None)
    rebuilt = Tokenizer.from_metadata(metadata)
    for text, ids in vectors(name):
        assert rebuilt.encode(text) == ids
    assert rebuilt.is_special(special)


def test_another_writers_file_without_a_known_pre_tokenizer_is_refused(each):
    metadata = each.to_metadata()
    del metadata["tokenizer.spec"], metadata["tokenizer.pre_type"]
    with pytest.raises(FeatureUnavailable, match=r"tokenizer\.ggml\.pre"):
        Tokenizer.from_metadata(metadata)


DAMAGE = {
    "vocabulary is a number": {"tokenizer.vocabulary": 5},
    "vocabulary holds numbers": {"tokenizer.vocabulary": [1, 2]},
    "merges hold numbers": {"tokenizer.merges": [1]},
    "size differs": {"tokenizer.vocab_size": 7},
    "layout is missing": {"tokenizer.layout": None},
    "layout is no range": {"tokenizer.layout": {"fillers": [3]}},
    "layout points nowhere": {"tokenizer.layout": {"merges_with_space": {"99999": ["a", "b"]}}},
    "spec is a list": {"tokenizer.spec": []},
    "spec is another model": {"tokenizer.spec": {"model": {"type": "Unigram"}}},
    "eos outside": {"tokenizer.eos_token_ids": [10**6]},
    "eos is text": {"tokenizer.eos_token_ids": ["<|endoftext|>"]},
    "bos is text": {"tokenizer.bos_token_id": "1"},
    "pre-tokenizer differs": {"tokenizer.pre_type": "qwen2"},
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_parts_that_do_not_fit_are_refused(damage, trained):
    with pytest.raises(InvalidFormat):
        Tokenizer.from_metadata(trained["gpt-2"].to_metadata() | damage)
