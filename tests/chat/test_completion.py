"""Prompts read and continued: to the byte, with the bos of the tokenizer, or refused."""

import dataclasses
import io
import json
import sys

import pytest

from apr.chat import complete, open_text_model, read_prompt
from apr.chat.completion import prompt_ids
from apr.errors import InferenceError, InvalidFormat, NotFound, UsageError


@pytest.fixture(scope="module")
def model(plain_apr):
    return open_text_model(plain_apr, device="cpu", threads=1)


def test_a_prompt_comes_from_an_argument_a_file_or_stdin_to_the_byte(tmp_path, monkeypatch):
    file = tmp_path / "prompt.txt"
    file.write_bytes("größe\r\n".encode())
    assert read_prompt("text", None) == "text"
    assert read_prompt(None, file) == "größe\r\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("中\n".encode())))
    assert read_prompt("-", None) == "中\n"


def test_no_prompt_two_prompts_and_empty_ones_are_usage_errors(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    for argument, file in ((None, None), ("a", tmp_path / "b"), ("", None)):
        with pytest.raises(UsageError, match="--file"):
            read_prompt(argument, file)
    with pytest.raises(NotFound, match="cannot be read"):
        read_prompt(None, tmp_path / "none.txt")
    (tmp_path / "latin").write_bytes(b"gr\xf6sse")
    with pytest.raises(InvalidFormat, match="not UTF-8 .byte 2"):
        read_prompt(None, tmp_path / "latin")


def test_the_text_is_that_of_the_ids_and_streams_as_it_comes(model):
    pieces = []
    done = complete(model, "def f(x):", max_tokens=20, on_text=pieces.append)
    assert done.generation.text == "".join(pieces)
    assert done.generation.text == model.tokenizer.decode(
        done.generation.ids, skip_special_tokens=True
    )
    document = json.loads(json.dumps(done.to_json()))
    assert document["text"] == done.generation.text
    assert document["statistics"]["generated_tokens"] == len(document["ids"])
    assert {"prompt_ids", "sampling", "plan", "receipt", "notes", "model"} <= set(document)


def test_without_a_number_it_goes_on_to_the_end_of_a_small_context(model):
    done = complete(model, "def f(x):", ignore_eos=True)
    assert done.generation.stop_reason == "context"
    assert done.generation.prompt_tokens + len(done.generation.ids) == 129


def test_draws_without_a_seed_take_a_fresh_one_and_record_it(model):
    first = complete(model, "x", max_tokens=12, sampling={"temperature": 1.5})
    again = complete(model, "x", max_tokens=12, sampling=first.sampling)
    assert again.generation.ids == first.generation.ids
    assert "seed" not in complete(model, "x", max_tokens=1).sampling


def test_bos_is_put_before_a_prompt_and_eos_is_not_put_behind_it(tokenizer):
    eos = tokenizer.eos_token_ids[0]
    text = tokenizer.tokens()[eos]
    around = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": text, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": text, "type_id": 0}},
        ],
        "pair": [],
        "special_tokens": {text: {"id": text, "ids": [eos], "tokens": [text]}},
    }
    framed = dataclasses.replace(tokenizer, spec={**tokenizer.spec, "post_processor": around})
    plain = tokenizer.encode("def f")
    ids, notes = prompt_ids(framed, "def f")
    assert ids == [eos, *plain]
    assert "left out" in notes[0]
    assert prompt_ids(framed, "def f", raw=True) == (plain, [])
    _, notes = prompt_ids(framed, text + "def f")
    assert "adds another" in notes[0]


def test_a_prompt_longer_than_the_context_is_an_error_with_both_figures(model):
    with pytest.raises(InferenceError, match=r"\d+ prompt tokens are too many.*128") as caught:
        complete(model, "word " * 200)
    assert caught.value.exit_code == 8


def test_ctrl_c_keeps_the_text_so_far(model, monkeypatch):
    pieces = []

    def interrupt(piece):
        pieces.append(piece)
        if len(pieces) == 3:
            raise KeyboardInterrupt

    done = complete(model, "def f(x):", max_tokens=60, on_text=interrupt)
    assert done.generation.stop_reason == "interrupted"
    assert done.generation.text.startswith("".join(pieces))
