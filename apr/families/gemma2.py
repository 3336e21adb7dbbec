"""Gemma 2: norms before and after, soft caps, GeLU, every other layer sliding, embedding scaled.

Reference: transformers' `models/gemma2`; GGUF: llama.cpp's `gemma2`, which computes the windows.
What that loader takes for granted is met here: it scales scores by the width of a head (so
another `query_pre_attn_scalar` goes into the factor of its rotary embedding, which multiplies
queries and keys alike), caps whatever it is told, and slides in every other layer unless told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from apr.architecture import FULL, SLIDING, Architecture
from apr.errors import InvalidFormat, StrPath
from apr.families import dense, layers
from apr.families.obstacles import Obstacle

ACTIVATION = "gelu_pytorch_tanh"
# What an absent field means (Gemma2Config).
_DEFAULTS = {
    "num_key_value_heads": 4,
    "head_dim": 256,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "query_pre_attn_scalar": 256,
    "hidden_activation": ACTIVATION,
}
_PERIOD = 2  # every other layer is full: transformers' and llama.cpp's default
_LARGE = 46  # layers of the 27B model, by which llama.cpp knows that its scale is another
# A soft cap for a GGUF of a model without one: the loader would take its default for an absent one
# and divide by zero. A power of two beyond all float32 rounding: x / cap * cap is x, tanh too.
NO_CAP = 2.0**40


def from_hf(config: Mapping[str, Any], where: StrPath) -> Architecture:
    """Read a `config.json`; see `dense.from_hf`.

    Raises:
        InvalidFormat: as there, or the config asks for what no other reader would compute alike.
    """
    read = common_from_hf(config, where, "gemma2", _DEFAULTS)
    read |= windows_from_hf(config, where, _PERIOD)
    read["attn_logit_softcap"] = config.get("attn_logit_softcapping", 50.0)
    read["final_logit_softcap"] = config.get("final_logit_softcapping", 30.0)
    return dense.from_hf(config, where, "gemma2", defaults=_DEFAULTS, read=read)


def to_hf(architecture: Architecture) -> dict[str, Any]:
    """The `config.json`, as transformers 4 and 5 both read it."""
    return dense.to_hf(
        architecture,
        **common_to_hf(architecture),
        attn_logit_softcapping=architecture.attn_logit_softcap,
        final_logit_softcapping=architecture.final_logit_softcap,
    )


def from_gguf(fields: Mapping[str, Any], where: StrPath) -> Architecture:
    """Read GGUF metadata, absent keys as llama.cpp's loader takes them."""
    return dense.from_gguf(
        fields,
        where,
        "gemma2",
        attention_bias=fields.get("attention_bias", False),
        query_pre_attn_scalar=scalar_from_gguf(fields, _LARGE),
        attn_logit_softcap=_cap(fields.get("attn_logit_softcapping", 50.0)),
        final_logit_softcap=_cap(fields.get("final_logit_softcapping", 30.0)),
        **windows_from_gguf(fields, fields.get("attention.sliding_window", 4096), _PERIOD, where),
    )


def to_gguf(architecture: Architecture) -> dict[str, Any]:
    """The GGUF metadata (keys without the prefix)."""
    scores, logits = architecture.attn_logit_softcap, architecture.final_logit_softcap
    return {
        **dense.to_gguf(architecture),
        **scalar_to_gguf(architecture, _LARGE),
        **windows_to_gguf(architecture, _PERIOD),
        "attn_logit_softcapping": NO_CAP if scores is None else scores,
        "final_logit_softcapping": NO_CAP if logits is None else logits,
    }


def gguf_obstacles(architecture: Architecture) -> list[Obstacle]:
    """Two factors, where llama.cpp has one of the rotary embedding for both."""
    scaling = architecture.rope_scaling
    if not scaling or scaling["rope_type"] != "yarn" or not scalar_to_gguf(architecture, _LARGE):
        return []
    return [
        Obstacle(
            "query_pre_attn_scalar",
            f"query_pre_attn_scalar is {architecture.query_pre_attn_scalar:g} beside a rotary "
            "scaling 'yarn', and llama.cpp has one factor for both: all logits would differ",
            {"query_pre_attn_scalar": float(architecture.head_dim)},
        )
    ]


def _cap(stated: float) -> float | None:
    return None if stated > NO_CAP / 2 else stated  # read in shortened decimals


def common_from_hf(
    config: Mapping[str, Any], where: StrPath, family: str, defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """What Gemma 2 and 3 read alike and no other family does.

    Raises:
        InvalidFormat: null where transformers has no meaning for it, attention in both directions,
            another activation, or a scalar that is no whole number.
    """
    for key in ("num_key_value_heads", "head_dim", "query_pre_attn_scalar", "hidden_activation"):
        if config.get(key, "absent") is None:
            raise InvalidFormat(
                where, f"{key} is null", f"write its value; absent means {defaults[key]}"
            )
    if config.get("use_bidirectional_attention"):
        raise InvalidFormat(
            where,
            "use_bidirectional_attention is true: positions that see later ones give embeddings, "
            "not a language model",
        )
    activation = config.get("hidden_activation", ACTIVATION)
    if activation != ACTIVATION:
        raise InvalidFormat(
            where, f"hidden_activation {activation!r} is not supported for {family}: {ACTIVATION}"
        )
    scalar = config.get("query_pre_attn_scalar", defaults["query_pre_attn_scalar"])
    if isinstance(scalar, bool) or not isinstance(scalar, (int, float)) or scalar != int(scalar):
        raise InvalidFormat(where, f"query_pre_attn_scalar is {scalar!r}, not a whole number")
    return {"hidden_act": activation}


def common_to_hf(architecture: Architecture) -> dict[str, Any]:
    """The fields of a config that Gemma 2 and 3 write alike."""
    scalar = architecture.query_pre_attn_scalar or architecture.head_dim
    return {
        "hidden_activation": architecture.hidden_act,
        "attention_bias": architecture.attention_bias,
        "query_pre_attn_scalar": int(scalar),
        # transformers wants a number even where no layer slides; the context hides nothing.
        "sliding_window": architecture.sliding_window or architecture.max_position_embeddings,
        "layer_types": layers.kinds(architecture),
    }


def windows_from_hf(config: Mapping[str, Any], where: StrPath, period: int) -> dict[str, Any]:
    """`sliding_window` and `layer_types`; without the latter, one full layer ends each `period`.

    Raises:
        InvalidFormat: a layer slides and the window is null, or `layer_types` is of no use.
    """
    kinds = layers.stated(
        config, where, "layer_types", (SLIDING, FULL), lambda count: layers.periodic(count, period)
    )
    if kinds is None:
        return {}
    window = config.get("sliding_window", 4096)
    if window is None and SLIDING in kinds:
        raise InvalidFormat(
            where,
            "sliding_window is null, but layers slide",
            f"make every entry of layer_types {FULL}, or write the window",
        )
    return {"sliding_window": window, "layer_types": kinds}


def windows_from_gguf(
    fields: Mapping[str, Any], window: int | None, period: int, where: StrPath
) -> dict[str, Any]:
    """`sliding_window` and `layer_types` as llama.cpp works them out: from a period, or from one
    flag for each layer.

    Raises:
        InvalidFormat: not one flag for each layer.
    """
    count = fields.get("block_count")
    if not isinstance(count, int):
        return {}  # reported as missing with everything else
    stated = fields.get("attention.sliding_window_pattern", period)
    if isinstance(stated, Sequence):
        if len(stated) != count:
            raise InvalidFormat(
                where, f"sliding_window_pattern has {len(stated)} flags for {count} layers"
            )
        kinds = [SLIDING if flag else FULL for flag in stated]
    else:
        kinds = layers.periodic(count, int(stated))
    if not window:
        return {"sliding_window": None, "layer_types": [FULL] * count}
    return {"sliding_window": window, "layer_types": kinds}


def windows_to_gguf(architecture: Architecture, period: int) -> dict[str, Any]:
    """The keys that say the same: a period where the layers have one, else a flag for each.

    llama.cpp reads flags since 2026; a file in its default `period` states none, as its own
    converter leaves it out.
    """
    count, kinds = architecture.num_layers, layers.kinds(architecture)
    if SLIDING not in kinds:
        # llama.cpp crashes on a file whose layers are all full in a family that slides.
        return {"attention.sliding_window": architecture.max_position_embeddings}
    out: dict[str, Any] = {"attention.sliding_window": architecture.sliding_window}
    periods = (period, *range(count + 1))
    found = next((n for n in periods if layers.periodic(count, n) == kinds), None)
    if found is None:
        out["attention.sliding_window_pattern"] = [kind == SLIDING for kind in kinds]
    elif found != period:
        out["attention.sliding_window_pattern"] = found
    return out


def scalar_to_gguf(architecture: Architecture, large: int) -> dict[str, Any]:
    """What makes llama.cpp's scores those of `query_pre_attn_scalar`: nothing, or a factor.

    Queries and keys are both multiplied by it as they turn, so the scores by its square. Every
    element of a Gemma's head turns, so none is left out.
    """
    theirs = _scalar_there(
        architecture.num_layers, large, architecture.hidden_size, architecture.num_heads,
        architecture.head_dim,
    )  # fmt: skip
    ours = architecture.query_pre_attn_scalar or architecture.head_dim
    if ours == theirs:
        return {}
    return {"rope.scaling.attn_factor": (theirs / ours) ** 0.25}


def scalar_from_gguf(fields: Mapping[str, Any], large: int) -> float | None:
    """`query_pre_attn_scalar`, a whole number, from llama.cpp's own and that factor."""
    needed = ("block_count", "embedding_length", "attention.head_count", "attention.key_length")
    values = [fields.get(key) for key in needed]
    if not all(isinstance(value, int) and value for value in values):
        return None  # reported as missing with everything else
    count, hidden, heads, width = (int(value) for value in values if value)
    theirs = _scalar_there(count, large, hidden, heads, width)
    factor = float(fields.get("rope.scaling.attn_factor", 1.0))
    if fields.get("rope.scaling.type") == "yarn":
        factor = 1.0  # yarn's own
    return float(round(theirs / factor**4)) if factor > 0 else float(theirs)


def _scalar_there(count: int, large: int, hidden: int, heads: int, head_dim: int) -> int:
    """By whose inverse root llama.cpp scales: it tells the largest model by its layers."""
    return hidden // heads if count == large else head_dim
