"""Perplexity against llama.cpp on the same GGUF and text, counted as llama-perplexity counts it."""

import math

import numpy as np
import pytest
from apr_tiny import write_tiny

from apr.eval import perplexity
from apr.export import export

CONTEXT = 64


def llama_perplexity(path, text, context):
    """Figures of llama.cpp: its tokenizer, its logits, and the loop of its perplexity tool."""
    llama_cpp = pytest.importorskip("llama_cpp")
    from apr.export.peer_llama_cpp import _without_repacking

    _without_repacking(llama_cpp)
    llama = llama_cpp.Llama(
        str(path), n_ctx=context, n_batch=context, n_ubatch=context, n_threads=1,
        n_threads_batch=1, n_gpu_layers=0, type_k=0, type_v=0, flash_attn=False, logits_all=True,
        verbose=False,
    )  # fmt: skip
    vocab = llama._model.vocab
    adds_bos = bool(llama_cpp.llama_vocab_get_add_bos(vocab))
    ids = llama.tokenize(text.removesuffix("\n").encode(), add_bos=adds_bos, special=False)
    assert len(ids) >= 2 * context
    first, nats = context // 2, []
    for start in range(0, len(ids) // context * context, context):
        chunk = list(ids[start : start + context])
        if adds_bos:
            chunk[0] = llama_cpp.llama_vocab_bos(vocab)
        llama.reset()
        llama.eval(chunk)
        logits = np.array(llama.scores[:context], dtype=np.float64)
        for position in range(first, context - 1):
            row = logits[position] - logits[position].max()
            nats.append(math.log(np.exp(row).sum()) - row[chunk[position + 1]])
    count = len(nats)
    mean = sum(nats) / count
    spread = math.sqrt((sum(n * n for n in nats) / count - mean * mean) / (count - 1))
    return count, math.exp(mean), spread * math.exp(mean), nats


@pytest.mark.exact
@pytest.mark.parametrize(
    ("bos", "quantize", "relative"), [(False, None, 2e-6), (True, None, 2e-6), (True, "q8_0", 2e-3)]
)
def test_perplexity_and_its_error_are_those_of_llama_cpp(
    tmp_path, tokenizer, with_bos, text_file, bos, quantize, relative
):
    """To float32's rounding in float32; within 0.2 % where llama.cpp rounds activations too."""
    apr, gguf = tmp_path / "m.apr", tmp_path / "m.gguf"
    write_tiny(apr, tokenizer=with_bos if bos else tokenizer)
    export(apr, gguf, format="gguf", peers=False, quantize=quantize)
    text = text_file.read_bytes().decode()  # read_text would translate newlines
    count, expected, error, nats = llama_perplexity(gguf, text, CONTEXT)

    row = perplexity(gguf, [str(text_file)], context=CONTEXT, device="cpu").rows[0]

    assert row.chunks * (CONTEXT - CONTEXT // 2 - 1) == count == len(row.scores.nats)
    found = row.scores.perplexity
    assert found.value == pytest.approx(expected, rel=relative)
    assert found.error == pytest.approx(error, rel=max(relative, 1e-4))
    assert np.abs(row.scores.nats - nats).max() < (1e-4 if quantize is None else 0.05)
