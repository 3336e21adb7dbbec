"""Rotary scaling kinds: which parameters each has, and what it does to the frequencies.

The one place that knows the formulas' numbers: the decoder takes them from here (apr/model/rotary),
and GGUF stores what they give where it has no key for the kind. Reference: transformers'
`modeling_rope_utils.py`. The parameters of each kind are data: `contracts/metadata.yaml`, rule
META-ROPE-SCALING.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from apr import contracts
from apr.errors import InvalidFormat, StrPath

TENSOR = "rope_freqs.weight"  # what each pair's frequency is divided by, at any length
LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
POSITIONS = "original_max_position_embeddings"
BETA_FAST, BETA_SLOW = 32.0, 1.0  # yarn's where absent, in transformers and llama.cpp alike
# Kinds whose frequencies depend on how long the sequence is.
BY_LENGTH = frozenset({"dynamic", "longrope"})
_AT_LEAST_ONE = ("factor", POSITIONS)
_LISTS = ("short_factor", "long_factor")
_MAY_BE_ZERO = ("mscale", "mscale_all_dim")  # there as good as absent


class Parameters(NamedTuple):
    """The parameters of a kind: those it needs, and those with a published default."""

    required: tuple[str, ...]
    optional: tuple[str, ...]


def parameters(kind: object) -> Parameters | None:
    """The parameters of a kind, or None for one that is not supported."""
    rules = contracts.load("metadata")["relations"]
    kinds = next(rule["parameters"] for rule in rules if "parameters" in rule)
    if not isinstance(kind, str) or kind not in kinds:
        return None
    return Parameters(tuple(kinds[kind]["required"]), tuple(kinds[kind].get("optional", ())))


def problems(scaling: Mapping[str, Any], rotary_dim: int | None = None) -> list[str]:
    """What is wrong with a `rope_scaling`, a line each; empty if nothing.

    Args:
        scaling: as in `Architecture.rope_scaling`.
        rotary_dim: how many elements of a head turn, where that is known: lists of factors must
            have half as many.
    """
    kind = scaling.get("rope_type")
    known = parameters(kind)
    if known is None:
        return [f"rotary scaling {kind!r} is not supported"]
    missing = [key for key in known.required if scaling.get(key) is None]
    if missing:
        return [f"rotary scaling {kind!r} lacks {', '.join(missing)}"]
    given = [key for key in (*known.required, *known.optional) if scaling.get(key) is not None]
    out = []
    for key in given:
        wanted = _wanted(key, scaling[key], str(kind), rotary_dim)
        if wanted:
            out.append(f"{key} of rotary scaling {kind!r} is {_short(scaling[key])}, not {wanted}")
    if out:
        return out
    if kind == "llama3" and scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
        out.append(
            f"rotary scaling 'llama3' has high_freq_factor {scaling['high_freq_factor']}, not "
            f"above low_freq_factor {scaling['low_freq_factor']}"
        )
    if kind == "yarn" and _beta(scaling, "beta_fast") <= _beta(scaling, "beta_slow"):
        out.append(
            f"rotary scaling 'yarn' has beta_fast {_beta(scaling, 'beta_fast')}, not above "
            f"beta_slow {_beta(scaling, 'beta_slow')}"
        )
    if kind == "longrope" and len(scaling["short_factor"]) != len(scaling["long_factor"]):
        out.append("rotary scaling 'longrope' has fewer factors in one list than in the other")
    if kind == "dynamic" and rotary_dim == 2:
        out.append("rotary scaling 'dynamic' is not defined for a single pair")
    return out


def stated(
    kind: object, parameters_found: Mapping[str, Any], where: StrPath, family: str
) -> dict[str, Any]:
    """A `rope_scaling` with the parameters of its kind and no others.

    Raises:
        InvalidFormat: the kind is not supported, or a parameter is missing or of no use.
    """
    known = parameters(kind)
    if known is None:
        raise InvalidFormat(where, f"rotary scaling {kind!r} is not supported for {family} yet")
    found = parameters_found
    out = {"rope_type": kind, **{key: found.get(key) for key in known.required}}
    out |= {key: found[key] for key in known.optional if found.get(key) is not None}
    wrong = problems(out)
    if wrong:
        raise InvalidFormat(where, "; ".join(wrong))
    return out


def _wanted(key: str, value: object, kind: str, rotary_dim: int | None) -> str | None:
    """What a parameter should be, or None where it is that."""
    if key == "truncate":
        return None if isinstance(value, bool) else "true or false"
    if key in _LISTS:
        pairs = rotary_dim // 2 if rotary_dim is not None else None
        listed = isinstance(value, Sequence) and not isinstance(value, str)
        if listed and all(_number(v) and v > 0 for v in value) and pairs in (None, len(value)):  # type: ignore[attr-defined, arg-type]
            return None
        return "a list of numbers above 0" + (f", {pairs} of them" if pairs is not None else "")
    if key == POSITIONS:
        least = 2 if kind == "longrope" else 1  # its logarithm divides there
        if isinstance(value, int) and not isinstance(value, bool) and value >= least:
            return None
        return f"a whole number of at least {least}"
    if key in _AT_LEAST_ONE:
        return None if _number(value) and value >= 1 else "a number of at least 1"  # type: ignore[operator]
    if key in _MAY_BE_ZERO:
        return None if _number(value) and value >= 0 else "a number of at least 0"  # type: ignore[operator]
    return None if _number(value) and value > 0 else "a number above 0"  # type: ignore[operator]


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _short(value: object) -> str:
    return f"a list of {len(value)}" if isinstance(value, list) and len(value) > 4 else repr(value)


def _beta(scaling: Mapping[str, Any], key: str) -> float:
    value = scaling.get(key)
    return float(value if value is not None else BETA_FAST if key == "beta_fast" else BETA_SLOW)


def _mscale(factor: float, weight: float = 1.0) -> float:
    return 0.1 * weight * math.log(factor) + 1.0


def attention_factor(scaling: Mapping[str, Any] | None, context: int) -> float:
    """What cosines and sines are multiplied by: 1 except for yarn and longrope.

    Args:
        scaling: sound by `problems`.
        context: `max_position_embeddings`; longrope's `factor`, where absent, is its ratio to the
            original context.
    """
    kind = None if scaling is None else scaling["rope_type"]
    if scaling is None or kind not in ("yarn", "longrope"):
        return 1.0
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    if kind == "longrope":
        factor = scaling.get("factor") or context / scaling[POSITIONS]
        if factor <= 1:
            return 1.0
        return math.sqrt(1 + math.log(factor) / math.log(scaling[POSITIONS]))
    factor = float(scaling["factor"])
    one, all_dim = scaling.get("mscale"), scaling.get("mscale_all_dim")
    if one and all_dim:
        return _mscale(factor, one) / _mscale(factor, all_dim)
    return _mscale(factor)


def softmax_mscale(scaling: Mapping[str, Any] | None) -> float:
    """What MLA multiplies its scores by beside the usual scale (`yarn_apply_mscale` of
    transformers' deepseek_v3): 1 unless yarn states `mscale_all_dim`.
    """
    if scaling is None or not scaling.get("mscale_all_dim"):
        return 1.0
    return _mscale(float(scaling["factor"]), float(scaling["mscale_all_dim"])) ** 2


def yarn_range(scaling: Mapping[str, Any], theta: float, width: int) -> tuple[float, float]:
    """The pairs between which yarn blends: before the first they keep their frequency, after the
    second they are slowed by the whole factor. Whole numbers unless `truncate` is false.
    """

    def pair(turns: float) -> float:
        """The pair (a fraction) that turns so often within the original context."""
        per_turn = scaling[POSITIONS] / (turns * 2 * math.pi)
        return width * math.log(per_turn) / (2 * math.log(theta))

    low, high = pair(_beta(scaling, "beta_fast")), pair(_beta(scaling, "beta_slow"))
    if scaling.get("truncate", True) is not False:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    return low, high + 0.001 if low == high else high


def divisors(
    scaling: Mapping[str, Any] | None, theta: float | None, width: int
) -> list[float] | None:
    """What the frequency of each rotary pair is divided by, `[width / 2]`; None if by nothing, or
    if it depends on the length (`BY_LENGTH`).

    Args:
        scaling: `Architecture.rope_scaling`, sound by `problems`.
        theta: base of the rotary embedding.
        width: how many elements of a head turn, even.
    """
    if scaling is None or theta is None or scaling["rope_type"] in BY_LENGTH:
        return None
    factor = float(scaling["factor"])
    if scaling["rope_type"] == "linear":
        return [factor] * (width // 2)
    if scaling["rope_type"] == "yarn":
        low, high = yarn_range(scaling, theta, width)
        slowed = [min(1.0, max(0.0, (pair - low) / (high - low))) for pair in range(width // 2)]
        return [1 / (share / factor + (1 - share)) for share in slowed]
    return _llama3(
        theta,
        width,
        factor,
        float(scaling["low_freq_factor"]),
        float(scaling["high_freq_factor"]),
        scaling[POSITIONS],
    )


def _llama3(
    theta: float, width: int, factor: float, low: float, high: float, original: float
) -> list[float]:
    out = []
    for pair in range(width // 2):
        turns = original / _wavelength(theta, width, pair)  # within the original context
        # Pairs that turn often stay, those that hardly turn are slowed, between them a blend.
        if turns > high:
            out.append(1.0)
        elif turns < low:
            out.append(factor)
        else:
            smooth = (turns - low) / (high - low)
            out.append(1 / ((1 - smooth) / factor + smooth))
    return out


def _wavelength(theta: float, width: int, pair: int) -> float:
    """Tokens for a whole turn."""
    return float(2 * math.pi * theta ** (2 * pair / width))


def llama3_from_divisors(found: Sequence[float], theta: float) -> dict[str, Any] | None:
    """The llama3 scaling that gives these divisors (1e-5 relative), or None.

    Between the bands a pair's share is linear in how often it turns; two pairs there give the
    context over low_freq_factor, and high over low. Their common scale has no effect, so
    low_freq_factor 1 stands for all. Published values are tried first, then those that two pairs
    give.

    Args:
        found: the divisors, `[rotary_dim / 2]`.
        theta: base of the rotary embedding.
    """
    width, factor = 2 * len(found), max(found)
    if factor <= 1 or min(found) < 0.99999:
        return None
    factor = _round(factor)
    candidates = [(4.0, 8192)]
    shares = [
        (1 / _wavelength(theta, width, pair), (1 / d - 1 / factor) / (1 - 1 / factor))
        for pair, d in enumerate(found)
        if 1.0001 < d < factor * 0.9999
    ]
    if len(shares) > 1:
        (x0, y0), (x1, y1) = shares[0], shares[-1]
        slope = (y1 - y0) / (x1 - x0)  # original / (high - low)
        offset = slope * x0 - y0  # low / (high - low)
        if slope > 0 and offset > 0:
            candidates.append((_round(1 + 1 / offset), round(slope / offset)))
    else:  # too few pairs between the bands to solve for both
        candidates += [(4.0, 2**power) for power in range(5, 21)]
    for high, original in candidates:
        scaling = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": high,
            POSITIONS: original,
        }
        if problems(scaling):
            continue
        given = divisors(scaling, theta, width) or []
        if all(abs(a - b) <= 1e-5 * b for a, b in zip(found, given, strict=True)):
            return scaling
    return None


def _round(value: float) -> float:
    """A float32 result as the short decimal that it was meant to be."""
    return float(f"{value:.4g}")
