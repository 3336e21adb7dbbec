"""The proof of an export: what it accepts, what it must catch, what it leaves behind."""

import errno
import json
import subprocess
import sys

import numpy as np
import pytest
from apr_tiny import make_architecture, make_tensors, write_tiny

from apr.checkpoint import AprFile, write_apr
from apr.errors import (
    CorruptFile,
    GateFailed,
    InvalidFormat,
    ModelLoadError,
    NotFound,
    StorageError,
    UsageError,
)
from apr.export import export, proof_path
from apr.formats import gguf_container, gguf_writer, hf_writer, open_model, recipes

QUICK = {"peers": False, "threads": 2}


def verdicts(report):
    return {check.id: check.outcome.verdict for check in report.checks}


@pytest.mark.parametrize("quantize", [None, "f32", "f16", "bf16", "q8_0"])
def test_gguf_of_every_type_is_proven_and_put_into_place(tiny_apr, tmp_path, quantize):
    out = tmp_path / "m.gguf"
    report = export(tiny_apr, out, format="gguf", quantize=quantize, **QUICK)
    assert verdicts(report) == {
        "source": "pass", "tensors": "pass", "foreign reader": "pass", "metadata": "pass",
        "tokenizer": "pass", "logits": "pass", "llama.cpp": "skip", "llama.cpp (wheel)": "skip",
    }  # fmt: skip
    expected = {"f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}.get(quantize or "f32", "F32")
    assert report.tensor_dtypes["blk.0.ffn_up.weight"] == expected
    assert report.tensor_dtypes["blk.0.attn_norm.weight"] == "F32"
    proof = json.loads(proof_path(out).read_text())
    assert proof["passed"] and proof["skipped"] == 2
    assert {c["message"] for c in proof["checks"] if c["verdict"] == "skip"} == {
        "left out by --no-peers"
    }
    assert proof["receipt"]["apr_version"] and proof["source_checksum"]


@pytest.mark.parametrize("quantize", [None, "f16"])
def test_folder_is_proven_and_put_into_place(tied_apr, tmp_path, quantize):
    out = tmp_path / "hf"
    report = export(tied_apr, out, format="safetensors", quantize=quantize, **QUICK)
    assert not report.failures
    assert set(report.dtypes) == {"F16" if quantize else "BF16"}
    config = json.loads((out / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == ("float16" if quantize else "bfloat16")
    assert proof_path(out).is_file()


def test_names_and_training_record_survive_both_ways(tiny_apr, tmp_path):
    export(tiny_apr, tmp_path / "m.gguf", format="gguf", name="other", **QUICK)
    export(tmp_path / "m.gguf", tmp_path / "hf", format="safetensors", **QUICK)
    model = open_model(tmp_path / "hf")
    assert model.metadata["name"] == "other" and model.metadata["license"] == "Apache-2.0"
    assert model.training == open_model(tiny_apr).training


def test_tokenizer_without_merges_can_be_exported(tmp_path):
    """Bytes as tokens: GGUF must hold an empty list of merges, not none."""
    from apr_tiny import make_tokenizer

    path = write_tiny(tmp_path / "b.apr", tokenizer=make_tokenizer(257), vocab_size=257)
    report = export(path, tmp_path / "b.gguf", format="gguf", **QUICK)
    assert not report.failures


# -- what the proof must catch ----------------------------------------------------------------


def leaves_nothing(folder):
    return [p.name for p in folder.iterdir()] == []


def fails(source, out, check, message, **options):
    with pytest.raises(GateFailed) as caught:
        export(source, out, **{"format": "gguf", **QUICK, **options})
    assert caught.value.exit_code == 5
    assert f"[{check}]" in caught.value.what and message in caught.value.what
    assert leaves_nothing(out.parent)


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "m.gguf"


def leave_rows_in_the_wrong_order(monkeypatch):
    """On the way into GGUF; on the way back they are reordered as always."""
    right = recipes.permuted

    def wrong(tensor, heads, width, *, to_gguf):
        return tensor if to_gguf else right(tensor, heads, width, to_gguf=False)

    monkeypatch.setattr(recipes, "permuted", wrong)


def test_rows_left_in_the_wrong_order_are_caught(tiny_apr, out, monkeypatch):
    leave_rows_in_the_wrong_order(monkeypatch)
    fails(tiny_apr, out, "tensors", "k_proj.weight (F32) differs")


def test_swapped_tensors_are_caught(tiny_apr, out, monkeypatch):
    right = gguf_writer.gguf_tensors

    def swapped(*args):
        tensors = right(*args)
        by_name = {t.name: i for i, t in enumerate(tensors)}
        a, b = by_name["blk.0.ffn_gate.weight"], by_name["blk.0.ffn_up.weight"]
        from dataclasses import replace

        tensors[a], tensors[b] = (
            replace(tensors[b], name=tensors[a].name),
            replace(tensors[a], name=tensors[b].name),
        )
        return tensors

    monkeypatch.setattr(gguf_writer, "gguf_tensors", swapped)
    fails(tiny_apr, out, "tensors", "gate_proj.weight")
    fails(tiny_apr, out, "tensors", "the bound of Q8_0", quantize="q8_0")


@pytest.mark.parametrize(
    ("key", "value", "check", "message"),
    [
        ("llama.rope.freq_base", 500_000.0, "metadata", "rope_theta is 500000.0"),
        ("llama.attention.layer_norm_rms_epsilon", 1e-6, "metadata", "rms_norm_eps"),
        ("llama.attention.head_count_kv", 4, "tensors", "k_proj"),
        ("apr.training", "{}", "metadata", "training"),
        ("tokenizer.ggml.eos_token_id", 0, "tokenizer", "eos_token_ids"),
        ("tokenizer.ggml.pre", "gpt-2", "tokenizer", "the source's"),
    ],
)
def test_wrong_metadata_is_caught(tiny_apr, out, monkeypatch, key, value, check, message):
    right = gguf_writer.gguf_fields
    monkeypatch.setattr(gguf_writer, "gguf_fields", lambda *args: {**right(*args), key: value})
    fails(tiny_apr, out, check, message)


def test_weights_beyond_a_type_are_refused_not_made_infinite(tmp_path, out, tokenizer):
    from apr.checkpoint import write_checkpoint
    from apr.tensors import from_array

    arch = make_architecture()
    tensors = make_tensors(arch)
    big = np.full(tensors[0].shape, 1e6, np.float32)
    tensors[0] = from_array(tensors[0].name, big)
    path = tmp_path / "big.apr"
    write_checkpoint(path, architecture=arch, tokenizer=tokenizer, tensors=tensors)
    with pytest.raises(InvalidFormat, match="cannot hold the value 1e"):
        export(path, out, format="gguf", quantize="f16", **QUICK)
    assert leaves_nothing(out.parent)


# -- sources that are refused -----------------------------------------------------------------


def without(source, target, *keys):
    """An .apr file with some metadata removed (the three defects of aprender #1698)."""
    file = AprFile.open(source)
    kept = {k: v for k, v in file.metadata.items() if not k.startswith(keys)}
    write_apr(target, kept, list(file.tensors.values()))
    return target


def test_source_without_tokenizer_is_refused(tiny_apr, tmp_path, out):
    path = without(tiny_apr, tmp_path / "x.apr", "tokenizer.", "special_tokens")
    with pytest.raises(ModelLoadError, match="no embedded tokenizer") as caught:
        export(path, out, format="gguf", **QUICK)
    assert caught.value.exit_code == 6 and leaves_nothing(out.parent)


def test_source_without_hidden_size_is_refused(tiny_apr, tmp_path, out):
    path = without(tiny_apr, tmp_path / "x.apr", "hidden_size")
    with pytest.raises(InvalidFormat, match="missing hidden_size") as caught:
        export(path, out, format="gguf", **QUICK)
    assert caught.value.exit_code == 4 and leaves_nothing(out.parent)


def test_source_with_a_flipped_bit_is_refused(tiny_apr, tmp_path, out):
    data = bytearray(tiny_apr.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "x.apr").write_bytes(data)
    with pytest.raises(CorruptFile, match="checksum"):
        export(tmp_path / "x.apr", out, format="gguf", **QUICK)
    assert leaves_nothing(out.parent)


def test_missing_source_is_not_found(tmp_path, out):
    with pytest.raises(NotFound):
        export(tmp_path / "none.apr", out, format="gguf", **QUICK)


# -- outputs and requests that are refused ----------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "onnx"}, "gguf or safetensors"),
        ({"quantize": "q4_k"}, "write f32, f16, bf16, q8_0"),
        ({"format": "safetensors", "quantize": "q8_0"}, "GGUF type"),
        ({"format": "safetensors"}, "is a folder"),
    ],
)
def test_wrong_requests_say_what_to_write(tiny_apr, out, options, message):
    with pytest.raises(UsageError, match=message):
        export(tiny_apr, out, **{"format": "gguf", **QUICK, **options})
    assert leaves_nothing(out.parent)


def test_rows_that_are_no_whole_blocks_are_a_usage_error(tmp_path, out, tokenizer):
    path = write_tiny(
        tmp_path / "odd.apr", tokenizer=tokenizer, hidden_size=48, num_heads=4, head_dim=12
    )
    with pytest.raises(UsageError, match="no multiple of the 32"):
        export(path, out, format="gguf", quantize="q8_0", **QUICK)
    assert leaves_nothing(out.parent)


def test_existing_output_needs_force(tiny_apr, out):
    out.write_bytes(b"precious")
    with pytest.raises(StorageError, match="--force"):
        export(tiny_apr, out, format="gguf", **QUICK)
    assert out.read_bytes() == b"precious"
    export(tiny_apr, out, format="gguf", force=True, **QUICK)
    assert out.read_bytes()[:4] == b"GGUF"


def test_force_never_replaces_a_folder_that_is_no_model(tiny_apr, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "letter.txt").write_text("precious")
    with pytest.raises(StorageError, match="--force does not replace it"):
        export(tiny_apr, home, format="safetensors", force=True, **QUICK)
    assert (home / "letter.txt").read_text() == "precious"


def test_source_is_never_overwritten(tiny_apr, tmp_path):
    export(tiny_apr, tmp_path / "m.gguf", format="gguf", **QUICK)
    with pytest.raises(UsageError, match="source itself"):
        export(tmp_path / "m.gguf", tmp_path / "m.gguf", format="gguf", force=True, **QUICK)


def test_failed_proof_keeps_the_old_output(tiny_apr, out, monkeypatch):
    out.write_bytes(b"precious")
    leave_rows_in_the_wrong_order(monkeypatch)
    with pytest.raises(GateFailed):
        export(tiny_apr, out, format="gguf", force=True, **QUICK)
    assert out.read_bytes() == b"precious"
    assert [p.name for p in out.parent.iterdir()] == ["m.gguf"]


@pytest.mark.parametrize("format", ["gguf", "safetensors"])
def test_full_disk_is_an_error_that_leaves_nothing(tiny_apr, out, monkeypatch, format):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    module = gguf_container if format == "gguf" else hf_writer
    monkeypatch.setattr(module, "write_tensor", full)
    with pytest.raises(StorageError, match="no space left") as caught:
        export(tiny_apr, out.with_suffix(""), format=format, **QUICK)
    assert caught.value.exit_code == 7 and leaves_nothing(out.parent)


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "apr.cli.main", "export", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_command_prints_one_json_document_and_the_documented_exit_codes(tiny_apr, tmp_path):
    out = tmp_path / "m.gguf"
    done = run(tiny_apr, "--format", "gguf", "-o", out, "--no-peers", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["passed"]
    done = run(tiny_apr, "--format", "gguf", "-o", out, "--no-peers", "--json")
    assert done.returncode == 7 and json.loads(done.stdout)["error"]["kind"] == "input_output"
    assert len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr
    done = run(tiny_apr, "--format", "gguf", "-o", out, "--no-peers", "--force")
    assert done.returncode == 0 and "logits" in done.stdout and "skipped" in done.stdout
    done = run(tiny_apr, "--format", "safetensors", "-o", tmp_path / "hf", "--shard-size", "x")
    assert done.returncode == 2
