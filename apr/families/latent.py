"""What DeepSeek-V2, DeepSeek-V3 and GLM-4.7-Flash share: a config and `deepseek2` metadata.

Attention through a latent (MLA), experts behind a router, shared experts, dense layers first. Each
family's module calls these with what is its own. Defaults are those of transformers' config
classes; sizes have none. Sources: transformers' `models/deepseek_v2`, `deepseek_v3` and
`glm4_moe_lite`; llama.cpp's `deepseek2`, its loader and its converter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from apr.architecture import Architecture
from apr.errors import InvalidFormat, StrPath
from apr.families import dense
from apr.families.obstacles import Obstacle

SOFTMAX, SIGMOID = 1, 2  # llama.cpp's expert_gating_func
# The norms of the latents have this, whatever rms_norm_eps says (transformers' modules of all three
# families leave it at its default). llama.cpp's have the model's: see apr/formats/latent_scale.py.
LATENT_EPS = 1e-6
_LOG = "rope.scaling.yarn_log_multiplier"
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
    wrong = [f"{key} is {value!r}" for key, value in numbers.items() if not _whole(value)]
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
    return _leading(first, layers)


def _leading(first: int, layers: int) -> list[str]:
    return ["dense" if layer < first else "sparse" for layer in range(layers)]


def _whole(value: object) -> bool:
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


def is_sigmoid(fields: Mapping[str, Any]) -> bool:
    """Whether `deepseek2` metadata describes a sigmoid router (keys without the prefix).

    Without the key llama.cpp takes a softmax, as in the first files of DeepSeek-V2, except for
    GLM-4.7-Flash, which it knows by its size.
    """
    stated = fields.get("expert_gating_func")
    if stated is not None:
        return bool(stated == SIGMOID)
    return fields.get("block_count") in (47, 48) and fields.get("vocab_size") == 154880


def from_gguf(fields: Mapping[str, Any], where: StrPath, family: str, **own: Any) -> Architecture:
    """Read GGUF metadata (keys without the prefix); `own` is the family's own.

    Raises:
        InvalidFormat: keys are missing, all named, or say something that is not computed.
    """
    names = fields.get("tensors", frozenset())
    needed = {
        "attention.kv_lora_rank": "kv_lora_rank",
        "attention.key_length_mla": "head_dim",
        "attention.value_length_mla": "v_head_dim",
        "rope.dimension_count": "qk_rope_head_dim",
        "expert_count": "num_experts",
        "expert_used_count": "num_experts_per_tok",
        "expert_shared_count": "num_shared_experts",
        "expert_feed_forward_length": "moe_intermediate_size",
        "block_count": "num_layers",
    }
    missing = [key for key in needed if not _whole(fields.get(key))]
    if missing:
        raise InvalidFormat(
            where,
            "metadata is incomplete: missing " + ", ".join(f"deepseek2.{key}" for key in missing),
            "a file from before llama.cpp split attn_kv_b (2025-04) has to be converted again"
            if "attention.key_length_mla" in missing
            else "convert the model again",
        )
    values = {ours: fields[key] for key, ours in needed.items()}
    if fields.get("attention.temperature_scale"):
        raise InvalidFormat(where, "deepseek2.attention.temperature_scale is not supported")
    if fields.get("expert_gating_func") not in (None, SOFTMAX, SIGMOID):
        raise InvalidFormat(
            where, f"deepseek2.expert_gating_func is {fields['expert_gating_func']}: not supported"
        )
    if fields.get("expert_gating_func") is None and not is_sigmoid(fields):
        biased = [n for n in names if n.endswith(".exp_probs_b.bias")]
        if biased:
            raise InvalidFormat(
                where,
                f"has {min(biased)}, which belongs to a sigmoid router, but no "
                "deepseek2.expert_gating_func: llama.cpp would compute a softmax",
                "convert the model again",
            )
    nextn = fields.get("nextn_predict_layers") or 0
    factor = fields.get("rope.scaling.factor") or 1
    if fields.get("rope.scaling.type") == "linear" and factor > 1:
        wanted = _linear_key({"rope_type": "linear", "factor": factor})[_LOG]
        if not math.isclose(fields.get(_LOG, 0.0), wanted, rel_tol=1e-4):
            raise InvalidFormat(
                where,
                f"states linear rotary scaling by {factor:g} and no deepseek2.{_LOG} of "
                f"{wanted:.6g}: llama.cpp multiplies its scores by the logarithm of the factor "
                "then, which no Hugging Face config says",
                "open the Hugging Face folder that the file was made from",
            )
    layers = values["num_layers"] - nextn
    first = min(fields.get("leading_dense_block_count") or 0, layers)
    groups = fields.get("expert_group_count") or 1
    rank = fields.get("attention.q_lora_rank") or None
    if rank is not None and names and "blk.0.attn_q.weight" in names:
        rank = None  # llama.cpp's lite models: the key is there and means nothing
    return dense.from_gguf(
        fields,
        where,
        family,
        **{
            **values,
            "num_layers": layers,
            "num_kv_heads": fields.get("attention.head_count"),
            "q_lora_rank": rank,
            "qk_nope_head_dim": values["head_dim"] - values["qk_rope_head_dim"],
            "shared_expert_intermediate_size": (
                values["num_shared_experts"] * values["moe_intermediate_size"]
            ),
            "mlp_layer_types": _leading(first, layers),
            # A factor that is absent, or 0, multiplies by nothing there.
            "routed_scaling_factor": float(fields.get("expert_weights_scale") or 1.0),
            "num_expert_groups": groups,
            "topk_groups": (fields.get("expert_group_used_count") or 1) if groups > 1 else 1,
            "rope_interleave": True,
            **own,
        },
    )


def to_gguf(architecture: Architecture) -> dict[str, Any]:
    """The GGUF metadata (keys without the prefix).

    llama.cpp computes MLA as attention with one kv head over the latents, and states the widths of
    that under the usual keys, those of the expanded heads under keys of their own.
    """
    own: dict[str, Any] = {
        "attention.head_count_kv": 1,
        "attention.key_length": architecture.latent_size,
        "attention.value_length": architecture.kv_lora_rank,
        "attention.key_length_mla": architecture.head_dim,
        "attention.value_length_mla": architecture.v_head_dim,
        # Always said: 0 is a plain q there, and only some sizes may leave it out.
        "attention.q_lora_rank": architecture.q_lora_rank or 0,
        "attention.kv_lora_rank": architecture.kv_lora_rank,
        "rope.dimension_count": architecture.qk_rope_head_dim,
        "leading_dense_block_count": first_sparse(architecture),
        "expert_count": architecture.num_experts,
        "expert_used_count": architecture.num_experts_per_tok,
        "expert_shared_count": architecture.num_shared_experts,
        "expert_feed_forward_length": architecture.moe_intermediate_size,
        "expert_weights_scale": architecture.routed_scaling_factor,
        "expert_weights_norm": architecture.norm_topk_prob,
        "expert_gating_func": SIGMOID if architecture.router_scoring == "sigmoid" else SOFTMAX,
        "expert_group_count": architecture.num_expert_groups,
        "expert_group_used_count": architecture.topk_groups,
    }
    return {**dense.to_gguf(architecture), **own, **_linear_key(architecture.rope_scaling)}


def _linear_key(scaling: Mapping[str, Any] | None) -> dict[str, float]:
    """What keeps llama.cpp's `deepseek2` from scaling the scores, too, where the rotary scaling is
    linear: with factor f and multiplier m it multiplies them by the square of
    (1 + 0.1 ln f)(1 + m ln f), which is 1 for this m.
    """
    if scaling is None or scaling["rope_type"] != "linear" or scaling["factor"] == 1:
        return {}
    log = math.log(scaling["factor"])
    return {_LOG: (1 / (1 + 0.1 * log) - 1) / log}


def latent_scale(architecture: Architecture) -> int:
    """The power of two that the latents' projections are multiplied by in GGUF, as an exponent: the
    norm that follows then has nearly `LATENT_EPS` in effect (apr/formats/latent_scale.py).
    """
    return round(math.log2(architecture.rms_norm_eps / LATENT_EPS) / 2)


def gguf_caveats(architecture: Architecture) -> list[str]:
    """What the file cannot make llama.cpp compute in full, though nearly."""
    given = architecture.rms_norm_eps
    effective = given / 4 ** latent_scale(architecture)
    if math.isclose(effective, LATENT_EPS, rel_tol=1e-3):
        return []
    return [
        f"rms_norm_eps {given:g}: llama.cpp has it in the norms of the latents, too, where "
        f"transformers has {LATENT_EPS:g}; scaled weights bring it to {effective:g} (block types "
        "are not scaled), so where a latent is small, its square's mean near these, logits differ"
    ]


def gguf_obstacles(architecture: Architecture) -> list[Obstacle]:
    """What this model does that llama.cpp's `deepseek2` does not, beside what the contract says."""
    out = []
    layers, vocab = architecture.num_layers, architecture.vocab_size
    lite = layers in (26, 27) or (layers == 48 and vocab == 128256)
    if lite and architecture.q_lora_rank is not None:
        out.append(
            Obstacle(
                "q_lora_rank",
                f"q_lora_rank is {architecture.q_lora_rank} in a model of {layers} layers, which "
                "llama.cpp's 'deepseek2' takes for one with a plain q_proj: it would not load the "
                "file at all",
            )
        )
    kinds = list(architecture.mlp_layer_types or ())
    if kinds != sorted(kinds):
        out.append(
            Obstacle(
                "mlp_layer_types",
                "mlp_layer_types has a dense layer after a sparse one, and llama.cpp's 'deepseek2' "
                "counts the dense layers at the beginning alone: it would not load the file at all",
            )
        )
    groups, chosen = architecture.num_expert_groups, architecture.topk_groups
    if architecture.group_score == "max" and chosen < groups:
        out.append(
            Obstacle(
                "group_score",
                f"num_expert_groups is {groups}, {chosen} of them chosen by their best expert, and "
                "llama.cpp's 'deepseek2' judges a group by the sum of its two best: tokens go "
                "to other experts, at every position",
                {"group_score": "top2"},
            )
        )
    return out
