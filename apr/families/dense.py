"""What the dense families share: how a config and GGUF metadata map to an `Architecture`.

Each family's module calls these with what is its own (defaults, further fields); there is nothing
to inherit from. Defaults are those of transformers' config classes and of llama.cpp's loader. Sizes
have none: a config without `hidden_size` is an error, not a model of transformers' default size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr import architecture as arch
from apr import contracts
from apr.architecture import Architecture
from apr.errors import InvalidFormat, StrPath
from apr.families import rotary, rotary_gguf

# What an absent field means in every dense family (transformers' config classes agree).
_COMMON: dict[str, Any] = {
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
}
# Fields that only some families read. Others carry them too, left over or by accident, and
# transformers ignores them there; so do we, unless the family names them.
_OWN = frozenset(
    {"attention_bias", "mlp_bias", "qkv_bias", "qk_norm", "sliding_window", "layer_types"}
)


def from_hf(
    config: Mapping[str, Any],
    where: StrPath,
    family: str,
    *,
    defaults: Mapping[str, Any],
    read: Mapping[str, Any] | None = None,
    rope: Mapping[str, Any] | None = None,
) -> Architecture:
    """The architecture that a `config.json` of a dense family describes.

    Args:
        config: the parsed file.
        where: the file, for messages.
        family: whose config it is.
        defaults: what further absent fields mean in this family; names the fields of its own.
        read: values that the family has worked out itself; they replace the config's.
        rope: what is the family's own in `rotary.from_hf`.

    Raises:
        InvalidFormat: a field without a published default is missing, or the rotary kind is not
            supported or lacks a parameter.
    """
    known = {**_COMMON, **defaults}
    values = dict(known)
    for key, value in config.items():
        if value is not None and (key not in _OWN or key in known):
            values[key] = value
    if config.get("num_key_value_heads", "absent") is None:
        values["num_key_value_heads"] = None  # stated as null: as many as there are query heads
    if values.get("num_key_value_heads") is None and not values.get("num_kv_heads"):
        values["num_key_value_heads"] = values.get("num_attention_heads")
    values.update(rotary.from_hf(values, where, family, **(rope or {})))
    return arch.from_metadata({**values, **(read or {}), "architecture": family}, where)


def to_hf(architecture: Architecture, **further: Any) -> dict[str, Any]:
    """The `config.json`, as transformers 4 and 5 both read it; `further` is the family's own."""
    contract = contracts.load(f"families/{architecture.family}")
    return {
        "architectures": [contract["hf_architecture"]],
        "model_type": contract["hf_model_type"],
        "hidden_size": architecture.hidden_size,
        "intermediate_size": architecture.intermediate_size,
        "num_hidden_layers": architecture.num_layers,
        "num_attention_heads": architecture.num_heads,
        "num_key_value_heads": architecture.num_kv_heads,
        "head_dim": architecture.head_dim,
        "vocab_size": architecture.vocab_size,
        "max_position_embeddings": architecture.max_position_embeddings,
        "rms_norm_eps": architecture.rms_norm_eps,
        **rotary.to_hf(architecture),
        "hidden_act": architecture.hidden_act,
        "tie_word_embeddings": architecture.tie_word_embeddings,
        "initializer_range": architecture.initializer_range,
        **further,
    }


def from_gguf(
    fields: Mapping[str, Any],
    where: StrPath,
    family: str,
    *,
    rope: Mapping[str, Any] | None = None,
    **further: Any,
) -> Architecture:
    """Read GGUF metadata (keys without the prefix, plus `vocab_size` and `tie_word_embeddings` as
    the reader found them in the tensors, and what `rotary_gguf.from_gguf` takes); `rope` is the
    family's own there, `further` its other fields.

    Raises:
        InvalidFormat: a field is missing, a rotary scaling is not supported, or a window is set
            that llama.cpp does not compute.
    """
    context = fields.get("context_length")
    window = fields.get("attention.sliding_window")
    contract = contracts.load(f"families/{family}")
    computed = "sliding_window" in contract.get("varies", []) and (
        "sliding_window" not in contract.get("gguf_lacks", [])
    )
    narrower = isinstance(window, int) and isinstance(context, int) and 0 < window < context
    if narrower and not computed:
        raise InvalidFormat(
            where,
            f"states a sliding window of {window} in a context of {context}, which llama.cpp "
            "computes as full attention for this architecture: one of the two is wrong",
            "open the Hugging Face folder that the file was made from",
        )
    heads = fields.get("attention.head_count")
    values = {
        "architecture": family,
        "hidden_size": fields.get("embedding_length"),
        "num_layers": fields.get("block_count"),
        "num_heads": heads,
        "num_kv_heads": fields.get("attention.head_count_kv", heads),
        "head_dim": fields.get("attention.key_length", fields.get("rope.dimension_count")),
        "intermediate_size": fields.get("feed_forward_length"),
        "vocab_size": fields.get("vocab_size"),
        "max_position_embeddings": context,
        "rms_norm_eps": fields.get("attention.layer_norm_rms_epsilon"),
        **rotary_gguf.from_gguf(fields, where, family, **(rope or {})),
        "tie_word_embeddings": fields.get("tie_word_embeddings", False),
        **further,
    }
    return arch.from_metadata(values, where)


def to_gguf(architecture: Architecture) -> dict[str, Any]:
    """The GGUF metadata (keys without the prefix)."""
    return {
        "context_length": architecture.max_position_embeddings,
        "embedding_length": architecture.hidden_size,
        "block_count": architecture.num_layers,
        "feed_forward_length": architecture.intermediate_size,
        "attention.head_count": architecture.num_heads,
        "attention.head_count_kv": architecture.num_kv_heads,
        "attention.layer_norm_rms_epsilon": architecture.rms_norm_eps,
        "attention.key_length": architecture.head_dim,
        "attention.value_length": architecture.head_dim,
        **rotary_gguf.to_gguf(architecture),
        "vocab_size": architecture.vocab_size,
    }
