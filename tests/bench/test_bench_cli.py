"""The verb: formats of output, the floor's exit code, errors as JSON."""

import csv
import io
import json

import pytest

from apr.bench import memory, verb
from apr.cli.main import run

SIZES = ["-p", "8", "-n", "4", "-r", "2", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _small_probe(monkeypatch):
    monkeypatch.setattr(memory, "_CPU_BUFFER", 1 << 20)


@pytest.mark.parametrize("style", ["table", "md", "json", "csv"])
def test_each_format_holds_both_tests_and_stdout_holds_nothing_else(checkpoint, capsys, style):
    assert run(["bench", str(checkpoint()), *SIZES, "-o", style]) == 0
    out = capsys.readouterr().out
    if style == "json":
        assert [r["test"] for r in json.loads(out)["results"]] == ["pp8", "tg4"]
    elif style == "csv":
        assert [r["test"] for r in csv.DictReader(io.StringIO(out))] == ["pp8", "tg4"]
    else:
        assert "pp8" in out
        assert "tg4" in out
        assert "sha256" in out


def test_a_missed_floor_exits_5_with_the_record_on_stdout_and_in_the_file(
    checkpoint, capsys, tmp_path
):
    record = tmp_path / "record.json"
    arguments = ["bench", str(checkpoint()), *SIZES, "--json", "--output", str(record)]
    assert run([*arguments, "--floor", "1e12"]) == 5
    captured = capsys.readouterr()
    shown = json.loads(captured.out)
    assert shown["floor"]["passed"] is False
    assert json.loads(record.read_text()) == shown
    assert "below the floor of 1e+12" in captured.err
    assert run([*arguments, "--floor", "0.001"]) == 7  # the file exists: before measuring
    capsys.readouterr()
    assert run([*arguments, "--floor", "0.001", "--force"]) == 0


def test_could_not_run_exits_8_and_not_5(checkpoint, capsys, monkeypatch):
    def broken(self):
        raise RuntimeError("no")

    monkeypatch.setattr(verb.Workload, "run", broken)
    assert run(["bench", str(checkpoint()), *SIZES, "--floor", "1", "-o", "json"]) == 8
    assert json.loads(capsys.readouterr().out)["error"]["kind"] == "inference"


def test_usage_errors_exit_2_and_missing_files_3_with_json(checkpoint, capsys, tmp_path):
    assert run(["bench", str(checkpoint()), "-p", "4096"]) == 2
    assert run(["bench", str(checkpoint("b.apr")), "-o", "xml"]) == 2
    capsys.readouterr()
    for style in (["--json"], ["-o", "json"]):
        assert run(["bench", str(tmp_path / "absent.apr"), *style]) == 3
        assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == 3


def test_two_files_print_the_paired_ratio(checkpoint, capsys):
    a, b = checkpoint("a.apr"), checkpoint("b.apr")
    assert run(["bench", str(a), *SIZES, "--against", str(b), "-o", "md"]) == 0
    out = capsys.readouterr().out
    assert out.count("| pp8 |") == 2
    assert "times the speed of" in out


def test_guesses_are_measured_apart_on_a_text_and_nowhere_else(checkpoint, capsys, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("a small text, a small", encoding="utf-8")
    path = str(checkpoint())
    flags = ["-p", "0", "-n", "20", "-r", "2", "--device", "cpu", "-t", "1", "--json"]
    assert run(["bench", path, *flags, "--speculate", "4", "--text", str(text)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [r["test"] for r in found["results"]] == ["tg20", "tg20@text", "tg20@text+4"]
    plain, guessed = found["results"][1:]
    assert plain["speculation"] is None
    assert plain["mbu"] is not None
    assert guessed["mbu"] is None
    assert guessed["speculation"]["most"] == 4
    assert guessed["speculation"]["drafted_tokens"] >= guessed["speculation"]["accepted_tokens"]
    assert any("guesses were right" in note for note in found["notes"])
    for flags, what in (
        (["--speculate", "4"], "write --speculate N --text FILE"),
        (["--text", str(text)], "write --speculate N --text FILE"),
        (["--speculate", "65", "--text", str(text)], "is not between 1 and 64"),
        (
            ["--speculate", "4", "--text", str(text), "-n", "47"],
            "do not fit into the context of 48",
        ),
        (["--speculate", "4", "--text", str(text), "--against", path], "leave --against out"),
    ):
        assert run(["bench", path, "-p", "0", "-r", "1", "--device", "cpu", *flags]) == 2
        captured = capsys.readouterr()
        assert what in captured.err
        assert captured.out == ""
