"""In its own process: llama.cpp through `llama-cpp-python`, in its exact mode.

KV cache in float32 and no flash attention: its defaults alone would move logits by 4e-2.
Run by `apr.export.peers.ask`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from apr.export.peers import read_request, write_answer


def main() -> None:
    """Answer one request."""
    import llama_cpp

    request = read_request()
    _without_repacking(llama_cpp)
    prompt, greedy = request["prompt"], request["greedy"]
    length = max(len(prompt) + greedy + 1, 16)
    llama = llama_cpp.Llama(
        request["model"],
        n_ctx=length,
        n_batch=length,
        n_ubatch=length,
        n_threads=request["threads"],
        n_threads_batch=request["threads"],
        n_gpu_layers=0,
        type_k=0,  # GGML_TYPE_F32
        type_v=0,
        flash_attn=False,
        logits_all=True,
        vocab_only=not prompt,
        verbose=True,  # kept from the terminal by the parent, which quotes it if loading fails
    )
    token_ids = [
        llama.tokenize(text.encode("utf-8"), add_bos=False, special=False)
        for text in request["texts"]
    ]
    logits, continued = None, []
    if prompt:
        llama.eval(prompt)
        logits = np.array(llama.scores[: len(prompt)], dtype=np.float32)
        row = logits[-1]
        for _ in range(greedy):
            continued.append(int(row.argmax()))
            llama.eval(continued[-1:])
            row = llama.scores[llama.n_tokens - 1]
    write_answer(
        request,
        token_ids=token_ids,
        greedy=continued,
        logits=logits,
        details={"version": llama_cpp.__version__, "vocab": llama.n_vocab()},
    )


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
