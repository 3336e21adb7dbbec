"""The run as a whole: sound models pass, in all three formats; selections and bounds hold."""

import json

import pytest

from apr import contracts, qa
from apr.errors import FeatureUnavailable, InvalidFormat, NotFound, UsageError
from apr.formats import open_model, write_gguf, write_hf
from apr.qa import runner

ONLY_WITH_EVIDENCE = {"output_not_degenerate", "training_probe"}


def test_a_trained_model_passes_every_gate_but_parity(make_tiny, verdicts, tmp_path):
    report = qa.run(make_tiny(trained=True).write(tmp_path / "m.apr"), device="cpu")
    found = verdicts(report)
    assert found.pop("format_parity") == "skip"
    assert set(found.values()) == {"pass"}, report.summary
    assert report.passed
    assert report.executed == 12
    assert report.plan["weights"] == "float32"


def test_an_untrained_model_skips_what_has_no_evidence_and_says_why(make_tiny, verdicts, tmp_path):
    report = qa.run(make_tiny().write(tmp_path / "m.apr"), device="cpu")
    skipped = {g.name: g.reason for g in report.gates if g.verdict == "skip"}
    assert set(skipped) == {*ONLY_WITH_EVIDENCE, "format_parity"}
    assert "no training record" in skipped["training_probe"]
    assert report.passed


@pytest.mark.parametrize("kind", ["gguf", "hf"])
def test_the_other_formats_pass_too_and_agree_with_the_source(make_tiny, verdicts, tmp_path, kind):
    source = make_tiny(trained=True).write(tmp_path / "m.apr")
    target = tmp_path / ("m.gguf" if kind == "gguf" else "folder")
    (write_gguf if kind == "gguf" else write_hf)(target, open_model(source))
    report = qa.run(target, against=source, device="cpu")
    assert set(verdicts(report).values()) == {"pass"}, report.summary
    parity = report.gates[-1]
    assert parity.value < 1e-5
    assert "token ids equal" in parity.message
    assert "no checksum" in report.gates[0].message


def test_the_report_is_json_with_the_keys_of_the_rust_tool(make_tiny, tmp_path):
    data = qa.run(make_tiny().write(tmp_path / "m.apr"), device="cpu").to_json()
    again = json.loads(json.dumps(data, allow_nan=False))
    assert {"model", "passed", "gates", "gates_executed", "gates_skipped", "total_duration_ms",
            "timestamp", "summary", "system_info"} <= set(again)  # fmt: skip
    assert {"name", "passed", "message", "value", "threshold", "duration_ms", "skipped"} <= set(
        again["gates"][0]
    )
    assert again["gates_executed"] + again["gates_skipped"] == len(again["gates"])
    assert again["system_info"]["device"] == "cpu"


def test_gates_are_chosen_by_name_or_id_and_left_out_by_name(make_tiny, verdicts, tmp_path):
    path = make_tiny().write(tmp_path / "m.apr")
    report = qa.run(path, only=["QA-METADATA", "tokenizer"])
    assert verdicts(report) == {"metadata": "pass", "tokenizer": "pass"}
    assert report.passed
    report = qa.run(path, skip=["determinism"], device="cpu")
    assert verdicts(report)["determinism"] == "skip"
    assert next(g.reason for g in report.gates if g.name == "determinism") == "--skip"


def test_a_run_in_which_too_little_was_checked_does_not_pass(make_tiny, tmp_path):
    path = make_tiny().write(tmp_path / "m.apr")
    report = qa.run(path, only=["training_probe"])
    assert not report.failed
    assert not report.passed
    assert "only 0 gates were executed" in report.summary
    few = qa.run(path, only=["metadata", "integrity"], min_executed=3)
    assert not few.passed
    assert "at least 3" in few.summary


def test_a_gate_that_crashes_fails_with_its_message_and_the_others_go_on(
    make_tiny, verdicts, tmp_path, monkeypatch
):
    def crash(subject, limits):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setitem(runner._GATES, "metadata", crash)
    report = qa.run(
        make_tiny().write(tmp_path / "m.apr"), only=["metadata", "tokenizer", "determinism"]
    )
    assert verdicts(report) == {"metadata": "fail", "tokenizer": "pass", "determinism": "skip"}
    assert "ZeroDivisionError: division by zero" in report.gates[0].message
    assert report.gates[2].reason == "needs metadata, which failed"


def test_what_is_no_model_at_all_is_an_error_not_a_report(make_tiny, tmp_path):
    with pytest.raises(NotFound):
        qa.run(tmp_path / "absent.apr")
    whole = make_tiny().write(tmp_path / "m.apr").read_bytes()
    (tmp_path / "cut.apr").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "magic.apr").write_bytes(b"XXXX" + whole[4:])
    for name in ("cut.apr", "magic.apr"):
        with pytest.raises(InvalidFormat):
            qa.run(tmp_path / name)


def test_wrong_settings_are_usage_errors_before_anything_runs(make_tiny, tmp_path):
    path = make_tiny().write(tmp_path / "m.apr")
    with pytest.raises(UsageError, match=r"no gate 'nonsense'.*determinism"):
        qa.run(path, only=["nonsense"])
    with pytest.raises(UsageError, match="--against"):
        qa.run(path, only=["format_parity"])
    with pytest.raises(UsageError, match="dtype"):
        qa.run(path, dtype="int3")
    with pytest.raises((UsageError, FeatureUnavailable)):
        qa.run(path, device="cuda:99")


def test_every_gate_of_the_contract_has_code_and_thresholds_and_the_other_way_round():
    gates = contracts.load("gates")["gates"]
    names = [g["name"] for g in gates]
    assert set(names) == set(runner._GATES) | {"format_parity"}
    assert len({g["id"] for g in gates}) == len(gates)
    for gate in gates:
        assert gate["proves"]
        assert set(gate["needs"]) <= set(names[: names.index(gate["name"])])


def test_every_gate_stands_in_the_document():
    from pathlib import Path

    page = Path(__file__).resolve().parents[2] / "docs" / "spec" / "gates.md"
    text = page.read_text(encoding="utf-8")
    for gate in contracts.load("gates")["gates"]:
        assert f"{gate['id']} `{gate['name']}`" in text
