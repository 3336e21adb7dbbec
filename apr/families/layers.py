"""What a config or GGUF metadata says layer by layer: which slide, which have experts.

Functions beside those of `dense.py`; each family's module calls them with what is its own. Where
the number of layers is missing they give nothing: it is reported with everything else that is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from apr.architecture import FULL, SLIDING, Architecture
from apr.errors import InvalidFormat, StrPath


def stated(
    config: Mapping[str, Any],
    where: StrPath,
    key: str,
    allowed: Sequence[str],
    absent: Callable[[int], list[str]],
) -> list[str] | None:
    """The kind of each layer by the list `key` of a config; None if `num_hidden_layers` is missing.

    Args:
        config: the parsed file.
        where: the file, for messages.
        key: `layer_types` or `mlp_layer_types`.
        allowed: the kinds.
        absent: what an absent or null list means, by the number of layers.

    Raises:
        InvalidFormat: no list of these kinds, or not one for each layer.
    """
    layers, kinds = config.get("num_hidden_layers"), config.get(key)
    if not isinstance(layers, int):
        return None
    if kinds is None:
        return absent(layers)
    if not isinstance(kinds, list) or not all(kind in allowed for kind in kinds):
        raise InvalidFormat(where, f"{key} is {kinds!r}, not a list of {' and '.join(allowed)}")
    if len(kinds) != layers:
        raise InvalidFormat(where, f"{key} names {len(kinds)} layers, the model has {layers}")
    return kinds


def periodic(layers: object, period: int) -> list[str]:
    """The kind of each layer where the last of every `period` is full; 0 means none is."""
    count = layers if isinstance(layers, int) else 0
    return [SLIDING if not period or i % period < period - 1 else FULL for i in range(count)]


def kinds(architecture: Architecture) -> list[str]:
    """Of each layer, whether it slides."""
    return [
        FULL if architecture.window(layer) is None else SLIDING for layer in architecture.all_layers
    ]


def qwen_windows(
    config: Mapping[str, Any],
    where: StrPath,
    slides: Callable[[int, int], bool] = lambda layer, first: layer >= first,
) -> dict[str, Any]:
    """`sliding_window` and `layer_types` of a Qwen config.

    There `use_sliding_window` (false if absent) decides whether the window holds at all, and
    `layer_types`, or else `max_window_layers`, in which layers: those from that number on, or those
    that `slides` (given a layer and that number) says.

    Raises:
        InvalidFormat: a layer slides and no window is given, or the fields are of no use.
    """
    used = config.get("use_sliding_window") or False
    # An absent window is 4096 and an absent number of layers 28: transformers' defaults.
    window = config.get("sliding_window", 4096) if used else None

    def by_number(layers: int) -> list[str]:
        first = config.get("max_window_layers", 28)
        if window is None:
            return [FULL] * layers
        if not isinstance(first, int):
            raise InvalidFormat(where, f"max_window_layers is {first!r}, not a number of layers")
        return [SLIDING if slides(i, first) else FULL for i in range(layers)]

    found = stated(config, where, "layer_types", (FULL, SLIDING), by_number)
    if found is None or SLIDING not in found:
        return {}  # no layer slides, so there is no window, whatever number stands there
    if window is None:
        raise InvalidFormat(
            where,
            "layer_types has sliding layers, but there is no window for them",
            f"set use_sliding_window and sliding_window, or make every layer {FULL}",
        )
    return {"sliding_window": window, "layer_types": found}


def qwen_windows_to_hf(architecture: Architecture) -> dict[str, Any]:
    """The fields of a Qwen config that give the same window in the same layers.

    transformers 5 reads `layer_types`; `max_window_layers`, which older versions read, says the
    same wherever all sliding layers come last.
    """
    found = kinds(architecture)
    return {
        "use_sliding_window": architecture.sliding_window is not None,
        "sliding_window": architecture.sliding_window,
        "max_window_layers": found.index(SLIDING) if SLIDING in found else len(found),
        "layer_types": found,
    }
