"""gpt-oss: attention with sinks and every other layer sliding, experts with biases behind a router
with one, their SwiGLU clamped.

Reference: transformers' `models/gpt_oss`; GGUF: llama.cpp's `gpt-oss`, whose rotary pairs are
halves, as here. There the first layer slides and every second after it; its SwiGLU has the limit 7.
The Hugging Face folder holds all experts of a layer in one tensor, transposed, gate and up in
turns; or as MXFP4 blocks (apr/formats/mxfp4.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr.architecture import FULL, SLIDING, Architecture
from apr.errors import InvalidFormat, StrPath
from apr.families import dense, experts, layers
from apr.families.obstacles import Obstacle

# GptOssConfig's defaults.
_DEFAULTS = {
    "num_key_value_heads": 8,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "attention_bias": True,
    "swiglu_limit": 7.0,
    "router_aux_loss_coef": 0.001,
}
_ROPE = {"theta": 150_000.0}
# A config without rotary parameters means this, not the default kind.
_YARN = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip
_PERIOD = 2  # every other layer is full: transformers' and llama.cpp's default
_LIMIT = 7.0  # of llama.cpp's clamped SwiGLU, whatever a key says
_ALPHA = 1.702  # what the decoder computes with; no released config says anything else


def from_hf(config: Mapping[str, Any], where: StrPath) -> Architecture:
    """Read a `config.json`; see `dense.from_hf`.

    Raises:
        InvalidFormat: as there; or another swiglu_alpha, no window, or layer_types of no use.
    """
    alpha = config.get("swiglu_alpha")
    if alpha not in (None, _ALPHA):
        raise InvalidFormat(where, f"swiglu_alpha is {alpha!r}, only {_ALPHA} is supported")
    if config.get("sliding_window", 128) is None:
        raise InvalidFormat(
            where,
            "sliding_window is null, which transformers has no meaning for",
            f"make every layer {FULL} in layer_types and give any window",
        )
    values = dict(config)
    if values.get("head_dim", 64) is None:
        del values["head_dim"]
        if config.get("hidden_size") and config.get("num_attention_heads"):
            values["head_dim"] = config["hidden_size"] // config["num_attention_heads"]
    if not (values.get("rope_scaling") or values.get("rope_parameters")):
        values["rope_parameters"] = _YARN
    own = {
        "sliding_window": config.get("sliding_window", 128),
        "layer_types": layers.stated(
            config, where, "layer_types", (SLIDING, FULL), lambda n: layers.periodic(n, _PERIOD)
        ),
        "num_experts": config.get("num_local_experts") or config.get("num_experts"),
        "moe_intermediate_size": config.get("intermediate_size"),
        "hidden_act": "silu",  # the one that the clamped SwiGLU is made of; transformers reads none
    }
    return dense.from_hf(values, where, "gpt_oss", defaults=_DEFAULTS, read=own, rope=_ROPE)


def to_hf(architecture: Architecture) -> dict[str, Any]:
    """The `config.json`, as transformers 4 and 5 both read it."""
    return dense.to_hf(
        architecture,
        attention_bias=architecture.attention_bias,
        sliding_window=architecture.sliding_window,
        layer_types=list(architecture.layer_types or ()),
        swiglu_alpha=_ALPHA,
        swiglu_limit=architecture.swiglu_limit,
        num_local_experts=architecture.num_experts,
        num_experts_per_tok=architecture.num_experts_per_tok,
        router_aux_loss_coef=architecture.router_aux_loss_coef,
    )


def from_gguf(fields: Mapping[str, Any], where: StrPath) -> Architecture:
    """Read GGUF metadata; whether there are biases is what the reader found in the tensors."""
    return dense.from_gguf(
        fields,
        where,
        "gpt_oss",
        **experts.from_gguf(fields),
        sliding_window=fields.get("attention.sliding_window"),
        layer_types=layers.periodic(fields.get("block_count"), _PERIOD),
        attention_bias=fields.get("attention_bias", False),
        swiglu_limit=_LIMIT,
    )


def to_gguf(architecture: Architecture) -> dict[str, Any]:
    """The GGUF metadata (keys without the prefix). A window that hides nothing is one as long as
    the context, whichever layers have it.
    """
    window = architecture.sliding_window
    if architecture.shortest_window is None:
        window = max(window or 0, architecture.max_position_embeddings)
    return {
        **dense.to_gguf(architecture),
        **experts.to_gguf(architecture),
        "attention.sliding_window": window,
    }


def gguf_obstacles(architecture: Architecture) -> list[Obstacle]:
    """Where llama.cpp's `gpt-oss` leaves no choice: which layers slide, the clamp, the biases."""
    reader = "llama.cpp's 'gpt-oss'"
    out = []
    kinds = layers.periodic(architecture.num_layers, _PERIOD)
    if architecture.shortest_window is not None and list(architecture.layer_types or ()) != kinds:
        out.append(
            Obstacle(
                "layer_types",
                f"layer_types does not begin with a sliding layer and slide in every second, as in "
                f"{reader}: prompts longer than {architecture.shortest_window} tokens would give "
                "other logits",
                {"layer_types": tuple(kinds)},
            )
        )
    if architecture.swiglu_limit != _LIMIT:
        out.append(
            Obstacle(
                "swiglu_limit",
                f"swiglu_limit is {architecture.swiglu_limit}, and {reader} clamps at {_LIMIT}: "
                "wherever a gate or an up exceeds either, logits would differ",
                {"swiglu_limit": _LIMIT},
            )
        )
    if not architecture.attention_bias:
        out.append(
            Obstacle(
                "attention_bias",
                f"attention_bias is false, and {reader} wants the biases: it would not load the "
                "file at all",
            )
        )
    return out
