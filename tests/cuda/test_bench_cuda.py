"""The GPU benchmark's script runs through, on a model of almost nothing."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_cuda.py"


@pytest.mark.usefixtures("large_programs")
@pytest.mark.parametrize("dtype", ["BF16", "Q4_0"])
def test_the_script_measures_and_writes_its_figures(dtype, tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("bench_cuda", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    target = tmp_path / "cuda.json"
    arguments = ["--case", f"tiny-{dtype}", "--device", "cpu", "--steps", "1", "--prompt", "9"]
    monkeypatch.setattr(sys, "argv", ["bench_cuda.py", *arguments, "--json", str(target)])
    assert module.main() == 0
    (row,) = json.loads(target.read_text(encoding="utf-8"))["rows"]
    assert row["decode_wall_tok_s"] > 0 and row["prefill_tok_s"] > 0
    assert row["plan"]["stored"].keys() == {dtype, "F32"}
    assert f"tiny-{dtype}" in capsys.readouterr().out
