"""Streaming against the tokenizers library's own decoding of the whole."""

import random
from pathlib import Path

import pytest

from apr import tokenizer as tokenizers
from apr.engine import StreamDecoder

TEXT = "Größe 中文字 😀👩‍💻 naïve Привет\n"


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.train(iter([TEXT] * 3), 262, "qwen2")


def test_pieces_joined_are_the_text_and_no_piece_holds_half_a_character(tokenizer):
    ids = tokenizer.encode(TEXT * 3)
    pieces = StreamDecoder(tokenizer).pieces(ids)
    assert "".join(pieces) == TEXT * 3 == tokenizer.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)
    assert "" in pieces  # some token ends inside a character


def test_invalid_bytes_become_the_same_replacement_characters_as_in_the_library(tokenizer):
    rng = random.Random(1)
    for _ in range(300):
        ids = [rng.randrange(tokenizer.vocab_size) for _ in range(rng.randrange(1, 24))]
        assert "".join(StreamDecoder(tokenizer).pieces(ids)) == tokenizer.decode(ids)


def test_a_character_that_never_ends_is_shown_when_the_text_does(tokenizer):
    ids = tokenizer.encode("😀")
    assert len(ids) > 1
    decoder = StreamDecoder(tokenizer)
    assert [decoder.feed(i) for i in ids[:-1]] == [""] * (len(ids) - 1)
    assert decoder.finish() == "\ufffd" == tokenizer.decode(ids[:-1])


def test_special_tokens_are_shown_or_left_out_as_in_the_library(tokenizer):
    eos = tokenizer.eos_token_ids[0]
    ids = [*tokenizer.encode("ab"), eos, *tokenizer.encode("cd")]
    assert "".join(StreamDecoder(tokenizer).pieces(ids)) == "ab<|endoftext|>cd"
    assert "".join(StreamDecoder(tokenizer, skip_special_tokens=True).pieces(ids)) == "abcd"


@pytest.mark.parametrize("name", ["phi-3", "mistral-v3"])
def test_sentencepiece_streams_what_decoding_the_whole_gives(name):
    folder = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "tokenizers" / name
    if not folder.is_dir():
        pytest.skip("the published tokenizers are not at hand")
    published = tokenizers.Tokenizer.from_directory(folder)
    rng = random.Random(2)
    cases = [published.encode(text) for text in (TEXT, " spaces  first", "\n", "", "a\x00b")]
    cases += [
        [rng.randrange(400) for _ in range(rng.randrange(1, 24))]  # control and byte tokens too
        for _ in range(300)
    ]
    for ids in cases:
        assert "".join(StreamDecoder(published).pieces(ids)) == published.decode(ids), ids
