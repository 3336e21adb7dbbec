"""Llama: RMSNorm, rotary embedding, grouped-query attention, SwiGLU, tied or untied head.

Reference: transformers' `models/llama`; GGUF keys: llama.cpp's `llama` architecture, in which
Mistral is stored too: without a window the two are the same, and such a file opens as a Llama.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr.architecture import Architecture
from apr.errors import StrPath
from apr.families import dense


def from_hf(config: Mapping[str, Any], where: StrPath) -> Architecture:
    """Read a `config.json`; see `dense.from_hf`."""
    own = {"attention_bias": False, "mlp_bias": False}
    return dense.from_hf(config, where, "llama", defaults=own)


def to_hf(architecture: Architecture) -> dict[str, Any]:
    """The `config.json`, as transformers 4 and 5 both read it."""
    return dense.to_hf(
        architecture,
        attention_bias=architecture.attention_bias,
        mlp_bias=architecture.mlp_bias,
    )


def from_gguf(fields: Mapping[str, Any], where: StrPath) -> Architecture:
    """Read GGUF metadata; whether there are biases is what the reader found in the tensors."""
    return dense.from_gguf(
        fields,
        where,
        "llama",
        attention_bias=fields.get("attention_bias", False),
        mlp_bias=fields.get("mlp_bias", False),
    )


to_gguf = dense.to_gguf
