"""In its own process: llama.cpp through the ready wheel `xllamacpp`.

It gives token ids, greedy continuation and the best log-probabilities, but no raw logits. Its
tokenizer is reached through the server that it is. Run by `apr.export.peers.ask`.
"""

from __future__ import annotations

import json
import urllib.request
from typing import Any

from apr.export.peers import read_request, write_answer

_TOP = 10  # log-probabilities kept of each position


def main() -> None:
    """Answer one request."""
    import xllamacpp

    request = read_request()
    prompt, greedy = request["prompt"], request["greedy"]
    params = xllamacpp.CommonParams()
    params.model.path = request["model"]
    params.n_ctx = max(len(prompt) + greedy + 8, 256)
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.warmup = False
    params.no_extra_bufts = True  # the weights as they stand in the file, not repacked
    # Exact mode: its defaults, an f16 KV cache and flash attention, would move the logits.
    params.cache_type_k = xllamacpp.ggml_type.GGML_TYPE_F32
    params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cpuparams.n_threads = request["threads"]
    params.cpuparams_batch.n_threads = request["threads"]
    server = xllamacpp.Server(params)
    token_ids = [_tokenize(server.listening_address, text) for text in request["texts"]]
    continued: list[int] = []
    first: list[dict[str, Any]] = []
    if prompt and greedy:
        answer = server.handle_completions(
            {
                "prompt": prompt,
                "n_predict": greedy,
                "temperature": 0,
                "n_probs": _TOP,
                "cache_prompt": False,
            }
        )
        if "error" in answer:
            raise SystemExit(f"error: {answer['error']}")
        steps = ((answer.get("choices") or [{}])[0].get("logprobs") or {}).get("content") or []
        continued = [step["id"] for step in steps]
        first = steps[0]["top_logprobs"] if steps else []
    write_answer(
        request,
        token_ids=token_ids,
        greedy=continued,
        details={
            "version": getattr(xllamacpp, "__version__", "unknown"),
            "log_probabilities": [[e["id"], e["logprob"]] for e in first],
        },
    )


def _tokenize(address: str, text: str) -> list[int]:
    body = json.dumps({"content": text, "add_special": False, "parse_special": False}).encode()
    call = urllib.request.Request(
        f"{address}/tokenize", data=body, headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(call, timeout=60) as response:
        tokens: list[int] = json.load(response)["tokens"]
    return tokens


if __name__ == "__main__":
    main()
