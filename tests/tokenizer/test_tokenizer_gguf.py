"""GGUF keys: published vocabularies read, ours written, both as llama.cpp takes them."""

import pytest

from apr.errors import FeatureUnavailable, InvalidFormat
from apr.tokenizer import Tokenizer


@pytest.mark.parametrize("name", ["gpt-2", pytest.param("qwen2", marks=pytest.mark.slow), "phi-3"])
def test_a_published_vocabulary_gives_llama_cpps_ids(name, gguf_keys, vectors):
    made = Tokenizer.from_gguf(gguf_keys(name))
    for text, ids in vectors(name):
        assert made.encode(text) == ids
        assert made.decode(ids) == text


@pytest.mark.parametrize("name", ["gpt-2", pytest.param("qwen2", marks=pytest.mark.slow)])
def test_what_was_read_is_written_again(name, gguf_keys):
    before = {k: v for k, v in gguf_keys(name).items() if k.startswith("tokenizer.")}
    after = Tokenizer.from_gguf(before).to_gguf()
    added = {"tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_eos_token": False}
    assert after == {**before, **added}


def test_phi_3_writes_the_same_but_for_scores_of_equal_order_and_fillers(gguf_keys):
    before = gguf_keys("phi-3")
    after = Tokenizer.from_gguf(before).to_gguf()
    assert after["tokenizer.ggml.tokens"][:32011] == before["tokenizer.ggml.tokens"][:32011]
    assert after["tokenizer.ggml.token_type"][:32011] == before["tokenizer.ggml.token_type"][:32011]
    assert set(after["tokenizer.ggml.token_type"][32011:]) == {5}  # there: "unknown"
    for key in ("model", "pre", "bos_token_id", "eos_token_id", "add_bos_token"):
        assert after[f"tokenizer.ggml.{key}"] == before[f"tokenizer.ggml.{key}"]


def test_our_keys_come_back(chatty, hard, assert_same):
    keys = chatty.to_gguf()
    after = Tokenizer.from_gguf(keys)
    assert after.tokens() == chatty.tokens()
    assert after.eos_token_ids == chatty.eos_token_ids
    assert after.to_gguf() == keys
    for text in hard:
        ids = chatty.encode(text, add_special_tokens=True)
        assert after.encode(text, add_special_tokens=True) == ids


def test_types_flags_and_ends_are_written(chatty):
    keys = chatty.to_gguf(chatty.vocab_size + 2)
    end = keys["tokenizer.ggml.tokens"].index("<|endoftext|>")
    assert keys["tokenizer.ggml.token_type"][end - 1 :] == [1, 3, 3, 3, 4] + [5] * 7
    assert keys["tokenizer.ggml.add_bos_token"] is True
    assert keys["tokenizer.ggml.add_eos_token"] is False
    assert keys["tokenizer.ggml.bos_token_id"] == end + 1
    assert keys["tokenizer.ggml.eos_token_id"] == end + 2
    assert keys["tokenizer.ggml.eot_token_id"] == end
    assert keys["tokenizer.ggml.pre"] == "llama-bpe"
    assert keys["tokenizer.chat_template"] == chatty.chat_template


def test_without_bos_the_end_is_named_so_that_no_reader_falls_back(each):
    keys = each.to_gguf()
    assert keys["tokenizer.ggml.bos_token_id"] == each.eos_token_ids[0]
    assert keys["tokenizer.ggml.add_bos_token"] is False


def test_a_pre_tokenizer_without_a_name_is_not_exported(each):
    from dataclasses import replace

    odd = replace(each, spec={**each.spec, "normalizer": {"type": "Lowercase"}})
    with pytest.raises(FeatureUnavailable, match="qwen2, llama-bpe, gpt-2"):
        odd.to_gguf()


def test_a_gguf_without_a_tokenizer_has_none():
    assert Tokenizer.from_gguf({"general.architecture": "llama"}) is None


DAMAGE = {
    "unknown model": ({"tokenizer.ggml.model": "rwkv"}, FeatureUnavailable),
    "unknown pre-tokenizer": ({"tokenizer.ggml.pre": "superbpe"}, FeatureUnavailable),
    "types too short": ({"tokenizer.ggml.token_type": [1]}, InvalidFormat),
    "eos outside": ({"tokenizer.ggml.eos_token_id": 10**6}, InvalidFormat),
    "eos is text": ({"tokenizer.ggml.eos_token_id": "x"}, InvalidFormat),
    "no scores": ({"tokenizer.ggml.model": "llama"}, InvalidFormat),
    "merge of one": ({"tokenizer.ggml.merges": ["ab"]}, InvalidFormat),
}


@pytest.mark.parametrize(("damage", "kind"), DAMAGE.values(), ids=DAMAGE.keys())
def test_keys_that_do_not_fit_are_refused(damage, kind, each):
    with pytest.raises(kind):
        Tokenizer.from_gguf(each.to_gguf() | damage)
