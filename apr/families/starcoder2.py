"""StarCoder2: layer norms, GeLU by tanh without a gate, biases everywhere or nowhere, a window.

Reference: transformers' `models/starcoder2`; GGUF: llama.cpp's `starcoder2`, whose rotary pairs are
halves, as here, and which knows no window.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr.architecture import Architecture
from apr.errors import StrPath
from apr.families import dense


def from_hf(config: Mapping[str, Any], where: StrPath) -> Architecture:
    """Read a `config.json`; see `dense.from_hf`. Its own fields: `norm_epsilon` and `use_bias`."""
    epsilon, biases = config.get("norm_epsilon"), config.get("use_bias")
    biases = True if biases is None else biases
    return dense.from_hf(
        config,
        where,
        "starcoder2",
        defaults={
            "num_key_value_heads": 2,
            "hidden_act": "gelu_pytorch_tanh",
            "tie_word_embeddings": True,
            "initializer_range": 0.018042,
        },
        read={
            "rms_norm_eps": 1e-5 if epsilon is None else epsilon,
            "attention_bias": biases,
            "mlp_bias": biases,
            "sliding_window": config.get("sliding_window"),
        },
    )


def to_hf(architecture: Architecture) -> dict[str, Any]:
    """The `config.json`, as transformers 4 and 5 both read it."""
    out = dense.to_hf(
        architecture,
        use_bias=architecture.attention_bias,
        sliding_window=architecture.sliding_window,
    )
    out["norm_epsilon"] = out.pop("rms_norm_eps")
    return out


def from_gguf(fields: Mapping[str, Any], where: StrPath) -> Architecture:
    """Read GGUF metadata; whether there are biases is what the reader found in the tensors."""
    biases = fields.get("attention_bias", False)
    return dense.from_gguf(
        fields,
        where,
        "starcoder2",
        rms_norm_eps=fields.get("attention.layer_norm_epsilon"),
        hidden_act="gelu_pytorch_tanh",
        attention_bias=biases,
        mlp_bias=biases,
    )


def to_gguf(architecture: Architecture) -> dict[str, Any]:
    """The GGUF metadata (keys without the prefix)."""
    out = dense.to_gguf(architecture)
    out["attention.layer_norm_epsilon"] = out.pop("attention.layer_norm_rms_epsilon")
    return out
