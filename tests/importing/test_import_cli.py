"""The verb: one JSON document on stdout, one line on stderr, the documented exit codes."""

import json

import pytest

from apr.cli.main import run
from apr.formats import open_model


def call(capsys, *words):
    code = run(["import", *map(str, words)])
    return code, capsys.readouterr()


def test_report_is_one_json_document(folder, tmp_path, capsys):
    out = tmp_path / "m.apr"
    words = (folder, "-o", out, "--no-peers", "--threads", 1, "--quantize", "bf16", "--name", "x")
    code, shown = call(capsys, *words, "--json")
    report = json.loads(shown.out)
    assert code == 0 and report["passed"] and report["format"] == "apr"
    assert report["quantize"] == "bf16" and set(report["dtypes"]) == {"BF16"}
    assert open_model(out).metadata["name"] == "x"


def test_proof_is_shown(folder, tmp_path, capsys):
    code, shown = call(capsys, folder, "-o", tmp_path / "m.apr", "--no-peers", "--threads", 1)
    assert code == 0 and "21 of 21 equal to the bit" in shown.out
    assert "left out by --no-peers" in shown.out


@pytest.mark.parametrize(
    ("words", "exit_code"),
    [
        (["SOURCE", "-o", "m.gguf"], 2),
        (["SOURCE", "-o", "m.apr", "--quantize", "q4_0"], 2),
        (["SOURCE"], 2),
        (["nowhere", "-o", "m.apr"], 3),
    ],
)
def test_mistakes_have_their_exit_code_and_one_line(
    folder, tmp_path, capsys, monkeypatch, words, exit_code
):
    monkeypatch.chdir(tmp_path)
    code, shown = call(capsys, *[folder if w == "SOURCE" else w for w in words], "--json")
    assert code == exit_code
    assert json.loads(shown.out)["error"]["exit_code"] == exit_code
    assert shown.err.startswith("error: ") and shown.err.count("\n") == 1
    assert not list(tmp_path.iterdir())
