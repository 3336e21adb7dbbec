"""Encoding and decoding: exact on hard text, honest on what is no text."""

import pytest

from apr.errors import InvalidFormat, NotFound
from apr.tokenizer import Tokenizer


@pytest.mark.parametrize("name", ["gpt-2", "qwen2", "phi-3"])
def test_published_vectors_come_out_exactly(name, published, vectors):
    made = published.made(name)
    for text, ids in vectors(name):
        assert made.encode(text) == ids
        assert made.decode(ids) == text


def test_hard_text_goes_round(each, hard):
    for text in hard:
        ids = each.encode(text)
        assert each.decode(ids) == text
        assert b"".join(map(each.token_bytes, ids)) == text.encode()


def test_a_batch_is_the_same_as_one_by_one_with_control_text_as_text(each, hard):
    assert each.encode_batch(hard) == [each.encode(t, parse_special=False) for t in hard]


def test_end_of_text_in_a_document_does_not_end_it_but_in_a_prompt_it_does(each):
    end = each.eos_token_ids[0]
    assert each.encode("a<|endoftext|>b") == [97, end, 98]
    [ids] = each.encode_batch(["a<|endoftext|>b"])
    assert end not in ids
    assert each.decode(ids) == "a<|endoftext|>b"


def test_token_bytes_are_exact_inside_a_character(each):
    ids = each.encode("\U0001e5d0")
    assert len(ids) > 1
    assert b"".join(map(each.token_bytes, ids)) == "\U0001e5d0".encode()
    assert "\ufffd" in each.decode(ids[:1])


def test_special_tokens_can_be_left_out_of_the_text(each):
    end = each.eos_token_ids[0]
    assert each.decode([97, end]) == "a<|endoftext|>"
    assert each.decode([97, end], skip_special_tokens=True) == "a"
    assert each.is_special(end)
    assert not each.is_special(97)
    assert each.token_bytes(end) == b"<|endoftext|>"


def test_fillers_are_named_are_never_produced_and_decode_to_nothing(each):
    wide = each.resized(each.vocab_size + 3)
    assert len(wide.tokens()) == wide.vocab_size
    assert wide.tokens()[-3:] == ["<|filler_0|>", "<|filler_1|>", "<|filler_2|>"]
    first = each.vocab_size
    assert wide.is_filler(first)
    assert not wide.is_special(first)
    assert not wide.is_filler(first - 1)
    assert wide.token_bytes(first) == b""
    assert wide.decode([97, first, 98]) == "ab"
    assert first not in wide.encode("<|filler_0|>")
    assert wide.fingerprint == each.fingerprint


def test_a_filler_never_takes_a_name_that_is_taken(chatty):
    from dataclasses import replace

    taken = {**chatty.spec["added_tokens"][-1], "content": "<|filler_1|>"}
    spec = {**chatty.spec, "added_tokens": [*chatty.spec["added_tokens"][:-1], taken]}
    tokens = replace(chatty, spec=spec).tokens()
    assert len(set(tokens)) == len(tokens)
    assert tokens[-5:] == [f"<|filler_{n}|>" for n in (0, 2, 3, 4, 5)]
    assert tokens.count("<|filler_1|>") == 1


def test_resizing_below_the_real_tokens_is_refused(each):
    with pytest.raises(InvalidFormat, match="999"):
        each.resized(each.vocab_size - 1)


@pytest.mark.parametrize("id", [-1, 1000, 10**30])
def test_an_id_outside_the_vocabulary_is_named(each, id):
    for act in (each.token_bytes, each.is_special, lambda i: each.decode([5, i])):
        with pytest.raises(InvalidFormat, match=f"{id} is outside the vocabulary of 1000"):
            act(id)


def test_a_lone_surrogate_is_an_error_that_says_where(each):
    with pytest.raises(InvalidFormat, match="character 1 is a lone surrogate"):
        each.encode("a\udc80")
    with pytest.raises(InvalidFormat, match="text 1 of the batch"):
        each.encode_batch(["fine", "a\udc80"])


def test_a_missing_folder_and_an_empty_one_are_not_found(tmp_path):
    for path in (tmp_path, tmp_path / "none", tmp_path / "x.txt"):
        with pytest.raises(NotFound):
            Tokenizer.from_directory(path)


def test_truncation_and_padding_of_the_file_are_not_applied(each, tmp_path):
    from dataclasses import replace

    limits = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    limited = replace(each, spec={**each.spec, "truncation": limits})
    assert limited.encode("a b c d e f g h") == each.encode("a b c d e f g h")
    assert limited.fingerprint == each.fingerprint
