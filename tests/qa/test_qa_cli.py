"""The verb: exit codes, one JSON document on stdout whatever happens, a table for people."""

import json

import pytest

from apr import native
from apr.cli.main import run


def test_a_sound_model_exits_0_with_a_table_on_stdout(make_tiny, tmp_path, capsys):
    path = make_tiny(trained=True).write(tmp_path / "m.apr")
    assert run(["qa", str(path), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "training_probe" in out
    assert "PASS: all 12 executed gates passed, 1 skipped" in out


@pytest.mark.skipif(bool(native.unavailable()), reason=native.unavailable())
def test_the_gates_judge_the_cpu_kernels_where_these_are_asked_for(make_tiny, tmp_path, capsys):
    path = str(make_tiny(trained=True).write(tmp_path / "m.apr"))
    for flags, kernels, cache in (
        (["--kernels", "portable"], "portable", "float32"),
        (["--kernels", "native", "--cache", "int8"], native.best_set().name, "int8"),
        (["--dtype", "auto"], native.best_set().name, "float32"),
    ):
        assert run(["qa", path, "--device", "cpu", "--json", *flags]) == 0, flags
        plan = json.loads(capsys.readouterr().out)["plan"]
        assert (plan["kernels"], plan["cache"]) == (kernels, cache)
    assert run(["qa", path, "--kernels", "sse9"]) == 9
    assert run(["qa", path, "--kernels", "native", "--dtype", "float32"]) == 2


def test_a_failed_gate_exits_5_with_the_report_as_the_only_json(make_tiny, tmp_path, capsys):
    path = make_tiny().write_bare(tmp_path / "m.apr", drop=("tokenizer",))
    assert run(["qa", str(path), "--json"]) == 5
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report["passed"] is False
    assert "tokenizer" in report["summary"]
    assert captured.err.strip().splitlines()[-1].startswith(f"error: {path}: ")


def test_unreadable_files_exit_3_and_4_with_json_too(make_tiny, tmp_path, capsys):
    assert run(["qa", str(tmp_path / "absent.apr"), "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == 3
    path = make_tiny().write(tmp_path / "m.apr")
    path.write_bytes(path.read_bytes()[:-9])
    assert run(["qa", str(path), "--json"]) == 4
    captured = capsys.readouterr()
    assert json.loads(captured.out)["error"]["kind"] == "corrupt_file"
    assert len(captured.err.strip().splitlines()) == 1


def test_too_few_gates_exit_5_and_a_wrong_gate_exits_2(make_tiny, tmp_path, capsys):
    path = str(make_tiny().write(tmp_path / "m.apr"))
    assert run(["qa", path, "--gate", "metadata", "--min-executed", "2"]) == 5
    assert run(["qa", path, "--gate", "metadata"]) == 0
    assert run(["qa", path, "--gate", "meta"]) == 2
    assert "there is no gate 'meta'" in capsys.readouterr().err


def test_control_characters_in_names_do_not_reach_the_terminal(make_tiny, tmp_path, capsys):
    import torch

    tiny = make_tiny()
    tiny.weights["evil\x1b[2J"] = torch.ones(2)
    assert run(["qa", str(tiny.write_bare(tmp_path / "m.apr")), "--gate", "tensor_contract"]) == 5
    captured = capsys.readouterr()
    assert "\x1b[2J" not in captured.out + captured.err
    assert r"evil\x1b" in captured.out
