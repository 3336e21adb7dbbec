"""The verb: tables and JSON on stdout, exit codes, the record's file."""

import json

import pytest

from apr import eval as evaluating
from apr.cli.main import run

PROBLEM = {"task_id": "T/0", "prompt": "def f(x):\n", "entry_point": "f",
           "test": "def check(c):\n    assert c(2) == 4"}  # fmt: skip
CODE = ["--max-tokens", "4", "--device", "cpu"]


@pytest.fixture
def problems(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(PROBLEM) + "\n", encoding="utf-8")
    return str(path)


def test_perplexity_as_table_and_as_json(tiny_apr, text_file, capsys, tmp_path):
    record = tmp_path / "record.json"
    call = ["eval", str(tiny_apr), "--dataset", str(text_file), "--context", "32", "--chunks", "2",
            "--device", "cpu", "--output", str(record)]  # fmt: skip
    assert run(call) == 0
    out = capsys.readouterr().out
    for word in ("perplexity", "bits per byte", " ± ", "sha256", "2 of 32 tokens"):
        assert word in out
    assert run([*call, "--json"]) == 7  # the file exists
    capsys.readouterr()
    assert run([*call, "--json", "--force"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == json.loads(record.read_text())
    assert shown["results"][0]["scored_tokens"] == 30
    assert shown["results"][0]["perplexity"]["standard_error"] > 0
    assert shown["receipt"]["command"].startswith("apr eval")


@pytest.mark.parametrize("task", ["humaneval", "python-validity"])
def test_tasks_as_table_and_as_json_and_the_floor(tiny_apr, problems, capsys, task):
    call = ["eval", str(tiny_apr), "--task", task, "--dataset", problems, *CODE]
    call += ["--weak-confinement"] if task == "humaneval" else []
    assert run(call) == 0
    out = capsys.readouterr().out
    assert "pass@1" in out or "valid Python" in out
    assert "confined by" in out and "level:" in out
    assert run([*call, "--floor", "1", "--json"]) == 5
    captured = capsys.readouterr()
    shown = json.loads(captured.out)
    assert shown["floor"] == {"asked": 1.0, "measured": 0.0, "passed": False}
    assert "below the floor of 1" in captured.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--samples", "3"], 2, "--samples: has no effect on --task perplexity"),
        (["--floor", "0.5"], 2, "--floor: has no effect"),
        (["--task", "humaneval", "--context", "8"], 2, "--context: has no effect on --task hum"),
        (["--task", "chess"], 2, "'chess' is unknown; write perplexity, humaneval or python-val"),
        (["--context", "4096"], 2, "--context 4096: is more than the model's context of 128"),
        (["--task", "humaneval"], 4, "line 1: no JSON"),
        (["--dataset", "nowhere.txt"], 3, "nowhere.txt: no such file or folder"),
    ],
)
def test_what_cannot_be_is_one_line_and_its_exit_code(
    tiny_apr, text_file, capsys, arguments, code, message
):
    call = ["eval", str(tiny_apr), "--dataset", str(text_file), "--device", "cpu", *arguments]
    assert run(call) == code
    err = capsys.readouterr().err.strip()
    assert message in err
    assert err.count("\n") == 0
    assert run([*call, "--json"]) == code
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == code


def test_an_interrupt_is_one_line_and_leaves_no_record(
    tiny_apr, text_file, capsys, monkeypatch, tmp_path
):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    record = tmp_path / "record.json"
    monkeypatch.setattr(evaluating, "perplexity", stopped)
    call = ["eval", str(tiny_apr), "--dataset", str(text_file), "--output", str(record), "--json"]
    assert run(call) == 130
    captured = capsys.readouterr()
    assert json.loads(captured.out)["error"]["kind"] == "interrupted"
    assert captured.err.strip() == "error: apr: stopped by the user"
    assert not record.exists()
