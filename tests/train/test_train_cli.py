"""`apr pretrain` as a person and a program meet it: one line on stderr, one document on stdout."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from apr.cli import main

PRESET = ["--preset", "nanogpt-cpu", "--batch-size", "2", "--num-steps", "2", "--threads", "1"]


def apr(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "apr.cli.main", "pretrain", *args],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=120,
        check=False,
    )


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    """`here(*arguments)`: the same in this process, in an empty folder: exit code and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["apr"])

    def call(*arguments):
        return main.run(["pretrain", *arguments]), capsys.readouterr().err

    return call


@pytest.fixture
def data(corpus, tokenizer_dir):
    return ["--dataset", str(corpus), "--tokenizer", str(tokenizer_dir), "--device", "cpu"]


@pytest.mark.slow
def test_json_is_the_only_thing_on_stdout_and_the_table_on_stderr(data, tmp_path):
    done = apr(
        *data, *PRESET, "--run-dir", "run", "--json",
        "--allow-under-provisioned", "a test", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["steps"] == 2 and found["budget"]["bypassed"] == "a test"
    for word in ("machine: cpu", "data budget", "BYPASSED: a test", "apr qa run/model.apr"):
        assert word in done.stderr


@pytest.mark.slow
def test_a_refusal_is_exit_5_with_the_budget_in_the_json(data, tmp_path):
    done = apr(*data, *PRESET, "--run-dir", "run", "--json", cwd=tmp_path)
    assert done.returncode == 5
    document = json.loads(done.stdout)
    assert document["error"]["exit_code"] == 5 and document["budget"]["verdict"] == "refusal"
    assert "refused before step 1" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_missed_target_is_exit_5_after_everything_is_written(data, tmp_path):
    done = apr(
        *data, *PRESET, "--run-dir", "run", "--json", "--target-val-loss", "0.5",
        "--allow-under-provisioned", "a test", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 5
    assert json.loads(done.stdout)["target_met"] is False
    assert "missed" in done.stderr and (tmp_path / "run" / "model.apr").exists()


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--preset", "1m", "--family", "bert"], 2, ["--family", "qwen3"]),
        (["--preset", "7b"], 2, ["--preset", "nanogpt-cpu"]),
        (["--preset", "1m", "--mode", "continue"], 2, ["--init FILE.apr"]),
        (["--preset", "1m", "--lr", "fast"], 2, ["--lr"]),
        (["--preset", "1m", "--config", "missing.yaml"], 3, ["missing.yaml"]),
        (["--preset", "1m", "--dtype", "float16"], 2, ["--dtype bfloat16"]),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_its_exit_code(data, here, tmp_path, args, code, words):
    found, err = here(*data, "--run-dir", "run", *args)
    assert found == code, err
    assert len(err.strip().splitlines()) == 1
    for word in words:
        assert word in err
    assert not (tmp_path / "run").exists()


def test_cuda_without_cuda_names_both(data, here):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    code, err = here(*data[:-1], "cuda", "--preset", "1m", "--run-dir", "run")
    assert code == 9
    assert "cuda was asked for" in err
