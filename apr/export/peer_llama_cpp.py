"""In its own process: llama.cpp through `llama-cpp-python`, in its exact mode.

KV cache in float32 and no flash attention: its defaults alone would move logits by 4e-2.
Run by `apr.export.peers.ask`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from apr.export.peers import read_request, write_answer

_PART = 256  # tokens of a long prompt that are read at once


def main() -> None:
    """Answer one request."""
    import llama_cpp

    request = read_request()
    _without_repacking(llama_cpp)
    prompt, greedy = request["prompt"], request["greedy"]
    length = max(len(prompt) + greedy + 1, 16)
    # A long prompt is read without keeping its logits, then its end token by token: all logits of
    # some thousand tokens would take gigabytes.
    last = min(request.get("last") or len(prompt), len(prompt))
    whole = last == len(prompt)
    llama = llama_cpp.Llama(
        request["model"],
        n_ctx=length,
        n_batch=length if whole else min(length, _PART),
        n_ubatch=length if whole else min(length, _PART),
        n_threads=request["threads"],
        n_threads_batch=request["threads"],
        n_gpu_layers=0,
        type_k=0,  # GGML_TYPE_F32
        type_v=0,
        flash_attn=False,
        logits_all=whole,
        vocab_only=not prompt,
        verbose=True,  # kept from the terminal by the parent, which quotes it if loading fails
    )
    token_ids = [
        llama.tokenize(text.encode("utf-8"), add_bos=False, special=False)
        for text in request["texts"]
    ]
    logits, continued = None, []
    if prompt:
        if whole:
            llama.eval(prompt)
            logits = np.array(llama.scores[: len(prompt)], dtype=np.float32)
        else:
            llama.eval(prompt[:-last])
            logits = np.stack([_step(llama, token) for token in prompt[-last:]])
        row = logits[-1]
        for _ in range(greedy):
            continued.append(int(row.argmax()))
            row = _step(llama, continued[-1])
    write_answer(
        request,
        token_ids=token_ids,
        greedy=continued,
        logits=logits,
        details={"version": llama_cpp.__version__, "vocab": llama.n_vocab()},
    )


def _step(llama: Any, token: int) -> Any:
    """Logits after one more token, `[vocab]`."""
    llama.eval([token])
    found = llama._ctx.get_logits_ith(-1)
    return np.ctypeslib.as_array(found, shape=(llama.n_vocab(),)).astype(np.float32)


def _without_repacking(llama_cpp: Any) -> None:
    """Compute with the weights as they stand in the file.

    Repacked weights (AMX and others) belong to speed, not to a proof; and the AMX kernel of
    0.3.36 crashes on Q8_0 with a batch of two or more on some virtual machines.
    """
    defaults = llama_cpp.llama_cpp.llama_model_default_params

    def plain() -> Any:
        params = defaults()
        params.use_extra_bufts = False
        return params

    llama_cpp.llama_cpp.llama_model_default_params = plain


if __name__ == "__main__":
    main()
