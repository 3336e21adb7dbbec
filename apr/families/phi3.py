"""Phi-3, Phi-3.5, Phi-4 and Phi-4-mini: q, k and v in one matrix, gate and up in another; longrope.

Reference: transformers' `models/phi3`, which knows two rotary kinds, default and longrope, of the
whole head or a part of it; GGUF: llama.cpp's `phi3`, fused as well, whose rotary pairs are halves,
as here. It reads a window and computes full attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr.architecture import Architecture
from apr.errors import InvalidFormat, StrPath
from apr.families import dense, rotary

# What an absent field means (Phi3Config); absent kv heads are as many as query heads.
_DEFAULTS = {"rms_norm_eps": 1e-5, "sliding_window": None}
# The original context is a field of its own, and its default goes before the object's.
_ROPE = {"partial": 1.0, "original": 4096}
_WINDOW = "attention.sliding_window"


def from_hf(config: Mapping[str, Any], where: StrPath) -> Architecture:
    """Read a `config.json`; see `dense.from_hf`.

    Raises:
        InvalidFormat: as there, or a rotary kind that transformers refuses for it.
    """
    out = dense.from_hf(config, where, "phi3", defaults=_DEFAULTS, rope=_ROPE)
    scaling = out.rope_scaling
    if scaling is not None and scaling["rope_type"] != "longrope":
        raise InvalidFormat(
            where,
            f"rotary scaling {scaling['rope_type']!r} is not supported for phi3: default, longrope",
        )
    return out


def to_hf(architecture: Architecture) -> dict[str, Any]:
    """The `config.json`, as transformers 4 and 5 both read it."""
    return dense.to_hf(
        architecture,
        **rotary.to_hf(architecture, original_beside=True),
        sliding_window=architecture.sliding_window,
    )


def from_gguf(fields: Mapping[str, Any], where: StrPath) -> Architecture:
    """Read GGUF metadata. The window is that of the config that the file was made from: llama.cpp
    says on loading that it leaves it out.
    """
    heads, width = fields.get("attention.head_count"), fields.get("embedding_length")
    head_dim = fields.get("attention.key_length")
    if head_dim is None and isinstance(heads, int) and isinstance(width, int) and heads:
        head_dim = width // heads  # rope.dimension_count may be a part of it
    others = {key: value for key, value in fields.items() if key != _WINDOW}
    return dense.from_gguf(
        others,
        where,
        "phi3",
        rope={"partial": True},
        head_dim=head_dim,
        sliding_window=fields.get(_WINDOW) or None,
    )


to_gguf = dense.to_gguf
