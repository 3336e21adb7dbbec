"""Chunks: where bos stands, what is scored, what a text must have."""

import json

import pytest

from apr.errors import InvalidFormat, NotFound
from apr.eval import chunks


def read(path, tokenizer, context=16, most=None):
    return chunks.read(str(path), tokenizer, context, most, "text")


def test_bos_replaces_the_first_id_of_each_chunk_and_the_rest_stays(tmp_path, tokenizer, with_bos):
    file = tmp_path / "t.txt"
    file.write_text("def main(): return 'a text of some length'\n" * 9, encoding="utf-8")
    ids = tokenizer.encode(file.read_text(encoding="utf-8")[:-1])
    plain = read(file, tokenizer)
    assert plain.chunks.ravel().tolist() == ids[: plain.chunks.size]
    assert (plain.first, plain.scored.shape[1]) == (8, 7)

    found = read(file, with_bos)
    stream = [with_bos.bos_token_id, *ids]
    for number, chunk in enumerate(found.chunks.tolist()):
        assert chunk[0] == with_bos.bos_token_id
        assert chunk[1:] == stream[number * 16 + 1 : number * 16 + 16]
    assert found.tokens_read == len(ids) + 1
    assert read(file, with_bos, most=3).chunks.tolist() == found.chunks[:3].tolist()


def test_documents_are_joined_by_the_end_of_text_token_and_quoted_tokens_are_text(
    tmp_path, tokenizer
):
    texts = ["one <|endoftext|> quoted", "two\n", "three"]
    file = tmp_path / "t.jsonl"
    file.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    end = tokenizer.eos_token_ids[0]
    parts = [tokenizer.encode(text, parse_special=False) for text in texts]
    expected = [*parts[0], end, *parts[1], end, *parts[2]]
    found = read(file, tokenizer, context=4)
    assert found.chunks.ravel().tolist() == expected[: found.chunks.size]
    assert found.tokens_read == len(expected)


def test_a_text_shorter_than_two_chunks_names_both_figures(tmp_path, tokenizer):
    file = tmp_path / "t.txt"
    file.write_text("some words, not many of them, and no more", encoding="utf-8")
    count = len(tokenizer.encode(file.read_text(encoding="utf-8")))
    message = rf"gives {count} tokens, 2 chunks of 64 need 128; .*--context {count // 2} or smaller"
    with pytest.raises(InvalidFormat, match=message):
        read(file, tokenizer, 64)
    assert len(read(file, tokenizer, count // 2).chunks) == 2
    with pytest.raises(InvalidFormat, match="2 chunks"):
        read(file, tokenizer, 64, most=1)


def test_an_empty_or_missing_text_is_an_error(tmp_path, tokenizer):
    empty = tmp_path / "empty.txt"
    empty.write_bytes(b"")
    with pytest.raises(InvalidFormat, match="no text found"):
        read(empty, tokenizer)
    with pytest.raises(NotFound):
        read(tmp_path / "missing.txt", tokenizer)


def test_bytes_of_the_scored_ids_are_those_of_the_text(tmp_path, tokenizer):
    text = "größer, 中文, 👍🏽 und so weiter\n" * 3
    ids = tokenizer.encode(text)
    lengths = chunks.ByteLengths(tokenizer)
    assert lengths.of(ids).sum() == len(text.encode())
    assert lengths.of([tokenizer.eos_token_ids[0]]).tolist() == [0]
