"""How a rotary embedding is said in a Hugging Face config and in GGUF; every family asks here.

Facts: transformers' `modeling_rope_utils.py` and `configuration_phi3.py`; llama.cpp's loader and
`llama-context.cpp`, held to by comparing logits (tests/export/test_rotary_scaling.py). What each
kind computes is `apr/rope.py`.

In GGUF a scaling has one of three forms: keys alone (linear, plain yarn), the tensor
`rope_freqs.weight` of divisors (llama3, and yarn with parameters that llama.cpp has no key for), or
the two tensors of longrope. A key of our own, `apr.rope_scaling`, states kind and parameters where
those do not give them back exactly; on reading the two must agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from apr import contracts, rope
from apr.architecture import Architecture
from apr.errors import InvalidFormat, StrPath

OWN_KEY = "apr.rope_scaling"
THETA = 10_000.0  # transformers' and llama.cpp's default alike
_CLOSE = 1e-5  # relative: GGUF has float32
_TYPE, _FACTOR = "rope.scaling.type", "rope.scaling.factor"
_ORIGINAL, _ATTENTION = "rope.scaling.original_context_length", "rope.scaling.attn_factor"
_LOG = "rope.scaling.yarn_log_multiplier"
_WRITTEN = (_TYPE, _FACTOR, _ORIGINAL, _ATTENTION, _LOG)


# Hugging Face


def from_hf(
    config: Mapping[str, Any],
    where: StrPath,
    family: str,
    *,
    theta: float = THETA,
    partial: float | None = None,
    local_theta: float | None = None,
    original: int | None = None,
) -> dict[str, Any]:
    """The rotary fields of `Architecture` that a config states; the rotary object goes before the
    fields beside it.

    Args:
        config: the parsed file.
        where: the file, for messages.
        family: whose config it is.
        theta: what an absent base means.
        partial: what an absent `partial_rotary_factor` means; None: the family has none.
        local_theta: what an absent base of the sliding layers means; None: the family has none.
        original: what an absent `original_max_position_embeddings` beside the object means, where
            the family's config class has that field; it goes before the object's own.

    Raises:
        InvalidFormat: the kind is not supported, or lacks a parameter.
    """
    if local_theta is not None:
        found, local = _by_layer(config, where, local_theta)
    else:
        found, local = config.get("rope_scaling") or config.get("rope_parameters") or {}, None
    if not isinstance(found, Mapping):
        raise InvalidFormat(where, f"the rotary parameters are {found!r}, not an object")
    base = found.get("rope_theta")
    if base is None:
        base = config.get("rope_theta")
    share = found.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    kind = found.get("rope_type", found.get("type", "default"))
    # The names that Phi-3's first configs had for longrope.
    if kind == "su" or (kind == "yarn" and "short_factor" in found):
        kind = "longrope"
    scaling = None
    if kind != "default":
        stated = dict(found)
        beside = config.get(rope.POSITIONS) or original
        if beside is not None and local is None:
            stated[rope.POSITIONS] = beside
        if partial is None and share not in (None, 1):
            raise InvalidFormat(
                where,
                f"rotary scaling {kind!r} of a part of each head is not supported for {family}",
            )
        scaling = _scaling(kind, stated, where, family)
    return {
        "rope_theta": float(theta if base is None else base),
        "rope_scaling": scaling,
        "rope_local_theta": local,
        "partial_rotary_factor": float((partial if share is None else share) or 1.0)
        if partial is not None
        else 1.0,
    }


def _by_layer(
    config: Mapping[str, Any], where: StrPath, local_theta: float
) -> tuple[dict[str, Any], float]:
    """Full attention's parameters and the sliding layers' base: by kind of layer, or in the older
    form, where `rope_scaling` and `rope_theta` are full attention's.
    """
    by_kind = config.get("rope_parameters") or {}
    for kind in ("full_attention", "sliding_attention"):
        if not isinstance(by_kind, Mapping) or not isinstance(
            by_kind.get(kind, {}), Mapping | None
        ):
            raise InvalidFormat(
                where, f"rope_parameters is {by_kind!r}, not keyed by kind of layer"
            )
    sliding = by_kind.get("sliding_attention") or {}
    if sliding.get("rope_type", "default") != "default":
        raise InvalidFormat(
            where, f"rotary scaling {sliding['rope_type']!r} of sliding layers is not supported"
        )
    local = sliding.get("rope_theta", config.get("rope_local_base_freq"))
    full = {**(by_kind.get("full_attention") or {}), **(config.get("rope_scaling") or {})}
    return full, float(local_theta if local is None else local)


def _scaling(
    kind: object, stated: Mapping[str, Any], where: StrPath, family: str
) -> dict[str, Any]:
    """A `rope_scaling` with the parameters of its kind and no others."""
    known = rope.parameters(kind)
    if known is None:
        raise InvalidFormat(where, f"rotary scaling {kind!r} is not supported for {family} yet")
    out = {"rope_type": kind, **{key: stated.get(key) for key in known.required}}
    out |= {key: stated[key] for key in known.optional if stated.get(key) is not None}
    problems = rope.problems(out)
    if problems:
        raise InvalidFormat(where, "; ".join(problems))
    return out


def to_hf(architecture: Architecture, *, original_beside: bool = False) -> dict[str, Any]:
    """The rotary fields of a `config.json`, for transformers 4 and 5 alike; none without a rotary
    embedding.

    `original_beside`: Phi-3's form, where the original context stands beside the object and
    transformers 4 refuses an object with anything but the two lists.
    """
    if architecture.rope_theta is None:
        return {}
    theta, scaling = architecture.rope_theta, architecture.rope_scaling
    varies = contracts.load(f"families/{architecture.family}").get("varies", [])
    share = (
        {"partial_rotary_factor": architecture.partial_rotary_factor}
        if "partial_rotary_factor" in varies
        else {}
    )
    full = {**(scaling or {"rope_type": "default"}), "rope_theta": theta, **share}
    out: dict[str, Any] = {"rope_theta": theta, "rope_parameters": full, **share}
    if architecture.rope_local_theta is not None:
        local = architecture.rope_local_theta
        sliding = {"rope_type": "default", "rope_theta": local}
        out["rope_parameters"] = {"full_attention": full, "sliding_attention": sliding}
        out["rope_local_base_freq"] = local
    if scaling is not None:
        # transformers 4 knows only this name for the object, and without it would not scale at all.
        out["rope_scaling"] = dict(scaling)
    if scaling is not None and original_beside:
        lists = {k: v for k, v in scaling.items() if k not in ("rope_type", rope.POSITIONS)}
        out["rope_scaling"] = {"type": scaling["rope_type"], **lists}
        out[rope.POSITIONS] = scaling.get(rope.POSITIONS, architecture.max_position_embeddings)
    return out


# GGUF


def from_gguf(
    fields: Mapping[str, Any],
    where: StrPath,
    family: str,
    *,
    partial: bool = False,
    local_theta: float | None = None,
) -> dict[str, Any]:
    """The rotary fields of `Architecture` that GGUF metadata states.

    Args:
        fields: keys without the prefix; `rope_scaling` is our own key's object, `rotary_tensors`
            the values of the tensors in `rope` by name.
        where: the file, for messages.
        family: whose file it is.
        partial: whether the family may turn a part of each head.
        local_theta: what an absent base of the sliding layers means; None: the family has none.

    Raises:
        InvalidFormat: the scaling is not supported, lacks a parameter, or is stated twice and not
            alike.
    """
    theta = float(fields.get("rope.freq_base", THETA))
    out: dict[str, Any] = {
        "rope_theta": theta,
        "rope_scaling": _scaling_from_gguf(fields, where, family, theta),
    }
    if local_theta is not None:
        out["rope_local_theta"] = float(fields.get("rope.freq_base_swa", local_theta))
    width, head = fields.get("rope.dimension_count"), fields.get("attention.key_length")
    if partial and isinstance(width, int):
        if not isinstance(head, int):
            head = fields.get("embedding_length", 0) // (fields.get("attention.head_count") or 1)
        out["partial_rotary_factor"] = _share(width, head)
    return out


def _share(width: int, head: int) -> float:
    """The decimal that a config would state for `width` of `head` elements."""
    exact = width / head
    if round(exact, 4) == exact:
        return exact
    short = (round(n / 10**d, d) for d in (1, 2, 3, 4) for n in range(1, 10**d))
    return next((p for p in short if int(head * p) == width), exact)


def _scaling_from_gguf(
    fields: Mapping[str, Any], where: StrPath, family: str, theta: float
) -> dict[str, Any] | None:
    tensors: Mapping[str, list[float]] = fields.get("rotary_tensors") or {}
    context = fields.get("context_length") or 0
    latent = "attention.kv_lora_rank" in fields
    stated = fields.get("rope_scaling")
    if stated is not None:
        out = _scaling(stated.get("rope_type"), stated, where, family)
        expected = _keys(out, family, context, latent)
        for key in _WRITTEN:
            if not _same(expected.get(key), fields.get(key)):
                raise InvalidFormat(
                    where,
                    f"{OWN_KEY} gives {key} {expected.get(key)!r}, the file has "
                    f"{fields.get(key)!r}",
                    "one of the two was changed; export the model again",
                )
        return out
    # llama.cpp scales linearly where a factor stands without a kind.
    factor = fields.get(_FACTOR, fields.get("rope.scale_linear"))
    kind = fields.get(_TYPE, "linear" if factor not in (None, 0, 1) else "none")
    if rope.LONG in tensors or rope.SHORT in tensors:
        kind = "longrope" if kind in ("none", "longrope") else kind
    if kind == "longrope":
        return _longrope_from_gguf(fields, tensors, context, where, family)
    if kind == "yarn":
        return _yarn_from_gguf(fields, where, family, latent)
    if kind == "linear":
        return _scaling(kind, {"factor": factor}, where, family)
    if kind not in ("none", "default"):
        raise InvalidFormat(where, f"{_TYPE} is {kind!r}, which llama.cpp lacks")
    divisors = tensors.get(rope.TENSOR)
    if divisors is None or all(d == 1 for d in divisors):
        return None
    found = rope.llama3_from_divisors(divisors, theta)
    if found is None:
        raise InvalidFormat(
            where,
            f"tensor {rope.TENSOR} divides frequencies by up to {max(divisors):g}, which are the "
            "numbers of no rotary scaling that is known here",
            "open the Hugging Face folder that the file was made from",
        )
    return found


def _same(expected: object, found: object) -> bool:
    if isinstance(expected, float) and isinstance(found, (int, float)):
        return math.isclose(expected, found, rel_tol=_CLOSE)
    return expected == found


def _yarn_from_gguf(
    fields: Mapping[str, Any], where: StrPath, family: str, latent: bool
) -> dict[str, Any]:
    """As llama.cpp computes it. Keys that it does not read for these architectures, and that say
    something else, make the file contradict itself.
    """
    stated = {
        "factor": fields.get(_FACTOR),
        rope.POSITIONS: fields.get(_ORIGINAL),
    }
    out = _scaling("yarn", stated, where, family)
    given = fields.get(_ATTENTION)
    log, full = math.log(out["factor"]), rope.attention_factor(out, 0)
    weight = fields.get(_LOG, 0.0) / 0.1  # the converter's tenth, taken back by the loader
    if latent and weight and log:
        out["mscale"] = out["mscale_all_dim"] = float(f"{weight:.6g}")
        if given is not None and not _same(1.0, given):
            # See `_latent_keys`: there this factor enters the softmax as well.
            out["attention_factor"] = float(given)
            out["mscale_all_dim"] = (given * (1 + 0.1 * weight * log) - 1) / (0.1 * log)
            del out["mscale"]
    elif given is not None and not _same(1.0, given):
        out["attention_factor"] = float(f"{given * full:.7g}")
    ignored = {
        "rope.scaling.yarn_ext_factor": 1.0,
        "rope.scaling.yarn_beta_fast": rope.BETA_FAST,
        "rope.scaling.yarn_beta_slow": rope.BETA_SLOW,
        "rope.scaling.yarn_attn_factor": rope.attention_factor(out, 0),
    } | ({} if latent else {_LOG: 0.0})
    for key, value in ignored.items():
        if key in fields and not _same(value, fields[key]):
            raise InvalidFormat(
                where,
                f"states {key} {fields[key]!r}, which llama.cpp does not read for this "
                f"architecture: it computes with {value:g}, so one of the two is wrong",
                "open the Hugging Face folder that the file was made from",
            )
    return out


def _longrope_from_gguf(
    fields: Mapping[str, Any],
    tensors: Mapping[str, list[float]],
    context: int,
    where: StrPath,
    family: str,
) -> dict[str, Any]:
    stated = {
        "short_factor": tensors.get(rope.SHORT),
        "long_factor": tensors.get(rope.LONG),
        rope.POSITIONS: fields.get(_ORIGINAL),
    }
    out = _scaling("longrope", stated, where, family)
    given = fields.get(_ATTENTION, 1.0)
    if not _same(rope.attention_factor(out, context), given):
        out["attention_factor"] = float(given)
    return out


def gguf_form(scaling: Mapping[str, Any] | None, family: str) -> str | None:
    """How GGUF says a scaling: "keys", "tensor" (of divisors), "factors" (longrope's two tensors),
    "none" where there is nothing to say, or None where llama.cpp cannot compute it.
    """
    if scaling is None:
        return "none"
    lacks = contracts.load(f"families/{family}").get("gguf_lacks", [])
    tensor = None if "rope_freqs" in lacks else "tensor"
    forms = {
        "linear": "keys",
        "yarn": "keys" if _plain(scaling) else tensor,
        "llama3": tensor,
        "longrope": None if "rope_factors" in lacks else "factors",
    }
    return forms.get(scaling["rope_type"])


def _plain(yarn: Mapping[str, Any]) -> bool:
    """Whether llama.cpp's own yarn has these parameters: it has the ramp of the defaults alone."""
    return (
        yarn.get("beta_fast", rope.BETA_FAST) == rope.BETA_FAST
        and yarn.get("beta_slow", rope.BETA_SLOW) == rope.BETA_SLOW
        and yarn.get("truncate", True) is not False
    )


def _keys(scaling: Mapping[str, Any], family: str, context: int, latent: bool) -> dict[str, Any]:
    """llama.cpp's keys for a scaling, without the prefix."""
    form, kind = gguf_form(scaling, family), scaling["rope_type"]
    factor = rope.attention_factor(scaling, context)
    if form is None and kind == "yarn":
        form = "keys"  # as near as an inexact export comes
    out: dict[str, Any] = {}
    if form == "keys":
        out = {_TYPE: kind, _FACTOR: float(scaling["factor"])}
    if form == "factors":
        out = {_TYPE: kind}
    if rope.POSITIONS in scaling and out:
        out[_ORIGINAL] = scaling[rope.POSITIONS]
    if form == "keys" and kind == "yarn":
        if latent:
            return out | _latent_keys(scaling, factor)
        # It multiplies by 1 + 0.1 ln(factor) of its own accord.
        factor /= 1 + 0.1 * math.log(scaling["factor"])
    if not math.isclose(factor, 1, rel_tol=1e-9):
        out[_ATTENTION] = factor
    return out


def _latent_keys(scaling: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """Yarn's keys for MLA. With weight m (the multiplier times ten) and attn_factor a, llama.cpp's
    deepseek2 multiplies cosines and sines by a and scores by (a (1 + 0.1 m ln(factor)))^2; so both
    of transformers' factors can be had.
    """
    log = math.log(scaling["factor"])
    if not log:
        return {}
    softmax = math.sqrt(rope.softmax_mscale(scaling))
    weight = (softmax / factor - 1) / (0.1 * log)
    if math.isclose(factor, 1, rel_tol=1e-9):
        factor, weight = 1.0, scaling.get("mscale_all_dim") or 0.0
    if abs(weight) < 1e-9:  # read as absent: then it multiplies by 1 + 0.1 ln(factor) again
        return {_ATTENTION: factor / (1 + 0.1 * log)}
    return {_LOG: 0.1 * weight, **({} if factor == 1 else {_ATTENTION: factor})}


def to_gguf(architecture: Architecture) -> dict[str, Any]:
    """The GGUF metadata of a rotary embedding, keys without the prefix; none without one."""
    if architecture.rope_theta is None:
        return {}
    out: dict[str, Any] = {
        "rope.dimension_count": architecture.rotary_dim,
        "rope.freq_base": architecture.rope_theta,
    }
    if architecture.rope_local_theta is not None:
        out["rope.freq_base_swa"] = architecture.rope_local_theta
    if architecture.rope_scaling is not None:
        out |= _keys(
            architecture.rope_scaling,
            architecture.family,
            architecture.max_position_embeddings,
            architecture.is_mla,
        )
    return out


def own_key(architecture: Architecture) -> dict[str, Any] | None:
    """What `apr.rope_scaling` states, or None where llama.cpp's keys give the scaling back."""
    scaling = architecture.rope_scaling
    return None if scaling is None or scaling["rope_type"] == "linear" else dict(scaling)


def gguf_tensors(architecture: Architecture) -> dict[str, list[float]]:
    """The tensors that stand for a scaling which llama.cpp has no keys for, by name, `[pairs]`.

    Source: llama.cpp's convert_hf_to_gguf.py (`generate_extra_tensors` of its Llama and Phi-3).
    """
    scaling = architecture.rope_scaling
    form = gguf_form(scaling, architecture.family)
    if scaling is not None and form == "factors":
        return {rope.LONG: scaling["long_factor"], rope.SHORT: scaling["short_factor"]}
    divisors = rope.divisors(scaling, architecture.rope_theta, architecture.rotary_dim)
    return {rope.TENSOR: divisors} if form == "tensor" and divisors is not None else {}


def gguf_obstacles(architecture: Architecture) -> list[str]:
    """What about the rotary embedding no GGUF of the family can say to llama.cpp: which property,
    where it bites; a sentence each.
    """
    scaling = architecture.rope_scaling
    if scaling is None or gguf_form(scaling, architecture.family) is not None:
        return []
    kind, context = scaling["rope_type"], architecture.max_position_embeddings
    name = contracts.load(f"families/{architecture.family}")["gguf_architecture"]
    if kind == "dynamic":
        return [
            "its rotary scaling is 'dynamic', whose base grows with the sequence, and llama.cpp "
            f"has no form for it: sequences longer than {context} tokens would give other logits"
        ]
    if kind == "longrope":
        return [
            f"its rotary scaling is 'longrope', and llama.cpp's {name!r} has no {rope.LONG} and "
            f"{rope.SHORT}, the only form that GGUF has for it: it would not load the file at all"
        ]
    if kind == "yarn":
        plain = {k: v for k, v in scaling.items() if not k.startswith("beta") and k != "truncate"}
        theta, width = architecture.rope_theta, architecture.rotary_dim
        ours, theirs = (rope.divisors(s, theta, width) or [] for s in (scaling, plain))
        most = max((abs(a / b - 1) for a, b in zip(ours, theirs, strict=True)), default=0.0)
        if not most:
            return []
        return [
            "its rotary scaling is 'yarn' with "
            + ", ".join(f"{k} {scaling[k]}" for k in scaling if k not in plain)
            + f", and llama.cpp's {name!r} computes the ramp of the defaults, with frequencies up "
            f"to {most:.2%} off: logits at every position but the first would differ"
        ]
    return [
        f"its rotary scaling is {kind!r}, and llama.cpp's {name!r} has no {rope.TENSOR}, the only "
        "form that GGUF has for it: it would not load the file at all"
    ]


def gguf_caveats(architecture: Architecture) -> list[str]:
    """What depends on how whoever has the GGUF loads it: the file is exact, a setting is not."""
    scaling, context = architecture.rope_scaling, architecture.max_position_embeddings
    if scaling is None or scaling["rope_type"] != "longrope":
        return []
    original = scaling[rope.POSITIONS]
    if context <= original or scaling["long_factor"] == scaling["short_factor"]:
        return []
    pairs = zip(scaling["long_factor"], scaling["short_factor"], strict=True)
    most = max(max(a / b, b / a) for a, b in pairs)
    return [
        f"rope_scaling 'longrope': llama.cpp takes the long factors where the context it is loaded "
        f"with (rounded up to a multiple of 256) is longer than {original}, not where the text is; "
        f"load it with at most {original // 256 * 256} for texts up to {original} tokens and with "
        f"more for longer ones, or frequencies are up to {most:.3g} times off"
    ]
