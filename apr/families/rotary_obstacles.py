"""What of a rotary embedding llama.cpp cannot compute, or only if it is loaded in a certain way."""

from __future__ import annotations

from apr import contracts, rope
from apr.architecture import Architecture
from apr.families.obstacles import Obstacle
from apr.families.rotary_gguf import gguf_form, with_usual_ramp


def obstacles(architecture: Architecture) -> list[Obstacle]:
    """What about the rotary embedding no GGUF of the family can say to llama.cpp."""
    scaling = architecture.rope_scaling
    if scaling is None or gguf_form(architecture) is not None:
        return []
    kind, context = scaling["rope_type"], architecture.max_position_embeddings
    name = contracts.load(f"families/{architecture.family}")["gguf_architecture"]
    if kind == "dynamic":
        text = (
            "its rotary scaling is 'dynamic', whose base grows with the sequence, and llama.cpp "
            f"has no form for it: sequences longer than {context} tokens would give other logits"
        )
        return [Obstacle("rope_scaling", text, {"rope_scaling": None})]
    if kind == "yarn":
        plain = with_usual_ramp(scaling)
        theta, width = architecture.rope_theta, architecture.rotary_dim
        ours, theirs = (rope.divisors(s, theta, width) or [] for s in (scaling, plain))
        most = max((abs(a / b - 1) for a, b in zip(ours, theirs, strict=True)), default=0.0)
        own = ", ".join(f"{k} {scaling[k]}" for k in scaling if k not in plain)
        text = (
            f"its rotary scaling is 'yarn' with {own}, and llama.cpp's {name!r} computes the ramp "
            f"of the defaults, with frequencies up to {most:.2%} off: logits at every position but "
            "the first would differ"
        )
        return [Obstacle("rope_scaling", text, {"rope_scaling": plain})]
    tensors = rope.TENSOR if kind == "llama3" else f"{rope.LONG} and {rope.SHORT}"
    text = (
        f"its rotary scaling is {kind!r}, and llama.cpp's {name!r} has no {tensors}, the only form "
        "that GGUF has for it: it would not load the file at all"
    )
    return [Obstacle("rope_scaling", text)]


def caveats(architecture: Architecture) -> list[str]:
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
