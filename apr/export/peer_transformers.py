"""In its own process: transformers loads the folder with nothing added, as a user would.

Run by `apr.export.peers.ask`, without network.
"""

from __future__ import annotations

from typing import Any

from apr.export.peers import read_request, write_answer


def _loading(transformers: Any, model: str) -> dict[str, Any]:
    """Which attention computes what the family's own code says, and blocks decoded on loading.

    torch's fused kernel has neither soft caps nor sinks, and is not offered where it lacks them
    only by some classes.
    """
    config = transformers.AutoConfig.from_pretrained(model)
    kind = transformers.AutoModelForCausalLM._model_mapping[type(config)]
    fused = getattr(kind, "_supports_sdpa", False)
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    out: dict[str, Any] = {"attn_implementation": "sdpa" if fused and not capped else "eager"}
    if (getattr(config, "quantization_config", None) or {}).get("quant_method") == "mxfp4":
        out["quantization_config"] = transformers.Mxfp4Config(dequantize=True)
    return out


def main() -> None:
    """Answer one request."""
    import torch
    import transformers

    request = read_request()
    torch.set_num_threads(request["threads"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(request["model"])
    token_ids = [tokenizer.encode(text, add_special_tokens=False) for text in request["texts"]]
    logits, continued = None, []
    details: dict[str, object] = {
        "version": transformers.__version__,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if request["prompt"]:
        model, loading = transformers.AutoModelForCausalLM.from_pretrained(
            request["model"],
            torch_dtype=getattr(torch, request.get("dtype", "float32")),
            output_loading_info=True,
            **_loading(transformers, request["model"]),
        )
        details["class"] = type(model).__name__
        details["problems"] = {
            key: sorted(map(str, loading[key]))
            for key in ("missing_keys", "unexpected_keys", "mismatched_keys")
            if loading.get(key)
        }
        ends = model.generation_config.eos_token_id
        listed = ends if isinstance(ends, list) else [ends]
        details["generation_eos_token_ids"] = [i for i in listed if i is not None]
        model.eval()
        with torch.inference_mode():
            ids = list(request["prompt"])
            last = min(request.get("last") or len(ids), len(ids))
            out = model(torch.tensor([ids]), logits_to_keep=last).logits[0].float()
            logits = out.numpy().copy()
            for _ in range(request["greedy"]):
                continued.append(int(out[-1].argmax()))
                out = model(torch.tensor([ids + continued]), logits_to_keep=1).logits[0].float()
    write_answer(request, token_ids=token_ids, greedy=continued, logits=logits, details=details)


if __name__ == "__main__":
    main()
