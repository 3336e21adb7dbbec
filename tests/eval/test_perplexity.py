"""Perplexity of models, alone and paired."""

import math
from dataclasses import replace

import numpy as np
import pytest
from apr_tiny import write_tiny

from apr import engine
from apr.errors import InferenceError, InvalidFormat, ModelLoadError, UsageError
from apr.eval import perplexity


def test_each_token_counts_with_the_logits_before_it(tiny_apr, text_file, tokenizer):
    """Recomputed by hand from the engine's logits, for one chunk."""
    row = perplexity(tiny_apr, [str(text_file)], context=32, most_chunks=2, device="cpu").rows[0]
    ids = tokenizer.encode(text_file.read_bytes().decode(), parse_special=False)[:32]
    logits = engine.load(tiny_apr, "cpu").logits(ids).astype(np.float64)
    nats = [math.log(np.exp(logits[p]).sum()) - logits[p][ids[p + 1]] for p in range(16, 31)]
    assert row.scores.nats[:15] == pytest.approx(nats, abs=1e-6)
    assert (row.chunks, len(row.scores.nats)) == (2, 30)
    assert row.scores.bytes[:15].sum() == len(tokenizer.decode(ids[17:]).encode())


def test_a_second_model_is_paired_on_the_same_chunks(tmp_path, tiny_apr, tokenizer, text_file):
    other = write_tiny(tmp_path / "o.apr", tokenizer=tokenizer, seed=2)
    settings = {"context": 32, "most_chunks": 8, "device": "cpu"}
    record = perplexity(tiny_apr, [str(text_file)], against=other, **settings)
    row = record.rows[0]
    alone = perplexity(other, [str(text_file)], **settings).rows[0]
    assert row.against.nats == pytest.approx(alone.scores.nats)
    assert row.tokens_sha256 == alone.tokens_sha256
    figures = row.paired.figures()
    expected = row.scores.loss.value - alone.scores.loss.value
    assert figures["nats_per_token_difference"].value == pytest.approx(expected)
    assert figures["kl_divergence"].value > 0
    shown = record.to_json()["results"][0]
    bits = shown["bits_per_byte"]["value"] - shown["against"]["bits_per_byte"]["value"]
    assert shown["bits_per_byte_difference"]["value"] == pytest.approx(bits)

    same = perplexity(tiny_apr, [str(text_file)], against=tiny_apr, **settings).rows[0]
    assert same.paired.figures()["same_top"].value == 1
    assert same.paired.figures()["kl_divergence"].value == 0


def test_another_tokenizer_leaves_bits_per_byte_alone_with_a_note(
    tmp_path, tiny_apr, with_bos, text_file
):
    other = write_tiny(tmp_path / "o.apr", tokenizer=with_bos)
    record = perplexity(
        tiny_apr, [str(text_file)], against=other, context=32, most_chunks=3, device="cpu"
    )
    assert record.rows[0].paired is None
    assert record.rows[0].bits_per_byte_difference.error > 0
    assert "tokenizers differ" in record.notes[0]


def test_the_default_context_is_reduced_with_a_note_and_what_was_asked_for_never(
    tiny_apr, text_file
):
    record = perplexity(tiny_apr, [str(text_file)], most_chunks=2, device="cpu")
    assert record.rows[0].context == 128
    assert record.notes == ("chunks of 128 tokens, not 512: the context",)
    with pytest.raises(UsageError, match=r"--context 129: .*context of 128 tokens"):
        perplexity(tiny_apr, [str(text_file)], context=129, device="cpu")
    for wrong in (2, 0, -5):
        with pytest.raises(UsageError, match="leaves nothing to score"):
            perplexity(tiny_apr, [str(text_file)], context=wrong, device="cpu")
    with pytest.raises(UsageError, match="--chunks: 0 is less"):
        perplexity(tiny_apr, [str(text_file)], most_chunks=0, device="cpu")
    with pytest.raises(UsageError, match="--dataset: is missing"):
        perplexity(tiny_apr, [], device="cpu")


def test_a_model_without_a_tokenizer_or_with_broken_logits_is_an_error(
    tmp_path, tiny_apr, text_file, monkeypatch
):
    from apr import formats

    opened = replace(formats.open_model(tiny_apr), load_tokenizer=lambda: None)
    with monkeypatch.context() as patch:
        patch.setattr(formats, "open_model", lambda path: opened)
        with pytest.raises(ModelLoadError, match="has no embedded tokenizer"):
            perplexity(tiny_apr, [str(text_file)], device="cpu")
    nothing = lambda self, ids, last: np.full((last, 416), np.nan, np.float32)  # noqa: E731
    monkeypatch.setattr(engine.Engine, "logits", nothing)
    with pytest.raises(InferenceError, match="not finite"):
        perplexity(tiny_apr, [str(text_file)], device="cpu")


def test_a_broken_record_ends_it(tmp_path, tiny_apr):
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "good"}\n{"txt": "bad"}\n', encoding="utf-8")
    with pytest.raises(InvalidFormat, match=r"t\.jsonl:2: broken record: no key 'text'"):
        perplexity(tiny_apr, [str(path)], context=8, device="cpu")
