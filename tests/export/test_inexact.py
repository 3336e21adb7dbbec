"""Properties that llama.cpp lacks: refused with the difference, or allowed and recorded."""

import json

import pytest
from apr_tiny import make_tokenizer, write_tiny

from apr.errors import GateFailed
from apr.export import export
from apr.formats import open_model
from apr.formats.gguf_model import INEXACT
from apr.formats.gguf_reader import GgufFile


@pytest.fixture
def windowed(tmp_path):
    return write_tiny(
        tmp_path / "m.apr", tokenizer=make_tokenizer(), family="mistral", sliding_window=8
    )


def test_the_refusal_says_by_how_much_logits_would_differ(windowed, tmp_path):
    message = r"sliding_window is 8.*measured: logits up to \d.* apart at the end of 40 tokens"
    with pytest.raises(GateFailed, match=message) as caught:
        export(windowed, tmp_path / "m.gguf", format="gguf", peers=False)
    assert "--allow-inexact" in caught.value.hint
    assert not (tmp_path / "m.gguf").exists()


def test_allowed_it_is_written_proven_without_the_window_and_recorded(windowed, tmp_path):
    out = tmp_path / "m.gguf"
    report = export(windowed, out, format="gguf", peers=False, allow_inexact=True)
    assert not report.failures
    (entry,) = report.inexact
    assert entry["property"] == "sliding_window" and entry["figures"]["max_abs"] > 1e-3
    recorded = json.loads(GgufFile.open(out).fields[INEXACT])
    assert recorded == [entry]
    assert json.loads((tmp_path / "m.gguf.proof.json").read_text())["inexact"] == [entry]
    assert open_model(out).architecture.sliding_window is None


def test_what_llama_cpp_would_not_load_is_refused_all_the_same(tmp_path):
    path = write_tiny(
        tmp_path / "q.apr", tokenizer=make_tokenizer(), family="qwen3", qk_norm=True,
        attention_bias=True,
    )  # fmt: skip
    with pytest.raises(GateFailed, match="attention_bias") as caught:
        export(path, tmp_path / "q.gguf", format="gguf", peers=False, allow_inexact=True)
    assert "--allow-inexact" not in caught.value.hint


def test_an_exact_export_records_nothing(tiny_apr, tmp_path):
    report = export(tiny_apr, tmp_path / "m.gguf", format="gguf", peers=False, allow_inexact=True)
    assert report.inexact == ()
    assert INEXACT not in GgufFile.open(tmp_path / "m.gguf").fields
