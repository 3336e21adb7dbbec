"""How GGUF says a rotary embedding; what it cannot say is in `rotary_obstacles.py`.

A scaling has one of three forms: keys alone (linear, plain yarn), the tensor `rope_freqs.weight` of
divisors (llama3, and yarn with parameters that llama.cpp has no key for), or the two tensors of
longrope. A key of our own, `apr.rope_scaling`, states kind and parameters where those do not give
them back exactly; on reading the two must agree.

Facts: llama.cpp's loader and `llama-context.cpp`, held to by comparing logits
(tests/export/test_rotary_scaling.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from apr import contracts, rope
from apr.architecture import Architecture
from apr.errors import InvalidFormat, StrPath

OWN_KEY = "apr.rope_scaling"
THETA = 10_000.0  # transformers' and llama.cpp's default alike
_CLOSE = 1e-5  # relative: GGUF has float32
_TYPE, _FACTOR = "rope.scaling.type", "rope.scaling.factor"
_ORIGINAL, _ATTENTION = "rope.scaling.original_context_length", "rope.scaling.attn_factor"
LOG_MULTIPLIER = "rope.scaling.yarn_log_multiplier"
_WRITTEN = (_TYPE, _FACTOR, _ORIGINAL, _ATTENTION, LOG_MULTIPLIER)


class _Model(NamedTuple):
    """What the form of a scaling depends on."""

    family: str
    theta: float
    width: int  # elements of a head that turn
    context: int
    latent: bool


def _model(architecture: Architecture) -> _Model:
    return _Model(
        architecture.family,
        architecture.rope_theta or THETA,
        architecture.rotary_dim,
        architecture.max_position_embeddings,
        architecture.is_mla,
    )


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
    heads = fields.get("attention.head_count")
    if isinstance(heads, list):
        heads = heads[0] if heads else None
    head = fields.get("attention.key_length", fields.get("embedding_length", 0) // (heads or 1))
    width = fields.get("rope.dimension_count", head)
    model = _Model(
        family,
        float(fields.get("rope.freq_base", THETA)),
        width,
        fields.get("context_length") or 0,
        "attention.kv_lora_rank" in fields,
    )
    out: dict[str, Any] = {
        "rope_theta": model.theta,
        "rope_scaling": _scaling_from_gguf(fields, where, model),
    }
    if local_theta is not None:
        out["rope_local_theta"] = float(fields.get("rope.freq_base_swa", local_theta))
    if partial and head:
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
    fields: Mapping[str, Any], where: StrPath, model: _Model
) -> dict[str, Any] | None:
    tensors: Mapping[str, list[float]] = fields.get("rotary_tensors") or {}
    family = model.family
    stated = fields.get("rope_scaling")
    if stated is not None:
        out = rope.stated(stated.get("rope_type"), stated, where, family)
        expected = _keys(out, model)
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
        return _longrope_from_gguf(fields, tensors, where, model)
    if kind == "yarn":
        return _yarn_from_gguf(fields, where, model)
    if kind == "linear":
        return rope.stated(kind, {"factor": factor}, where, family)
    if kind not in ("none", "default"):
        raise InvalidFormat(where, f"{_TYPE} is {kind!r}, which llama.cpp lacks")
    divisors = tensors.get(rope.TENSOR)
    if divisors is None or all(d == 1 for d in divisors):
        return None
    found = rope.llama3_from_divisors(divisors, model.theta)
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


def _yarn_from_gguf(fields: Mapping[str, Any], where: StrPath, model: _Model) -> dict[str, Any]:
    """As llama.cpp computes it. Keys that it does not read for these architectures, and that say
    something else, make the file contradict itself.
    """
    stated = {
        "factor": fields.get(_FACTOR),
        rope.POSITIONS: fields.get(_ORIGINAL),
    }
    out = rope.stated("yarn", stated, where, model.family)
    given = fields.get(_ATTENTION)
    log, full = math.log(out["factor"]), rope.attention_factor(out, 0)
    # The converter writes a tenth, which the loader takes back.
    weight = fields.get(LOG_MULTIPLIER, 0.0) / 0.1
    if model.latent and weight and log:
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
    } | ({} if model.latent else {LOG_MULTIPLIER: 0.0})
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
    where: StrPath,
    model: _Model,
) -> dict[str, Any]:
    stated = {
        "short_factor": tensors.get(rope.SHORT),
        "long_factor": tensors.get(rope.LONG),
        rope.POSITIONS: fields.get(_ORIGINAL),
    }
    out = rope.stated("longrope", stated, where, model.family)
    given = fields.get(_ATTENTION, 1.0)
    if not _same(rope.attention_factor(out, model.context), given):
        out["attention_factor"] = float(given)
    return out


def gguf_form(architecture: Architecture) -> str | None:
    """How GGUF says a model's scaling: "keys", "tensor" (of divisors), "factors" (longrope's two
    tensors), "none" where there is nothing to say, or None where llama.cpp cannot compute it.
    """
    scaling = architecture.rope_scaling
    return "none" if scaling is None else _form(scaling, _model(architecture))


def _form(scaling: Mapping[str, Any], model: _Model) -> str | None:
    lacks = contracts.load(f"families/{model.family}").get("gguf_lacks", [])
    tensor = None if "rope_freqs" in lacks else "tensor"
    forms = {
        "linear": "keys",
        "yarn": "keys" if _plain(scaling, model) else tensor,
        "llama3": tensor,
        "longrope": None if "rope_factors" in lacks else "factors",
    }
    return forms.get(scaling["rope_type"])


def with_usual_ramp(yarn: Mapping[str, Any]) -> dict[str, Any]:
    """The same yarn with the ramp of the defaults."""
    return {k: v for k, v in yarn.items() if k not in ("beta_fast", "beta_slow", "truncate")}


def _plain(yarn: Mapping[str, Any], model: _Model) -> bool:
    """Whether llama.cpp's own yarn computes this: it has the ramp of the defaults alone."""
    usual = with_usual_ramp(yarn)
    if len(usual) == len(yarn) or not model.width:
        return True
    ours, theirs = (rope.divisors(y, model.theta, model.width) for y in (yarn, usual))
    return ours == theirs


def _keys(scaling: Mapping[str, Any], model: _Model) -> dict[str, Any]:
    """llama.cpp's keys for a scaling, without the prefix."""
    form, kind = _form(scaling, model), scaling["rope_type"]
    factor = rope.attention_factor(scaling, model.context)
    out: dict[str, Any] = {}
    if form == "keys":
        out = {_TYPE: kind, _FACTOR: float(scaling["factor"])}
    if form == "factors":
        out = {_TYPE: kind}
    if rope.POSITIONS in scaling and out:
        out[_ORIGINAL] = scaling[rope.POSITIONS]
    if form == "keys" and kind == "yarn":
        if model.latent:
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
    return {LOG_MULTIPLIER: 0.1 * weight, **({} if factor == 1 else {_ATTENTION: factor})}


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
        out |= _keys(architecture.rope_scaling, _model(architecture))
    return out


def own_statement(architecture: Architecture) -> dict[str, Any] | None:
    """What `apr.rope_scaling` states, or None where llama.cpp's keys give the scaling back."""
    scaling = architecture.rope_scaling
    return None if scaling is None or scaling["rope_type"] == "linear" else dict(scaling)


def gguf_tensors(architecture: Architecture) -> dict[str, list[float]]:
    """The tensors that stand for a scaling which llama.cpp has no keys for, by name, `[pairs]`.

    Source: llama.cpp's convert_hf_to_gguf.py (`generate_extra_tensors` of its Llama and Phi-3).
    """
    scaling = architecture.rope_scaling
    form = gguf_form(architecture)
    if scaling is not None and form == "factors":
        return {rope.LONG: scaling["long_factor"], rope.SHORT: scaling["short_factor"]}
    divisors = rope.divisors(scaling, architecture.rope_theta, architecture.rotary_dim)
    return {rope.TENSOR: divisors} if form == "tensor" and divisors is not None else {}
