"""Mistral: Llama with a sliding window in every layer and no biases.

Reference: transformers' `models/mistral`. In GGUF it is a `llama`, whose rotary pairs are adjacent
and which knows no window: such a file opens as a Llama, and a Mistral whose window is shorter than
its context is not exported to GGUF.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr.architecture import Architecture
from apr.errors import StrPath
from apr.families import dense


def from_hf(config: Mapping[str, Any], where: StrPath) -> Architecture:
    """Read a `config.json`; see `dense.from_hf`. An absent window is MistralConfig's 4096, a null
    one is none at all.
    """
    window = config.get("sliding_window", 4096)
    return dense.from_hf(
        config,
        where,
        "mistral",
        defaults={"num_key_value_heads": 8},
        read={"sliding_window": window},
    )


def to_hf(architecture: Architecture) -> dict[str, Any]:
    """The `config.json`, as transformers 4 and 5 both read it."""
    return dense.to_hf(architecture, sliding_window=architecture.sliding_window)


def from_gguf(fields: Mapping[str, Any], where: StrPath) -> Architecture:
    """Read GGUF metadata, for a caller who knows that it is a Mistral's: the file itself says
    `llama` and opens as that.
    """
    return dense.from_gguf(fields, where, "mistral")


to_gguf = dense.to_gguf
