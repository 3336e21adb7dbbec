"""Training: sizes, layout, determinism, and what it refuses."""

import json

import pytest

from apr.errors import InvalidFormat, UsageError
from apr.tokenizer import pretokenizers, train

MAIN = ["qwen2", "llama-bpe", "gpt-2"]
TEXT = ["the cat sat on the mat, the cat sat\n" * 20, "another document <|endoftext|> with it"]


@pytest.mark.parametrize("pre", MAIN)
def test_257_tokens_are_the_bytes_and_the_end(pre):
    made = train(iter(TEXT), 257, pre)
    assert made.vocab_size == 257
    assert made.merges() == []
    assert [made.token_bytes(i) for i in range(256)] == [bytes([i]) for i in range(256)]
    assert made.encode("aé\x00") == [97, 0xC3, 0xA9, 0]
    assert made.tokens()[256] == "<|endoftext|>"
    assert (made.bos_token_id, made.eos_token_ids, made.pad_token_id) == (None, (256,), 256)


def test_ids_are_bytes_then_merges_in_order_then_the_end(each):
    tokens = each.tokens()
    made_by_merges = [m.replace(" ", "") for m in each.merges()]
    assert tokens[256:-1] == list(dict.fromkeys(made_by_merges))
    assert tokens[-1] == "<|endoftext|>"
    assert each.vocab_size == len(tokens) == 1000


def test_training_twice_gives_the_same_tokenizer(mixed):
    one, two = (train(iter(mixed[:40]), 600, "qwen2") for _ in range(2))
    assert one.spec == two.spec
    assert one.fingerprint == two.fingerprint


def test_the_pre_tokenizer_changes_the_fingerprint(trained):
    assert len({trained[pre].fingerprint for pre in MAIN}) == 3


def test_too_little_text_says_what_was_asked_and_what_came_out():
    made = train(iter(["hello hello hello"]), 5000, "gpt-2")
    assert made.record["asked_vocab_size"] == 5000
    assert made.record["vocab_size"] == made.vocab_size == len(made.tokens()) < 300


def test_the_record_counts_documents_and_bytes():
    record = train(iter(["aé", "bc"]), 257, "qwen2").record
    assert (record["documents"], record["bytes"], record["merges"]) == (2, 5, 0)


def test_ignore_merges_is_what_llama_cpp_sets_for_the_name(trained):
    found = {pre: trained[pre].spec["model"]["ignore_merges"] for pre in MAIN}
    assert found == {"qwen2": False, "llama-bpe": True, "gpt-2": False}


def test_no_normalizer_and_nothing_added_around_a_text(each):
    assert each.spec["normalizer"] is None
    assert each.encode("a", add_special_tokens=True) == each.encode("a")
    assert each.added_around == ([], [])


@pytest.mark.parametrize("size", [-1, 0, 256])
def test_a_vocabulary_without_room_for_the_bytes_is_a_usage_error(size):
    with pytest.raises(UsageError, match="257"):
        train(iter(TEXT), size, "qwen2")


def test_every_offered_name_trains_under_its_own_name_and_aliases():
    for name in (*pretokenizers.offered(), "smollm", "llama4"):
        made = train(iter(TEXT), 257, name)
        assert made.pre_type == made.record["pre_type"] == name
    with pytest.raises(UsageError, match="without a name"):
        train(iter(TEXT), 257, "default")


def test_an_unknown_pre_tokenizer_names_those_offered():
    with pytest.raises(UsageError, match="qwen2, llama-bpe, gpt-2"):
        train(iter(TEXT), 300, "bert")


@pytest.mark.parametrize("texts", [[], ["", ""]])
@pytest.mark.parametrize("size", [257, 300])
def test_no_text_is_an_error(texts, size):
    with pytest.raises(InvalidFormat, match="holds no text"):
        train(iter(texts), size, "qwen2")


@pytest.mark.parametrize("size", [257, 300])
def test_a_lone_surrogate_is_named_by_document(size):
    with pytest.raises(InvalidFormat, match="document 1: character 2 is a lone surrogate"):
        train(iter(["fine", "ab\ud800"]), size, "qwen2")


def test_an_error_of_the_source_comes_through_as_it_is():
    def broken():
        yield "some text"
        raise InvalidFormat("x.jsonl:7", "broken record")

    with pytest.raises(InvalidFormat, match=r"x\.jsonl:7: broken record"):
        train(broken(), 300, "qwen2")


def test_the_spec_is_json_as_it_stands(each):
    assert json.loads(json.dumps(each.spec)) == each.spec


@pytest.mark.parametrize("pre", MAIN)
def test_a_line_without_any_border_is_learned_from_in_parts(pre):
    """One piece of 200,000 letters would take the trainer minutes; encoding takes it whole."""
    line = "x" * 200_000
    made = train(iter([line]), 300, pre)
    assert max(len(made.token_bytes(i)) for i in range(made.vocab_size)) <= 256
    assert made.decode(made.encode(line)) == line
