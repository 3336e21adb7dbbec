"""`Architecture`: what a model is, in canonical names, checked against the contracts.

Every verb gets it from the opened model and nothing else; there is no default that a missing field
silently falls back to, except where the family's published config defines one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import prod
from typing import Any

from apr import contracts, rope
from apr.errors import InvalidFormat, StrPath

# What decides how many tensors there are, with the names of Hugging Face's configs and GGUF's keys
# that are not among the aliases.
_COUNTED = {
    "num_layers": ("block_count",),
    "num_experts": ("num_local_experts", "n_routed_experts", "expert_count"),
}


@dataclass(frozen=True, slots=True)
class Violation:
    """One rule of the contracts that does not hold."""

    rule: str
    message: str


@dataclass(frozen=True, slots=True)
class Architecture:
    """A decoder-only transformer, in the names of Hugging Face's configs.

    Sizes are elements, `max_position_embeddings` is tokens. `family` is the lower-case name of the
    file in `apr/families/`. What a family never has stays at its default; which fields it may vary
    and which it always sets is in its contract.

    Blocks:
        block_norms: "pre" (Llama), "post" (norms after attention and feed-forward alone), "both".
        norm_type: "rms" or "layer" (with bias). norm_plus_one: the factor is 1 + weight.
        scale_embedding: embeddings are multiplied by sqrt(hidden_size).
        final_logit_softcap, attn_logit_softcap: cap * tanh(x / cap) on logits, on scores.

    Attention:
        attention_bias: on q, k, v and o; qkv_bias: on q, k and v alone. fused_qkv: one matrix.
        qk_norm: an RMS norm of queries and keys, each head ("head") or all at once ("all"), by
        `qk_norm_scope`. attention_sinks: one learned score per head that takes part in the softmax.
        sliding_window: how many tokens a position sees, itself included, or None for all; it holds
        in every layer, or where `layer_types` says "sliding_attention" (the other kind is
        "full_attention"). query_pre_attn_scalar: scores are scaled by its inverse square root,
        None means head_dim. sub_norms: an RMS norm before o_proj and one before down_proj.

    Positions:
        position_embedding: "rotary" or "learned". rope_theta: None without a rotary embedding.
        rope_scaling: the object of a Hugging Face config with `rope_type` and the parameters of
        that kind (apr/rope.py), or None for the default kind. rope_local_theta: base in the sliding
        layers, never scaled; None: the same as elsewhere. partial_rotary_factor: the share of each
        head that turns. rope_interleave: pairs are neighbours, not halves, in canonical order too.

    Latent attention (MLA; DeepSeek-V2, arXiv 2405.04434), where kv_lora_rank is not None:
        q_lora_rank may be None (a plain q_proj); head_dim is qk_nope_head_dim + qk_rope_head_dim.

    Feed-forward:
        hidden_act by transformers' name; mlp_gated: False is two matrices. fused_gate_up: one.
        swiglu_limit: gpt-oss's clamped SwiGLU.

    Experts, where num_experts > 0 (in the layers that `mlp_layer_types` calls "sparse"; None: all):
        moe_intermediate_size: width of each. router_scoring: "softmax" or "sigmoid" of the logits;
        norm_topk_prob: the chosen weights are made to sum to one; routed_scaling_factor multiplies
        them. router_correction_bias: a bias that selects and does not weigh. router_bias: a bias of
        the router's own. num_expert_groups, topk_groups: experts are chosen within the best
        groups, judged by `group_score`, "max" or "top2" (the sum of the two best).
        num_shared_experts and shared_expert_intermediate_size (of all together): experts that
        every token visits; shared_expert_gate: behind a sigmoid of their own. expert_bias: their
        matrices have biases.
    """

    family: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float | None = None
    tie_word_embeddings: bool = False
    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    rope_scaling: Mapping[str, Any] | None = None
    initializer_range: float = 0.02
    qkv_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    layer_types: tuple[str, ...] | None = None
    qk_norm_scope: str = "head"
    block_norms: str = "pre"
    norm_type: str = "rms"
    norm_plus_one: bool = False
    scale_embedding: bool = False
    final_logit_softcap: float | None = None
    attn_logit_softcap: float | None = None
    fused_qkv: bool = False
    attention_sinks: bool = False
    query_pre_attn_scalar: float | None = None
    sub_norms: bool = False
    position_embedding: str = "rotary"
    rope_local_theta: float | None = None
    partial_rotary_factor: float = 1.0
    rope_interleave: bool = False
    q_lora_rank: int | None = None
    kv_lora_rank: int | None = None
    qk_nope_head_dim: int | None = None
    qk_rope_head_dim: int | None = None
    v_head_dim: int | None = None
    mlp_gated: bool = True
    fused_gate_up: bool = False
    swiglu_limit: float | None = None
    num_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int | None = None
    mlp_layer_types: tuple[str, ...] | None = None
    router_scoring: str = "softmax"
    norm_topk_prob: bool = False
    routed_scaling_factor: float = 1.0
    router_correction_bias: bool = False
    router_bias: bool = False
    num_expert_groups: int = 1
    topk_groups: int = 1
    group_score: str = "max"
    num_shared_experts: int = 0
    shared_expert_intermediate_size: int | None = None
    shared_expert_gate: bool = False
    expert_bias: bool = False
    router_aux_loss_coef: float = 0.0

    @property
    def q_size(self) -> int:
        """Width of all query heads together."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key heads together (and of all values, without MLA)."""
        return self.num_kv_heads * self.head_dim

    @property
    def qkv_size(self) -> int:
        """Width of queries, keys and values together."""
        return self.q_size + 2 * self.kv_size

    @property
    def value_size(self) -> int:
        """Width of what attention gives to o_proj."""
        return self.num_heads * (self.v_head_dim or self.head_dim)

    @property
    def q_norm_size(self) -> int:
        """Elements that the norm of the queries spans."""
        return self.q_size if self.qk_norm_scope == "all" else self.head_dim

    @property
    def k_norm_size(self) -> int:
        """Elements that the norm of the keys spans."""
        return self.kv_size if self.qk_norm_scope == "all" else self.head_dim

    @property
    def is_mla(self) -> bool:
        """Whether attention goes through a latent."""
        return self.kv_lora_rank is not None

    @property
    def plain_q(self) -> bool:
        """Whether an MLA model has one q_proj instead of the low-rank pair."""
        return self.is_mla and self.q_lora_rank is None

    @property
    def biased_q_a(self) -> bool:
        """Whether the first matrix of the low-rank pair has a bias."""
        return self.attention_bias and not self.plain_q

    @property
    def latent_size(self) -> int:
        """What MLA caches for a token and layer: the latent and the shared rotary key."""
        return (self.kv_lora_rank or 0) + (self.qk_rope_head_dim or 0)

    @property
    def kv_b_size(self) -> int:
        """Rows of MLA's kv_b_proj: keys without position and values of all heads."""
        return self.num_heads * ((self.qk_nope_head_dim or 0) + (self.v_head_dim or 0))

    @property
    def rotary_dim(self) -> int:
        """How many elements of each head turn."""
        if self.qk_rope_head_dim is not None:
            return self.qk_rope_head_dim
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def attention_scale(self) -> float:
        """What scores are multiplied by (rotary kinds may add a factor of their own for MLA)."""
        return float((self.query_pre_attn_scalar or self.head_dim) ** -0.5)

    @property
    def gate_up_size(self) -> int:
        """Rows of gate and up together."""
        return 2 * self.intermediate_size

    @property
    def all_layers(self) -> range:
        """The layers' numbers."""
        return range(self.num_layers)

    @property
    def sparse_layers(self) -> list[int]:
        """Layers with experts."""
        if not self.num_experts:
            return []
        kinds = self.mlp_layer_types or ("sparse",) * self.num_layers
        return [i for i, kind in enumerate(kinds) if kind == "sparse"]

    @property
    def dense_layers(self) -> list[int]:
        """Layers with a feed-forward of `intermediate_size`."""
        return sorted(set(range(self.num_layers)) - set(self.sparse_layers))

    def window(self, layer: int) -> int | None:
        """How many tokens a position of this layer sees, itself included; None for all."""
        if self.layer_types is not None and self.layer_types[layer] != "sliding_attention":
            return None
        return self.sliding_window

    @property
    def shortest_window(self) -> int | None:
        """The window, if it hides something: if it is shorter than the context; else None."""
        window = self.sliding_window
        used = any(self.window(layer) is not None for layer in range(self.num_layers))
        return window if window and used and window < self.max_position_embeddings else None

    def to_metadata(self) -> dict[str, Any]:
        """The canonical metadata keys and values, `family` as `architecture`."""
        contract = contracts.load(f"families/{self.family}")
        sizes, varies = contracts.load("metadata")["sizes"], contract.get("varies", [])
        out: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            # What is as in most models, and always so in this family, would only be noise.
            if value is None or (
                value == field.default and field.name not in sizes and field.name not in varies
            ):
                continue
            if isinstance(value, tuple):
                value = list(value)  # as JSON gives it back
            out["architecture" if field.name == "family" else field.name] = value
        out["hf_architecture"] = contract["hf_architecture"]
        out["hf_model_type"] = contract["hf_model_type"]
        if self.position_embedding == "rotary":
            out["rope_type"] = 2  # halves, as Hugging Face stores q and k
        return out


def check_counts(stated: Mapping[str, Any], where: StrPath) -> None:
    """Refuse a number of layers or experts that no model has, in a config, in GGUF keys (without
    prefix) or in metadata, before anything is made for each of them.

    Raises:
        InvalidFormat: the number is above the contract's bound.
    """
    contract = contracts.load("metadata")
    for rule in contract["bounds"]:
        key = rule["key"]
        for name in (key, *contract["aliases"].get(key, []), *_COUNTED.get(key, ())):
            value = stated.get(name) if key in _COUNTED else None
            if isinstance(value, int) and value > rule["max"]:
                raise InvalidFormat(
                    where,
                    f"[{rule['id']}] {name} is {value}, outside {rule['min']} to {rule['max']}",
                )


def from_metadata(metadata: Mapping[str, Any], where: StrPath) -> Architecture:
    """The architecture that a file's metadata states, aliases understood.

    Raises:
        InvalidFormat: keys are missing or have the wrong type; the message names all of them,
            with the other names that were tried. Or the rotary scaling is of no use.
    """
    check_counts(metadata, where)
    resolved = resolve_aliases(metadata)
    family = resolved.get("architecture") or resolved.get("model_type")
    if not isinstance(family, str) or family not in contracts.names("families"):
        raise InvalidFormat(
            where,
            f"unknown architecture {family!r}",
            f"known are {', '.join(contracts.names('families'))}",
        )
    contract = contracts.load(f"families/{family}")
    missing = missing_keys(resolved)
    if missing:
        raise InvalidFormat(where, "metadata is incomplete: missing " + ", ".join(missing))
    for key, value in contract.get("implied", {}).items():
        if resolved.get(key) is None:
            resolved[key] = value  # what the family always has, and its configs never say
    scaling = resolved.get("rope_scaling")
    if isinstance(scaling, Mapping) and scaling.get("rope_type") == "default":
        resolved["rope_scaling"] = None  # the same thing, said in full
    values: dict[str, Any] = {"family": family}
    wrong = []
    for field in fields(Architecture):
        if field.name == "family" or resolved.get(field.name) is None:
            continue
        value, kind = resolved[field.name], str(field.type)
        if kind.startswith("float") and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if kind.startswith("tuple") and isinstance(value, list):
            value = tuple(value)
        if not _has_type(value, kind):
            wrong.append(f"{field.name} is {value!r}, not {kind}")
        values[field.name] = value
    if wrong:
        raise InvalidFormat(where, "metadata has values of the wrong type: " + "; ".join(wrong))
    out = Architecture(**values)
    # Here and not in `check` alone: nothing could be computed from it, not even wrongly.
    rules = contracts.load("metadata")["bounds"]
    known = next(rule["one_of"] for rule in rules if rule["key"] == "hidden_act")
    if out.hidden_act not in known:
        raise InvalidFormat(
            where, f"hidden_act {out.hidden_act!r} is unknown", f"known: {', '.join(known)}"
        )
    scaling = out.rope_scaling
    problems = rope.problems(scaling, out.rotary_dim) if scaling is not None else []
    if problems:
        raise InvalidFormat(where, "; ".join(problems))
    return out


def _has_type(value: object, kind: str) -> bool:
    kind = kind.removesuffix(" | None")
    if kind == "int":
        return isinstance(value, int) and not isinstance(value, bool)
    if kind.startswith("tuple"):
        return isinstance(value, tuple) and all(isinstance(part, str) for part in value)
    if kind == "float":
        return isinstance(value, float)
    if kind == "bool":
        return isinstance(value, bool)
    if kind == "str":
        return isinstance(value, str)
    return isinstance(value, Mapping)


def resolve_aliases(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata with every alias under its canonical name; a canonical key wins."""
    out = dict(metadata)
    for canonical, others in contracts.load("metadata")["aliases"].items():
        for other in others:
            if other in out:
                value = out.pop(other)
                if out.get(canonical) is None:
                    out[canonical] = value
    hidden, heads = out.get("hidden_size"), out.get("num_heads")
    if out.get("head_dim") is None and hidden and heads:
        # Not a guess: this is what an absent head_dim means in every config that may leave it out.
        # Where one of the two is no number of elements, the message is about that one.
        whole = isinstance(hidden, int) and isinstance(heads, int)
        out["head_dim"] = hidden // heads if whole else 0
    return out


def missing_keys(resolved: Mapping[str, Any]) -> list[str]:
    """Required keys that are absent, each with the names that were tried."""
    contract = contracts.load("metadata")
    family = resolved.get("architecture") or resolved.get("model_type")
    own: Mapping[str, Any] = {}
    if family in contracts.names("families"):
        own = contracts.load(f"families/{family}")
    out = []
    for key in [*contract["required"], *own.get("required", [])]:
        if key not in own.get("not_required", []) and resolved.get(key) is None:
            tried = contract["aliases"].get(key, [])
            out.append(key + (f" (also tried {', '.join(tried)})" if tried else ""))
    return out


def violations(architecture: Architecture) -> list[Violation]:
    """Every rule of the contracts (bounds, relations, the family's own) that does not hold."""
    contract = contracts.load("metadata")
    family = contracts.load(f"families/{architecture.family}")
    out = _foreign(architecture, contract, family)
    for rule in (*contract["bounds"], *family.get("plausible", [])):
        value = getattr(architecture, rule["key"])
        if "one_of" in rule:
            if value not in rule["one_of"]:
                out.append(
                    Violation(
                        rule["id"],
                        f"{rule['key']} is {value!r}, not one of "
                        + ", ".join(map(str, rule["one_of"])),
                    )
                )
        elif value is not None and not rule["min"] <= value <= rule["max"]:
            out.append(
                Violation(
                    rule["id"], f"{rule['key']} is {value}, outside {rule['min']} to {rule['max']}"
                )
            )
    for rule in (*contract["relations"], *family.get("relations", [])):
        if "divides" in rule:
            small, large = rule["divides"]
            a, b = getattr(architecture, small), getattr(architecture, large)
            if b and (a is None or a < 1 or b % a):
                out.append(
                    Violation(
                        rule["id"], f"{large} {b} is no multiple of {small} {a}: {rule['why']}"
                    )
                )
        elif "per_layer" in rule:
            kinds = getattr(architecture, rule["per_layer"])
            if kinds is not None and (
                len(kinds) != architecture.num_layers or set(kinds) - set(rule["one_of"])
            ):
                out.append(
                    Violation(
                        rule["id"],
                        f"{rule['per_layer']} is {list(kinds)} for {architecture.num_layers} "
                        f"layers: {rule['why']}",
                    )
                )
        elif "parameters" in rule:
            scaling = getattr(architecture, rule["scaling"])
            width = architecture.rotary_dim
            found = rope.problems(scaling, width) if scaling is not None else []
            out.extend(Violation(rule["id"], f"{text}: {rule['why']}") for text in found)
        elif "needs" in rule:
            key, needed = rule["needs"]
            # 0 experts, an empty list: as good as absent.
            if getattr(architecture, key) and getattr(architecture, needed) is None:
                out.append(Violation(rule["id"], f"{key} is given without {needed}: {rule['why']}"))
        elif "sum" in rule or "product" in rule:
            combine, sign = (sum, "+") if "sum" in rule else (prod, "*")
            whole, *parts = rule.get("sum") or rule["product"]
            values = [getattr(architecture, part) or 0 for part in parts]
            if getattr(architecture, whole) != combine(values):
                out.append(
                    Violation(
                        rule["id"],
                        f"{whole} is {getattr(architecture, whole)}, not "
                        f"{f' {sign} '.join(parts)}, which is {combine(values)}: {rule['why']}",
                    )
                )
        elif "dense_first" in rule:
            kinds = getattr(architecture, rule["dense_first"]) or ()
            if list(kinds) != sorted(kinds):
                out.append(
                    Violation(rule["id"], f"a dense layer follows a sparse one: {rule['why']}")
                )
        elif "equal" in rule:
            first, second = rule["equal"]
            a, b = getattr(architecture, first), getattr(architecture, second)
            if a != b:
                out.append(Violation(rule["id"], f"{first} {a} is not {second} {b}: {rule['why']}"))
        elif "at_most" in rule:
            key, bound = rule["at_most"]
            a, b = getattr(architecture, key), getattr(architecture, bound)
            if a is not None and b is not None and a > b:
                out.append(Violation(rule["id"], f"{key} {a} is above {bound} {b}: {rule['why']}"))
        elif getattr(architecture, rule["even"]) % 2:
            out.append(Violation(rule["id"], f"{rule['even']} is odd: {rule['why']}"))
    return out


def _foreign(
    architecture: Architecture, contract: Mapping[str, Any], family: Mapping[str, Any]
) -> list[Violation]:
    """Variations of the block that the family does not have: the decoder would compute them, and
    every other reader of the family would not.
    """
    always = {
        field.name: field.default
        for field in fields(Architecture)
        if field.name not in contract["sizes"] and field.name not in family.get("varies", [])
    } | family.get("implied", {})
    return [
        Violation(
            contract["variation_rule"],
            f"{key} is {getattr(architecture, key)!r}, which a {architecture.family} never is: "
            f"always {value!r}",
        )
        for key, value in always.items()
        if getattr(architecture, key) != value
    ]


def check(architecture: Architecture, where: StrPath) -> None:
    """Refuse an architecture that breaks a contract.

    Raises:
        InvalidFormat: naming every rule that does not hold.
    """
    broken = violations(architecture)
    if broken:
        raise InvalidFormat(where, "; ".join(f"[{v.rule}] {v.message}" for v in broken))
