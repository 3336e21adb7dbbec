"""How a Hugging Face config says a rotary embedding; every family asks here.

GGUF's side is `rotary_gguf.py`; what each kind computes is `apr/rope.py`. Facts: transformers'
`modeling_rope_utils.py` and `configuration_phi3.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr import contracts, rope
from apr.architecture import FULL, SLIDING, Architecture
from apr.errors import InvalidFormat, StrPath
from apr.families.rotary_gguf import THETA


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
        scaling = rope.stated(kind, stated, where, family)
    return {
        "rope_theta": _number("rope_theta", theta if base is None else base, where),
        "rope_scaling": scaling,
        "rope_local_theta": local,
        "partial_rotary_factor": _number(
            "partial_rotary_factor", (partial if share is None else share) or 1.0, where
        )
        if partial is not None
        else 1.0,
    }


def _number(key: str, value: object, where: StrPath) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidFormat(where, f"{key} is {value!r}, not a number")
    return float(value)


def _by_layer(
    config: Mapping[str, Any], where: StrPath, local_theta: float
) -> tuple[dict[str, Any], float]:
    """Full attention's parameters and the sliding layers' base: by kind of layer, or in the older
    form, where `rope_scaling` and `rope_theta` are full attention's.
    """
    by_kind = config.get("rope_parameters") or {}
    for kind in (FULL, SLIDING):
        if not isinstance(by_kind, Mapping) or not isinstance(
            by_kind.get(kind, {}), Mapping | None
        ):
            raise InvalidFormat(
                where, f"rope_parameters is {by_kind!r}, not keyed by kind of layer"
            )
    sliding = by_kind.get(SLIDING) or {}
    if sliding.get("rope_type", "default") != "default":
        raise InvalidFormat(
            where, f"rotary scaling {sliding['rope_type']!r} of sliding layers is not supported"
        )
    local = sliding.get("rope_theta", config.get("rope_local_base_freq"))
    full = {**(by_kind.get(FULL) or {}), **(config.get("rope_scaling") or {})}
    return full, _number("rope_local_base_freq", local_theta if local is None else local, where)


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
        out["rope_parameters"] = {FULL: full, SLIDING: sliding}
        out["rope_local_base_freq"] = local
    if scaling is not None:
        # transformers 4 knows only this name for the object, and without it would not scale at all.
        out["rope_scaling"] = dict(scaling)
    if scaling is not None and original_beside:
        lists = {k: v for k, v in scaling.items() if k not in ("rope_type", rope.POSITIONS)}
        out["rope_scaling"] = {"type": scaling["rope_type"], **lists}
        out[rope.POSITIONS] = scaling.get(rope.POSITIONS, architecture.max_position_embeddings)
    return out
