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
