"""In its own process: llama.cpp through the ready wheel `xllamacpp`.

It gives token ids, greedy continuation and the best log-probabilities, but no raw logits. Its
tokenizer is reached through the server that it is. Run by `apr.export.peers.ask`.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from apr.export.peers import read_request, write_answer

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # it is on this machine
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
        answer = _post(
            server.listening_address + "/completion",
            {
                "prompt": prompt,
                "n_predict": greedy,
                "temperature": 0,
                "n_probs": _TOP,
                "cache_prompt": False,
                "return_tokens": True,
            },
        )
        continued = list(answer["tokens"])
        # A token that leaves a character half-written has no entry among the probabilities: only
        # an entry that is the first token's may be taken for it.
        steps = answer.get("completion_probabilities") or []
        if continued and steps and steps[0]["id"] == continued[0]:
            first = steps[0]["top_logprobs"]
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
    body = {"content": text, "add_special": False, "parse_special": False}
    tokens: list[int] = _post(f"{address}/tokenize", body)["tokens"]
    return tokens


def _post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    call = urllib.request.Request(
        url, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    try:
        with _DIRECT.open(call) as response:
            answer: dict[str, Any] = json.load(response)
    except urllib.error.HTTPError as error:
        raise SystemExit(f"error: {error.read().decode('utf-8', 'replace')}") from None
    return answer


if __name__ == "__main__":
    main()
