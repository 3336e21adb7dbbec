"""BitNet b1.58 (arXiv 2402.17764) with plain matrices: squared ReLU, and a norm before o and down.

Reference: transformers' `models/bitnet`. llama.cpp's `bitnet` has another activation, so a GGUF can
hold only a model that has that one. With a `quantization_config` transformers replaces the linear
layers by ones that round every input to 8 bits (`integrations/bitnet.py`); that is not computed
here, so such a folder is refused rather than opened as something else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr.architecture import Architecture
from apr.errors import InvalidFormat, StrPath
from apr.families import dense

_THETA = 500_000.0  # BitNetConfig's default, not that of the others


def from_hf(config: Mapping[str, Any], where: StrPath) -> Architecture:
    """Read a `config.json`; see `dense.from_hf`.

    Raises:
        InvalidFormat: the config quantizes the linear layers, or a field is missing.
    """
    quantized = config.get("quantization_config")
    if quantized:
        _refuse(quantized, where)
    return dense.from_hf(
        config,
        where,
        "bitnet",
        defaults={
            "num_key_value_heads": 5,
            "hidden_act": "relu2",
            "rms_norm_eps": 1e-5,
            "attention_bias": False,
        },
        rope={"theta": _THETA},
    )


def _refuse(quantized: object, where: StrPath) -> None:
    stated = quantized if isinstance(quantized, Mapping) else {}
    online = stated.get("quantization_mode") == "online"
    weights = "weights to three values and " if online else ""
    packed = "" if online else ", whose weights are packed four to a byte,"
    raise InvalidFormat(
        where,
        f"has a quantization_config (linear_class {stated.get('linear_class', 'bitlinear')!r})"
        f"{packed} with which transformers rounds {weights}the input of every linear layer to 8 "
        "bits: plain matrices would give other logits",
        "only a BitNet folder without quantization_config can be opened",
    )


def to_hf(architecture: Architecture) -> dict[str, Any]:
    """The `config.json`, as transformers 4 and 5 both read it."""
    return dense.to_hf(architecture, attention_bias=architecture.attention_bias)


def from_gguf(fields: Mapping[str, Any], where: StrPath) -> Architecture:
    """Read GGUF metadata: the activation is llama.cpp's, unless our own key states another."""
    return dense.from_gguf(fields, where, "bitnet", hidden_act="silu")


to_gguf = dense.to_gguf
