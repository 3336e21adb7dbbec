"""OLMo 2: norms after attention and feed-forward alone, and over all queries and keys at once.

Reference: transformers' `models/olmo2`; GGUF: llama.cpp's `olmo2`, whose rotary pairs are halves,
as here. OLMo 3, which is stored under the same name there, has windows and is another family.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr.architecture import Architecture
from apr.errors import InvalidFormat, StrPath
from apr.families import dense

# What an absent field means (Olmo2Config); absent kv heads are as many as query heads.
_DEFAULTS = {"rms_norm_eps": 1e-5, "attention_bias": False}


def from_hf(config: Mapping[str, Any], where: StrPath) -> Architecture:
    """Read a `config.json`; see `dense.from_hf`."""
    return dense.from_hf(config, where, "olmo2", defaults=_DEFAULTS)


def to_hf(architecture: Architecture) -> dict[str, Any]:
    """The `config.json`, as transformers 4 and 5 both read it."""
    return dense.to_hf(architecture, attention_bias=architecture.attention_bias)


def from_gguf(fields: Mapping[str, Any], where: StrPath) -> Architecture:
    """Read GGUF metadata; whether there are biases is what the reader found in the tensors.

    Raises:
        InvalidFormat: as `dense.from_gguf`, or the file is an OLMo 3's.
    """
    if fields.get("attention.sliding_window"):
        raise InvalidFormat(
            where,
            "states a sliding window: an OLMo 3, which GGUF files name 'olmo2' too, and which is "
            "not supported",
        )
    return dense.from_gguf(
        fields, where, "olmo2", attention_bias=fields.get("attention_bias", False)
    )


to_gguf = dense.to_gguf
