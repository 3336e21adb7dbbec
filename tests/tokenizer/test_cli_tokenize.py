"""`apr tokenize` from the outside: results, notes, errors and exit codes."""

import json

import pytest

from apr.cli.main import run
from apr.tokenizer import Tokenizer


@pytest.fixture
def corpus(tmp_path):
    for number in range(12):
        text = f"document {number} " + "some words that repeat, some words. " * (20 + number)
        (tmp_path / f"{number}.txt").write_text(text)
    return tmp_path


def test_train_writes_a_folder_that_encode_takes(corpus, tmp_path, capsys):
    out, shards = tmp_path / "tok", tmp_path / "shards"
    source = str(corpus / "*.txt")
    command = ["tokenize", "train", "--dataset", source, "--vocab-size", "270", "--pre", "gpt-2"]
    assert run([*command, "-o", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["vocab_size"] == result["asked_vocab_size"] == 270
    assert result["documents"] == 12
    assert result["receipt"]["command"]
    made = Tokenizer.from_directory(out)
    assert (made.vocab_size, made.pre_type) == (270, "gpt-2")
    assert made.fingerprint == result["fingerprint"]
    encode = ["tokenize", "encode", "--dataset", source, "--tokenizer", str(out), "-o", str(shards)]
    assert run([*encode, "--json"]) == 0
    built = json.loads(capsys.readouterr().out)
    assert built["tokenizer_fingerprint"] == made.fingerprint
    assert built["tokens"] > 0
    assert run(encode) == 0
    assert "reused" in capsys.readouterr().err


def test_fewer_tokens_than_asked_is_said_and_recorded(corpus, tmp_path, capsys):
    out = str(tmp_path / "tok")
    command = ["tokenize", "train", "--dataset", str(corpus / "0.txt"), "--pre", "qwen2"]
    assert run([*command, "--vocab-size", "9000", "-o", out]) == 0
    said = capsys.readouterr()
    assert "asked for 9,000 tokens, the text gives" in said.err
    record = json.loads((tmp_path / "tok" / "apr-tokenizer.json").read_text())
    assert record["training"]["asked_vocab_size"] == 9000
    assert record["training"]["vocab_size"] == record["vocab_size"] < 400


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"--vocab-size": "256"}, 2, "257"),
        ({"--vocab-size": "many"}, 2, "--vocab-size"),
        ({"--pre": "bert"}, 2, "qwen2, llama-bpe, gpt-2"),
        ({"--on-bad-record": "maybe"}, 2, "skip or stop"),
        ({"--dataset": "nowhere.txt"}, 3, "nowhere.txt"),
        ({"--dataset": "empty.txt"}, 4, "no text"),
        ({"-o": "taken"}, 7, "--force"),
        ({"-o": "0.txt/tok"}, 7, "0.txt"),
    ],
)
def test_bad_input_is_one_line_and_its_exit_code(
    changes, code, message, corpus, monkeypatch, capsys
):
    monkeypatch.chdir(corpus)
    (corpus / "taken").mkdir()
    (corpus / "empty.txt").write_text("")
    flags = {"--dataset": "0.txt", "--vocab-size": "300", "--pre": "qwen2", "-o": "out"} | changes
    before = sorted(corpus.rglob("*"))
    assert run(["tokenize", "train", *(part for pair in flags.items() for part in pair)]) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1]
    assert lines[-1].startswith("error: ")
    assert sorted(corpus.rglob("*")) == before


def test_a_folder_is_replaced_with_force(corpus, tmp_path, capsys):
    command = ["tokenize", "train", "--dataset", str(corpus / "0.txt"), "--pre", "qwen2"]
    command += ["-o", str(tmp_path / "tok"), "--vocab-size"]
    assert run([*command, "257"]) == 0
    assert run([*command, "260", "--force"]) == 0
    assert Tokenizer.from_directory(tmp_path / "tok").vocab_size == 260


def test_importing_the_verb_loads_no_library():
    import subprocess
    import sys

    heavy = {"torch", "tokenizers", "rich", "matplotlib", "transformers"}
    code = f"import sys, apr.cli.tokenize, apr.tokenizer; print(sorted({heavy} & {{*sys.modules}}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
