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


@pytest.mark.parametrize(
    ("name", "forced"),
    [
        ("gpt-2", {}),
        # `</s>`, an ordinary token in the file, is a control token to llama.cpp by its text.
        pytest.param("qwen2", {128247: 3}, marks=pytest.mark.slow),
    ],
)
def test_what_was_read_is_written_again(name, forced, gguf_keys):
    before = {k: v for k, v in gguf_keys(name).items() if k.startswith("tokenizer.")}
    after = Tokenizer.from_gguf(before).to_gguf()
    added = {"tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_eos_token": False}
    types = [forced.get(id, t) for id, t in enumerate(before["tokenizer.ggml.token_type"])]
    expected = {**before, **added, "tokenizer.ggml.token_type": types}
    # By key: pytest takes minutes to show how two dicts of 150,000 texts differ.
    assert [
        key for key in expected.keys() | after.keys() if after.get(key) != expected.get(key)
    ] == []


def test_phi_3_writes_the_same_but_for_scores_of_equal_order_and_fillers(gguf_keys):
    before = gguf_keys("phi-3")
    after = Tokenizer.from_gguf(before).to_gguf()
    assert after["tokenizer.ggml.tokens"][:32011] == before["tokenizer.ggml.tokens"][:32011]
    # `</s>`, user-defined in the file, is a control token to llama.cpp by its text.
    types = [3 if id == 2 else type for id, type in enumerate(before["tokenizer.ggml.token_type"])]
    assert after["tokenizer.ggml.token_type"][:32011] == types[:32011]
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


def flagged(chatty):
    """`chatty` with what no GGUF key can state."""
    from dataclasses import replace

    base = chatty.added[chatty.vocab_size - 7]
    more = [
        {**base, "id": chatty.vocab_size + n, "content": f"<|end_{n}|>", "special": True,
         "rstrip": n == 1, "lstrip": n == 2}
        for n in range(3)
    ]  # fmt: skip
    spec = {**chatty.spec, "added_tokens": [*chatty.spec["added_tokens"], *more]}
    spec |= {"normalizer": {"type": "NFC"}, "post_processor": None}
    spec["decoder"] = {**spec["decoder"], "trim_offsets": False}
    ends = (*chatty.eos_token_ids, *(token["id"] for token in more))
    return replace(
        chatty, spec=spec, vocab_size=chatty.vocab_size + 4, bos_token_id=None, eos_token_ids=ends
    )


def test_what_no_key_can_state_comes_back_too(chatty, hard, assert_same):
    made = flagged(chatty)
    keys = made.to_gguf()
    after = Tokenizer.from_gguf(keys)
    assert_same(made, after, [*hard, "x <|end_1|>  y  <|end_2|>"])
    assert (after.bos_token_id, len(after.eos_token_ids)) == (None, 5)
    assert (after.config, after.record) == (made.config, made.record)
    assert after.to_gguf() == keys
    said = " ".join(made.gguf_caveats)
    for word in (
        "NFC",
        "no spaces behind '<|end_1|>'",
        "no spaces before '<|end_2|>'",
        "fourth end",
    ):
        assert word in said
    alone = Tokenizer.from_gguf({key: keys[key] for key in keys if key != "apr.tokenizer"})
    assert (alone.bos_token_id, len(alone.eos_token_ids)) == (made.pad_token_id, 3)
    assert alone.spec["normalizer"] is None


CHANGES = {
    "another end": ("tokenizer.ggml.eos_token_id", 5),
    "another template": ("tokenizer.chat_template", "x"),
    "bos is added": ("tokenizer.ggml.add_bos_token", True),
    "another pre-tokenizer": ("tokenizer.ggml.pre", "qwen2"),
    "a key more": ("tokenizer.ggml.seperator_token_id", 3),
    "damaged": ("apr.tokenizer", "{"),
    "of another version": ("apr.tokenizer", '{"version": 9}'),
}


@pytest.mark.parametrize(("key", "value"), CHANGES.values(), ids=CHANGES.keys())
def test_our_key_counts_only_while_the_others_say_the_same(key, value, chatty):
    made = flagged(chatty)
    after = Tokenizer.from_gguf(made.to_gguf() | {key: value})
    if key == "tokenizer.chat_template":
        assert (after.bos_token_id, after.chat_template) == (None, "x")
    else:
        assert after.bos_token_id == made.pad_token_id
        assert after.spec["normalizer"] is None


def test_a_foreign_file_gets_no_key_of_ours(gguf_keys):
    assert "apr.tokenizer" not in Tokenizer.from_gguf(gguf_keys("gpt-2")).to_gguf()


@pytest.mark.parametrize("name", ["gpt-2", pytest.param("qwen2", marks=pytest.mark.slow), "phi-3"])
def test_a_published_folder_goes_through_gguf_whole(name, published, vectors, assert_same):
    made = published.made(name)
    after = Tokenizer.from_gguf(made.to_gguf(made.vocab_size + 3))
    assert_same(made.resized(made.vocab_size + 3), after, [text for text, _ in vectors(name)])


def test_tokens_behind_a_gap_keep_their_ids(each):
    keys = each.to_gguf(each.vocab_size + 4)
    last = each.vocab_size + 3
    keys["tokenizer.ggml.token_type"][last] = 3
    keys["tokenizer.ggml.tokens"][last] = "<|late|>"
    made = Tokenizer.from_gguf(keys)
    assert made.encode("a<|late|>") == [97, last]
    assert made.decode([97, last]) == "a<|late|>"


def test_llama_cpp_decides_some_types_by_text(chatty):
    keys = chatty.to_gguf()
    tokens = keys["tokenizer.ggml.tokens"]
    tokens[tokens.index("<tool call>")] = "<|im_start|>"
    types = keys["tokenizer.ggml.token_type"]
    types[tokens.index("<|im_end|>")] = 4
    del keys["apr.tokenizer"]
    made = Tokenizer.from_gguf(keys)
    assert made.is_special(tokens.index("<|im_end|>"))
    assert not made.is_special(tokens.index("<|im_start|>"))
    tokens[tokens.index("<|begin|>")] = "<|channel|>"
    assert not Tokenizer.from_gguf(keys).is_special(tokens.index("<|channel|>"))


def test_merges_that_scores_cannot_say_are_refused_with_the_pair(published):
    from dataclasses import replace

    made = published.made("phi-3")
    merges = list(made.spec["model"]["merges"])
    del merges[100]
    model = {**made.spec["model"], "merges": merges}
    with pytest.raises(FeatureUnavailable, match="llama.cpp joins .* no merge here does"):
        replace(made, spec={**made.spec, "model": model}).to_gguf()


def test_a_normalizer_that_llama_cpp_lacks_is_refused_with_the_text(published):
    from dataclasses import replace

    made = published.made("phi-3")
    steps = [{"type": "Lowercase"}, *made.spec["normalizer"]["normalizers"]]
    spec = {**made.spec, "normalizer": {"type": "Sequence", "normalizers": steps}}
    odd = replace(made, spec=spec)
    with pytest.raises(FeatureUnavailable, match="Hello world"):
        odd.to_gguf()
    assert any("otherwise" in caveat for caveat in odd.gguf_caveats)
