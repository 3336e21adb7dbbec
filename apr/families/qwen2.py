"""Qwen2 and Qwen2.5: Llama with biases on q, k and v, none on o; some layers may slide.

Reference: transformers' `models/qwen2`; GGUF: llama.cpp's `qwen2`, whose rotary pairs are halves,
as here, and which knows no window.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr.architecture import Architecture
from apr.errors import StrPath
from apr.families import dense, layers


def from_hf(config: Mapping[str, Any], where: StrPath) -> Architecture:
    """Read a `config.json`; see `dense.from_hf` and `layers.qwen_windows`."""
    windows = layers.qwen_windows(config, where)
    return dense.from_hf(config, where, "qwen2", defaults={"num_key_value_heads": 32}, read=windows)


def to_hf(architecture: Architecture) -> dict[str, Any]:
    """The `config.json`, as transformers 4 and 5 both read it."""
    return dense.to_hf(architecture, **layers.qwen_windows_to_hf(architecture))


def from_gguf(fields: Mapping[str, Any], where: StrPath) -> Architecture:
    """Read GGUF metadata."""
    return dense.from_gguf(fields, where, "qwen2")


to_gguf = dense.to_gguf
