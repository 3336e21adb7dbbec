"""Qwen3: Llama with an RMS norm on each query and key head and heads of a width of their own.

Reference: transformers' `models/qwen3`; GGUF: llama.cpp's `qwen3`, whose rotary pairs are halves,
as here, and which knows no window.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr.architecture import Architecture
from apr.errors import InvalidFormat, StrPath
from apr.families import dense, layers

# Qwen3Config's defaults. An absent head_dim is 128 there, not the hidden size over the heads.
_DEFAULTS = {"num_key_value_heads": 32, "head_dim": 128, "attention_bias": False}


def from_hf(config: Mapping[str, Any], where: StrPath) -> Architecture:
    """Read a `config.json`; see `dense.from_hf` and `layers.qwen_windows`.

    Raises:
        InvalidFormat: as there, or head_dim is null, which Qwen3Config has no meaning for.
    """
    if config.get("head_dim", "absent") is None:
        raise InvalidFormat(where, "head_dim is null", "write the width of a head; absent is 128")
    windows = layers.qwen_windows(config, where)
    return dense.from_hf(config, where, "qwen3", defaults=_DEFAULTS, read=windows)


def to_hf(architecture: Architecture) -> dict[str, Any]:
    """The `config.json`, as transformers 4 and 5 both read it."""
    return dense.to_hf(
        architecture,
        attention_bias=architecture.attention_bias,
        **layers.qwen_windows_to_hf(architecture),
    )


def from_gguf(fields: Mapping[str, Any], where: StrPath) -> Architecture:
    """Read GGUF metadata; whether there are biases is what the reader found in the tensors."""
    return dense.from_gguf(
        fields, where, "qwen3", attention_bias=fields.get("attention_bias", False)
    )


to_gguf = dense.to_gguf
