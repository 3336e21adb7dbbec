"""What DeepSeek-V2, DeepSeek-V3 and GLM-4.7-Flash share: how a config says them.

Attention through a latent (MLA), experts behind a router, shared experts, dense layers first. Each
family's module calls these with what is its own. Defaults are those of transformers' config
classes; sizes have none. Source: transformers' `models/deepseek_v2`, `deepseek_v3` and
`glm4_moe_lite`. GGUF's side is `latent_gguf.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from apr.architecture import Architecture
from apr.errors import InvalidFormat, StrPath
from apr.families import dense

# The norms of the latents have this, whatever rms_norm_eps says (transformers' modules of all three
# families leave it at its default). llama.cpp's have the model's: see apr/formats/latent_scale.py.
EPS = 1e-6
# What `dense.from_hf` reads; everything else of a config is read here, or by the family.
_DENSE = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
    "max_position_embeddings", "rms_norm_eps", "hidden_act", "tie_word_embeddings",
    "initializer_range", "rope_theta", "rope_scaling", "rope_parameters",
    "original_max_position_embeddings", "attention_bias", "mlp_bias",
)  # fmt: skip
# Sizes by Hugging Face's name and other spellings of it, and ours.
_SIZES = {
    "kv_lora_rank": (("kv_lora_rank",), "kv_lora_rank"),
    "qk_nope_head_dim": (("qk_nope_head_dim",), "qk_nope_head_dim"),
    "qk_rope_head_dim": (("qk_rope_head_dim",), "qk_rope_head_dim"),
    "v_head_dim": (("v_head_dim",), "v_head_dim"),
    "n_routed_experts": (("n_routed_experts", "num_local_experts", "num_experts"), "num_experts"),
    "moe_intermediate_size": (("moe_intermediate_size",), "moe_intermediate_size"),
}
# Fields that transformers does not read here and other code does: only this value means the same.
_ELSEWHERE = {"moe_layer_freq": 1, "partial_rotary_factor": 1}


def from_hf(
    config: Mapping[str, Any],
    where: StrPath,
    family: str,
    *,
    defaults: Mapping[str, Any],
    fixed: Mapping[str, Any],
    layers: Sequence[str] | None,
    own: Mapping[str, Any],
) -> Architecture:
    """The architecture that a `config.json` describes.

    Args:
        config: the parsed file.
        where: the file, for messages.
        family: whose config it is.
        defaults: what absent fields mean in this family, by Hugging Face's names.
        fixed: fields that transformers does not read, by name, with the one value that its code
            has for them; another value is an error.
        layers: "dense" or "sparse" for each layer; None if the number of layers is missing.
        own: fields of `Architecture` that the family has worked out itself.

    Raises:
        InvalidFormat: sizes are missing, all named, or a field has a value that is not supported.
    """
    values = {**defaults, **{key: value for key, value in config.items() if value is not None}}
    sizes: dict[str, Any] = {}
    missing = []
    for name, (spellings, canonical) in _SIZES.items():
        sizes[canonical] = next((values[s] for s in spellings if s in values), None)
        if sizes[canonical] is None:
            missing.append(name)
    for name in ("num_experts_per_tok", "n_shared_experts"):
        if values.get(name) is None:
            missing.append(name)
    if "q_lora_rank" not in config:
        missing.append("q_lora_rank (null: one q_proj)")
    if missing:
        raise InvalidFormat(where, "config is incomplete: missing " + ", ".join(missing))
    numbers = {**sizes, "n_shared_experts": values["n_shared_experts"]}
    if config["q_lora_rank"] is not None:
        numbers["q_lora_rank"] = config["q_lora_rank"]
    wrong = [f"{key} is {value!r}" for key, value in numbers.items() if not whole(value)]
    if wrong:
        raise InvalidFormat(where, f"{', '.join(wrong)}: not a whole number above 0")
    only(config, where, {**_ELSEWHERE, **fixed})
    _check_groups(sizes["num_experts"], values["num_experts_per_tok"], own, where)
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if isinstance(scaling, Mapping) and scaling.get("mscale_all_dim"):
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind not in ("yarn", "default"):  # where transformers scales by it, and where not
            raise InvalidFormat(
                where, f"rotary scaling {kind!r} with mscale_all_dim is not supported"
            )
    heads = config.get("num_attention_heads")
    kv_heads = config.get("num_key_value_heads")
    if kv_heads is not None and heads is not None and kv_heads != heads:
        raise InvalidFormat(
            where,
            f"num_key_value_heads is {kv_heads} with {heads} heads: here every head has keys and "
            "values of its own, made from the latent",
            "leave it out, or write as many as there are heads",
        )
    read = {
        **sizes,
        "num_kv_heads": heads,
        "head_dim": sizes["qk_nope_head_dim"] + sizes["qk_rope_head_dim"],
        "q_lora_rank": config["q_lora_rank"],
        "num_experts_per_tok": values["num_experts_per_tok"],
        "routed_scaling_factor": values["routed_scaling_factor"],
        "num_shared_experts": values["n_shared_experts"],
        "shared_expert_intermediate_size": (
            values["n_shared_experts"] * sizes["moe_intermediate_size"]
        ),
        "mlp_layer_types": None if layers is None else list(layers),
        **own,
    }
    # An absent number of kv heads has a default in these classes that no other model could use.
    plain = {key: config[key] for key in _DENSE if key in config} | {"num_key_value_heads": heads}
    return dense.from_hf(plain, where, family, defaults=defaults, read=read)


def groups(config: Mapping[str, Any], where: StrPath) -> dict[str, int]:
    """How many groups of experts there are and how many of them are chosen from.

    Raises:
        InvalidFormat: one of the two is no number of groups, or missing.
    """
    for key in ("n_group", "topk_group"):
        if not whole(config.get(key)):
            raise InvalidFormat(where, f"{key} is {config.get(key)!r}, not a number of groups")
    return {"num_expert_groups": config["n_group"], "topk_groups": config["topk_group"]}


def _check_groups(experts: int, used: object, own: Mapping[str, Any], where: StrPath) -> None:
    """Refuse groups of experts that transformers could not choose from."""
    groups, chosen = own.get("num_expert_groups", 1), own.get("topk_groups", 1)
    if groups < 2:
        return
    size = experts // groups
    if experts % groups == 0 and size < 2 and own.get("group_score") == "top2":
        raise InvalidFormat(
            where, f"n_group is {groups}: groups of {size}, fewer than the two that judge a group"
        )
    if isinstance(used, int) and used > chosen * size:
        raise InvalidFormat(
            where,
            f"{used} experts a token, and {chosen} of {groups} groups have only {chosen * size}",
        )


def only(config: Mapping[str, Any], where: StrPath, allowed: Mapping[str, Any]) -> None:
    """Refuse fields that say something which the family does not compute.

    Raises:
        InvalidFormat: naming all of them.
    """
    wrong = [
        f"{key} is {config[key]!r}, which is not supported (only {value!r})"
        for key, value in allowed.items()
        if config.get(key) is not None and config[key] != value
    ]
    if wrong:
        raise InvalidFormat(where, "; ".join(wrong))


def dense_first(config: Mapping[str, Any], where: StrPath, default: int) -> list[str] | None:
    """The kind of each layer by `first_k_dense_replace`.

    Raises:
        InvalidFormat: it is no number of layers.
    """
    layers = config.get("num_hidden_layers")
    first = config.get("first_k_dense_replace", default)
    if not isinstance(first, int) or isinstance(first, bool) or first < 0:
        raise InvalidFormat(where, f"first_k_dense_replace is {first!r}, not a number of layers")
    if not isinstance(layers, int):
        return None  # reported as missing with everything else
    return leading(first, layers)


def leading(first: int, layers: int) -> list[str]:
    """The kind of each layer, the first ones dense."""
    return ["dense" if layer < first else "sparse" for layer in range(layers)]


def whole(value: object) -> bool:
    """Whether this is a size."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def to_hf(architecture: Architecture, **further: Any) -> dict[str, Any]:
    """The `config.json`, as transformers 4 and 5 both read it; `further` is the family's own.

    `head_dim` is the rotary part there. What DeepSeek's and other code reads and transformers 5
    never writes (`scoring_func`, `topk_method`) is said too, and that there is no further
    prediction layer, whatever the source had.
    """
    return dense.to_hf(
        architecture,
        head_dim=architecture.qk_rope_head_dim,
        attention_bias=architecture.attention_bias,
        q_lora_rank=architecture.q_lora_rank,
        kv_lora_rank=architecture.kv_lora_rank,
        qk_nope_head_dim=architecture.qk_nope_head_dim,
        qk_rope_head_dim=architecture.qk_rope_head_dim,
        v_head_dim=architecture.v_head_dim,
        n_routed_experts=architecture.num_experts,
        num_experts_per_tok=architecture.num_experts_per_tok,
        moe_intermediate_size=architecture.moe_intermediate_size,
        n_shared_experts=architecture.num_shared_experts,
        routed_scaling_factor=architecture.routed_scaling_factor,
        scoring_func=architecture.router_scoring,
        num_nextn_predict_layers=0,
        **further,
    )


def first_sparse(architecture: Architecture) -> int:
    """How many layers at the beginning are dense."""
    return min(architecture.sparse_layers, default=architecture.num_layers)
